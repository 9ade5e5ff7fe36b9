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
from dataclasses import dataclass, replace

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
from fedprune.robustness.rounding import EPSILON

SAFE = 1 + 1e-9
"""Factor after a few roundings, outward."""

FLOOR = 1e-200
"""Added where a result could have vanished."""


@dataclass(frozen=True)
class Region:
    """One node of n examples; `directions` is the size of the network's input.

    Attributes:
        centre: [n, ...].
        slope: [n, directions, ...].
        rest: [n, ...], not negative.
        low, high: [n, ...], the intersection of all enclosures.
        jacobian: [n, directions, ...].
        spread: [n], spectral distance of any Jacobian in the ball from `jacobian`.
        spreads: [n, ...], the same row by row.
    """

    centre: Tensor
    slope: Tensor
    rest: Tensor
    low: Tensor
    high: Tensor
    jacobian: Tensor
    spread: Tensor
    spreads: Tensor


@dataclass(frozen=True)
class Switches:
    """ReLUs that are always active and those that may be either, [n, ...] bool each."""

    active: Tensor
    undecided: Tensor


@dataclass(frozen=True)
class Races:
    """Maxima over windows: [outputs, members] places in the flattened map, -1 where fewer.

    Attributes:
        windows: what each window reads.
        chosen: [n, channels, outputs], the member that leads from below.
        rival: [n, channels, outputs, members] bool, members that may exceed it.
    """

    windows: Tensor
    chosen: Tensor
    rival: Tensor


Pattern = Switches | Races


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


def start(inputs: Tensor, radii: Tensor, scale: Tensor) -> Region:
    """The ball itself: its affine form is exact."""
    count, size = len(inputs), scale.numel()
    slope = torch.diag(scale.flatten()).reshape(1, size, *scale.shape)
    slope = slope.expand(count, *slope.shape[1:])
    reach = spread_over(radii, inputs) * scale.abs() * SAFE
    zeros = torch.zeros_like(inputs)
    low, high = lower(inputs - reach), higher(inputs + reach)
    rest = 4 * EPSILON * reach + FLOOR
    spreads = 4 * EPSILON * scale.abs().expand_as(inputs) + FLOOR
    spread = 4 * EPSILON * scale.abs().max().expand(count) + FLOOR
    return Region(inputs, slope, zeros + rest, low, high, slope, spread, spreads)


def row_lengths(matrix: Tensor) -> Tensor:
    """Lengths over the directions [n, directions, ...] -> [n, ...], rounded up."""
    lengths: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return lengths * SAFE + FLOOR


