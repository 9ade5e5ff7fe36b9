"""What every node of a network can be while its input moves inside l2 balls, in float64.

Each node of each example is enclosed twice: by an affine form of the perturbation d, |d| <= radius,

    centre + slope d + [-rest, rest]                       (a zonotope with an l2 ball; DeepZ's
                                                            relaxation, Singh et al., NeurIPS 2018)

and by an interval; the intersection decides which activations are dead or always active. Beside
them travels an enclosure of all Jacobians inside the ball: a matrix `jacobian` and bounds, for the
whole matrix (`spread`, spectral norm) and row by row (`spreads`), on how far any other lies from
it. Where an activation is undecided its slope may be anything in [0, 1].

Rounding: every application of a linear map adds `rounding(map) * |T| |x|` to the rests and the
spreads, every sum and product is followed by a factor 1 + 1e-9 upward, far above what a handful of
roundings of 2^-53 can amount to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import UnsupportedOpError
from fedprune.robustness.linear_parts import (
    apply_absolute,
    apply_linear,
    is_linear,
    offset_size,
    rounding,
)
from fedprune.robustness.network import Network, Step
from fedprune.robustness.operations import Concatenation, Function, Operation, Sum
from fedprune.robustness.region import (
    FLOOR,
    SAFE,
    Region,
    higher,
    lower,
    row_lengths,
    spread_over,
    start,
    tightened,
    total_length,
)
from fedprune.robustness.region_activations import (
    Pattern,
    Switches,
    through_maximum,
    through_relu,
)


@dataclass(frozen=True)
class Regions:
    """The wanted node, and what the ball decides.

    Attributes:
        region: the last node.
        patterns: of every ReLU and maximum, by its node.
    """

    region: Region
    patterns: Mapping[str, Pattern]

    @property
    def decided(self) -> Tensor:
        """Share [n] of ReLUs that the ball leaves no choice; 1 where there are none."""
        relus = [one for one in self.patterns.values() if isinstance(one, Switches)]
        if not relus:
            return torch.ones(len(self.region.centre), dtype=torch.float64)
        open_ = torch.cat([one.undecided.flatten(1) for one in relus], dim=1)
        return 1 - open_.double().mean(dim=1)


def follow(network: Network, inputs: Tensor, radii: Tensor, scale: Tensor) -> Regions:
    """Enclose a network's output over l2 balls around inputs.

    Args:
        network: lowered; its input is the normalised one.
        inputs: [n, ...] float64.
        radii: [n] in units of the unnormalised input.
        scale: [...] of the input's shape: normalised = scale * unnormalised + constant.

    Raises:
        UnsupportedOpError: an operation that is neither linear, ReLU nor a maximum.
    """
    known = {network.input: start(inputs, radii, scale)}
    left = network.readers()
    patterns: dict[str, Pattern] = {}
    for name, step in network.steps.items():
        read = [known[source] for source in step.inputs]
        known[name], pattern = _through(name, step, read, radii)
        if pattern is not None:
            patterns[name] = pattern
        for source in step.inputs:
            left[source] -= 1
            if left[source] == 0:
                del known[source]
    return Regions(known[network.output], patterns)


def _through(
    name: str, step: Step, read: list[Region], radii: Tensor
) -> tuple[Region, Pattern | None]:
    operation = step.operation
    if is_linear(operation):
        return _linear(operation, read, radii), None
    rule = RULES.get(operation.name) if isinstance(operation, Function) else None
    if rule is None:
        raise UnsupportedOpError(
            f"operation {operation.kind!r} at node {name!r} has no local bound: linear operations, "
            f"ReLU and maxima over windows have"
        )
    assert isinstance(operation, Function)
    return rule(operation, read[0], radii)


def _linear(operation: Operation, read: list[Region], radii: Tensor) -> Region:
    relative = rounding(operation)
    centre = operation.run(*(one.centre for one in read))
    reach = [spread_over(radii, one.centre) * row_lengths(one.slope) for one in read]
    sizes = [one.centre.abs() + far + one.rest for one, far in zip(read, reach, strict=True)]
    wrong = relative * (apply_absolute(operation, *sizes) + offset_size(operation, centre))
    rest = (apply_absolute(operation, *(one.rest for one in read)) + wrong) * SAFE + FLOOR
    low, high = _interval(operation, read, relative)
    jacobian = _columns(operation, [one.jacobian for one in read])
    spreads = apply_absolute(
        operation, *(one.spreads + relative * row_lengths(one.jacobian) for one in read)
    )
    spread = _spread(operation, read, relative)
    region = Region(
        centre, _columns(operation, [one.slope for one in read]), rest, low, high, jacobian,
        spread, spreads * SAFE + FLOOR,
    )  # fmt: skip
    return tightened(region, radii)


def _interval(operation: Operation, read: list[Region], relative: float) -> tuple[Tensor, Tensor]:
    middles = [(one.low + one.high) / 2 for one in read]
    halves = [
        torch.maximum(one.high - middle, middle - one.low) * SAFE + FLOOR
        for one, middle in zip(read, middles, strict=True)
    ]
    middle, half = operation.run(*middles), apply_absolute(operation, *halves)
    sizes = apply_absolute(operation, *(middle.abs() for middle in middles))
    half = (half + relative * (sizes + half + offset_size(operation, middle))) * SAFE + FLOOR
    return lower(middle - half), higher(middle + half)


def _spread(operation: Operation, read: list[Region], relative: float) -> Tensor:
    """Spectral spread after a linear map: composed like distances, with its own rounding."""
    carried = torch.stack([one.spread for one in read])
    if isinstance(operation, (Sum, Concatenation)):
        spread = torch.from_numpy(operation.compose(carried.numpy()))
    else:
        spread = carried[0] * operation.norm.value
    rows = apply_absolute(operation, *(row_lengths(one.jacobian) for one in read))
    return (spread + relative * total_length(rows)) * SAFE + FLOOR


def _columns(operation: Operation, matrices: list[Tensor]) -> Tensor:
    """Apply a linear map to every direction: [n, directions, ...]."""
    count, directions = matrices[0].shape[:2]
    flat = [matrix.reshape(count * directions, *matrix.shape[2:]) for matrix in matrices]
    result = apply_linear(operation, *flat)
    return result.reshape(count, directions, *result.shape[1:])


Rule = Callable[[Function, Region, Tensor], tuple[Region, Pattern]]
RULES: dict[str, Rule] = {
    "relu": through_relu,
    "max_pool": through_maximum,
    "adaptive_max_pool": through_maximum,
}
"""Rules of what is not linear, by the operation's name."""