def spread_over(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [n] to broadcast over [n, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def lower(values: Tensor) -> Tensor:
    """Move a result that was rounded a few times safely down."""
    return values - values.abs() * 1e-12 - FLOOR


def higher(values: Tensor) -> Tensor:
    """Move a result that was rounded a few times safely up."""
    return values + values.abs() * 1e-12 + FLOOR


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
    return _tightened(region, radii)


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
    return (spread + relative * _length(rows)) * SAFE + FLOOR


def _columns(operation: Operation, matrices: list[Tensor]) -> Tensor:
    """Apply a linear map to every direction: [n, directions, ...]."""
    count, directions = matrices[0].shape[:2]
    flat = [matrix.reshape(count * directions, *matrix.shape[2:]) for matrix in matrices]
    result = apply_linear(operation, *flat)
    return result.reshape(count, directions, *result.shape[1:])


def _tightened(region: Region, radii: Tensor) -> Region:
    """Intersect the interval with the affine form, and the two bounds on the Jacobian."""
    reach = spread_over(radii, region.centre) * row_lengths(region.slope) * SAFE + region.rest
    low = torch.maximum(region.low, lower(region.centre - reach * SAFE))
    high = torch.minimum(region.high, higher(region.centre + reach * SAFE))
    spread = torch.minimum(region.spread, _length(region.spreads))
    return replace(region, low=low, high=high, spread=spread)


def _length(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return lengths * SAFE + FLOOR


def _relu(operation: Function, read: Region, radii: Tensor) -> tuple[Region, Pattern]:
    """Dead: zero. Active: unchanged. Else: slope high / (high - low) and half a gap of rest."""
    del operation
    dead = read.high <= 0
    active = (read.low >= 0) & ~dead
    undecided = ~(dead | active)
    share = torch.where(
        undecided, read.high / (read.high - read.low).clamp_min(FLOOR), active.double()
    ).clamp(0.0, 1.0)
    gap = torch.maximum(-share * read.low, (1 - share) * read.high) * SAFE + FLOOR
    gap = torch.where(undecided, gap, torch.zeros_like(gap))
    reach = spread_over(radii, read.centre) * row_lengths(read.slope)
    wrong = 8 * EPSILON * (read.centre.abs() + reach + gap)
    centre = share * read.centre + gap / 2
    rest = torch.where(dead, 0.0, share * read.rest * SAFE + gap / 2 * SAFE)
    rest = torch.where(undecided, rest + wrong, rest)
    half = torch.where(undecided, 0.5, active.double())
    rows = torch.where(undecided, 0.5 * row_lengths(read.jacobian), 0.0)
    spreads = torch.where(dead, 0.0, read.spreads) + rows
    spread = read.spread + 0.5 * _norm_of_some(read.jacobian, undecided)
    region = Region(
        centre, read.slope * share[:, None], rest, read.low.clamp_min(0), read.high.clamp_min(0),
        read.jacobian * half[:, None], spread * SAFE, spreads * SAFE,
    )  # fmt: skip
    return _tightened(region, radii), Switches(active, undecided)


def _norm_of_some(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Bound the spectral norm of the chosen rows: matrix [n, directions, ...], chosen [n, ...]."""
    rows, mask = matrix.flatten(2), chosen.flatten(1)
    most = int(mask.sum(dim=1).max())
    if most == 0:
        return torch.zeros(len(matrix), dtype=matrix.dtype)
    order = mask.to(torch.int8).argsort(dim=1, descending=True)[:, :most]
    picked = torch.gather(rows, 2, order[:, None].expand(-1, rows.shape[1], -1))
    return spectral_norms(picked * torch.gather(mask, 1, order)[:, None])


def spectral_norms(matrices: Tensor) -> Tensor:
    """Bound the largest singular values: [n, a, b] -> [n].

    The eigenvalues of the smaller Gram matrix are computed with an error of a modest polynomial
    times eps times its trace; the allowance is 64 (a + b) eps times the trace.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.transpose(1, 2)
    gram = matrices @ matrices.transpose(1, 2)
    trace = torch.square(matrices).flatten(1).sum(dim=1) * SAFE
    largest = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0)
    slack = 64 * sum(matrices.shape[1:]) * EPSILON * trace
    return torch.minimum(torch.sqrt(largest + slack), torch.sqrt(trace)) * SAFE + FLOOR


def _maximum(operation: Function, read: Region, radii: Tensor) -> tuple[Region, Pattern]:
    """Take the entry that is largest from below; the others may exceed it by a gap at most."""
    pool = _Pool.of(operation, read)
    low, high = pool.members(read.low, -torch.inf), pool.members(read.high, -torch.inf)
    centre, rest = pool.take(read.centre), pool.take(read.rest)
    reach = spread_over(radii, low)
    ahead = pool.members(read.centre) - centre[..., None] + reach * pool.apart(read.slope)
    ahead = ahead + pool.members(read.rest) + rest[..., None]
    size = centre.abs() + reach[..., 0] * pool.lengths(read.slope)
    ahead = higher(ahead + 1e-12 * size[..., None])
    ahead = torch.minimum(ahead, higher(high - pool.take(read.low)[..., None]))
    rival = pool.others & (ahead > 0)
    gap = torch.where(rival, ahead, 0.0).amax(dim=-1) * SAFE
    away = torch.where(rival, pool.apart(read.jacobian), 0.0).amax(dim=-1) * SAFE
    rows = torch.where(rival | pool.leader, pool.members(read.spreads), 0.0).amax(dim=-1)
    wrong = torch.where(gap > 0, 8 * EPSILON * (centre.abs() + gap), 0.0)
    spread = read.spread * operation.norm.value + _length(away)
    region = Region(
        pool.shaped(centre + gap / 2), pool.shaped(pool.take(read.slope)),
        pool.shaped(rest + gap / 2 * SAFE + wrong), pool.shaped(low.amax(dim=-1)),
        pool.shaped(high.amax(dim=-1)), pool.shaped(pool.take(read.jacobian)), spread * SAFE,
        pool.shaped((rows + away) * SAFE),
    )  # fmt: skip
    return _tightened(region, radii), Races(pool.windows, pool.chosen, rival)


@dataclass(frozen=True)
class _Pool:
    """The windows of a maximum: what each reads, and the member that leads from below.

    Attributes:
        windows: [outputs, members], places in the flattened map, -1 where a window has fewer.
        chosen: [n, channels, outputs], the leading member.
        leader, others: [n, channels, outputs, members] bool.
        sides: of the output's map.
    """

    windows: Tensor
    chosen: Tensor
    leader: Tensor
    others: Tensor
    sides: tuple[int, ...]

    @classmethod
    def of(cls, operation: Function, read: Region) -> _Pool:
        windows = _windows(operation, read.low)
        flat = read.low.flatten(2)[..., windows.clamp_min(0)]
        chosen = torch.where(windows >= 0, flat, -torch.inf).argmax(dim=-1)
        leader = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, chosen[..., None], True)
        sides = tuple(operation.run(read.low).shape[2:])
        return cls(windows, chosen, leader, ~leader & (windows >= 0), sides)

    def members(self, values: Tensor, missing: float = 0.0) -> Tensor:
        """[n, (directions,) channels, *map] -> [..., outputs, members]."""
        lead = values.ndim - len(self.sides)
        found = values.flatten(lead)[..., self.windows.clamp_min(0)]
        return torch.where(self.windows >= 0, found, missing)

    def take(self, values: Tensor) -> Tensor:
        """The leading member of each window: [..., outputs]."""
        members = self.members(values)
        chosen = self.chosen if members.ndim == 4 else self.chosen[:, None]
        index = chosen[..., None].expand(*members.shape[:-1], 1)
        return torch.gather(members, -1, index)[..., 0]

    def apart(self, matrix: Tensor) -> Tensor:
        """How far each member's row lies from the leader's: [n, channels, outputs, members]."""
        return row_lengths(self.members(matrix) - self.take(matrix)[..., None])

    def lengths(self, matrix: Tensor) -> Tensor:
        """Largest length of a row read by each window: [n, channels, outputs]."""
        return row_lengths(self.members(matrix)).amax(dim=-1)

    def shaped(self, values: Tensor) -> Tensor:
        """Give the outputs their map back."""
        return values.reshape(*values.shape[:-1], *self.sides)


def _windows(operation: Function, like: Tensor) -> Tensor:
    """List the entries of each window by pooling unit vectors: [outputs, members]."""
    sides = like.shape[2:]
    size = sides.numel()
    inside = operation.run(torch.eye(size, dtype=like.dtype).reshape(size, 1, *sides)) > 0
    member = inside.flatten(1).T  # [outputs, size]
    most = int(member.sum(dim=1).max())
    order = member.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(torch.gather(member, 1, order), order, -1)


Rule = Callable[[Function, Region, Tensor], tuple[Region, Pattern]]
RULES: dict[str, Rule] = {"relu": _relu, "max_pool": _maximum, "adaptive_max_pool": _maximum}
