"""A Lipschitz constant from both sides: what provably holds and what was actually found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness.composition import PRODUCT, BlockNorm, Composition, compose
from fedprune.robustness.lower import lower_bound
from fedprune.robustness.network import Network, Std, input_scale
from fedprune.robustness.tracer import lower


class OpNorm(NamedTuple):
    """One operation's certified norm: node, operation, norm and the method that gave it."""

    node: str
    op: str
    norm: float
    method: str


class NamedBound(NamedTuple):
    """An upper bound and the way it was found."""

    method: str
    upper: float


@dataclass(frozen=True)
class LipschitzBound:
    """The l2 Lipschitz constant of a network from input to output, enclosed.

    Attributes:
        upper: the constant of the network as a function over the real numbers, with its weights
            as they are stored, is provably at most this float.
        lower: the largest Jacobian norm found; no proof is needed for its use, only to see how
            loose `upper` may be.
        per_op: the certified norm of every operation, batch norm folded, in order.
        method: how the operations were put together to give `upper`.
        alternatives: every valid upper bound with its name; `upper` is the least of them.
        blocks: parts that were bounded as a whole, beside the product over their operations.
    """

    upper: float
    lower: float
    per_op: tuple[OpNorm, ...]
    method: str = PRODUCT
    alternatives: tuple[NamedBound, ...] = ()
    blocks: tuple[BlockNorm, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times the upper bound exceeds what was found: upper / lower."""
        return self.upper / self.lower if self.lower > 0 else math.inf


@dataclass(frozen=True)
class BoundedNetwork:
    """A lowered network with a bound for every node, relative to pixels if a std was given.

    Attributes:
        network: as the model computes it; used to evaluate.
        composition: Lipschitz bound of each node with respect to the (unnormalised) input.
        per_op: the norms behind them.
    """

    network: Network
    composition: Composition
    per_op: tuple[OpNorm, ...]

    @property
    def bounds(self) -> Mapping[str, float]:
        """The least bound of each node."""
        return self.composition.bounds


def lipschitz(
    model: nn.Module,
    example_input: Tensor,
    *,
    input_std: Std | None = None,
    lower_inputs: Tensor | None = None,
    samples: int = 8,
    iterations: int = 12,
    seed: int = 0,
    tighten: bool = True,
) -> LipschitzBound:
    """Bound the l2 Lipschitz constant of a network in eval mode.

    The upper bound multiplies certified norms of the operations along the graph, adds branches
    that meet in an addition and takes the root of the sum of squares where they are concatenated.
    Dense parts and residual blocks that are small enough are bounded as a whole by LipSDP where
    that is less (see `composition`).
    The lower bound is the largest singular value of the Jacobian found by power iteration with
    Jacobian-vector products at sampled points, and at `lower_inputs`.

    Args:
        model: eval mode, finite weights, operations with a rule; it is not changed.
        example_input: [1, ...]; gives the shape, and its values are the centre of the samples.
        input_std: [channels] of the normalisation (x - mean) / std in front of the model; with it
            both bounds are per unit of the unnormalised input.
        lower_inputs: [n, ...] further points for the lower bound, such as real examples.
        samples: random points for the lower bound; 0 skips them.
        iterations: power iterations at each point.
        seed: of the random points.
        tighten: False keeps to products of norms.

    Raises:
        RobustnessError: train mode, hooks, weights that are not finite, no traceable graph, or,
            for the lower bound, a model that torch cannot differentiate (it is left out with
            `samples=0`).
        UnsupportedOpError: an operation without a rigorous rule, named with its node.
    """
    bounded = bound_network(model, example_input, input_std=input_std, tighten=tighten)
    found = lower_bound(
        model,
        bounded.network,
        example_input,
        lower_inputs,
        input_scale(input_std, tuple(example_input.shape)),
        samples=samples,
        iterations=iterations,
        seed=seed,
    )
    output, composition = bounded.network.output, bounded.composition
    ways = {PRODUCT: composition.products[output]}
    ways[composition.method(output)] = composition.bounds[output]
    return LipschitzBound(
        composition.bounds[output],
        found,
        bounded.per_op,
        composition.method(output),
        tuple(NamedBound(method, upper) for method, upper in ways.items()),
        composition.blocks,
    )


def bound_network(
    model: nn.Module,
    example_input: Tensor,
    *,
    input_std: Std | None = None,
    keep_head: bool = False,
    tighten: bool = True,
) -> BoundedNetwork:
    """Lower a model and bound every node; see `lipschitz` for arguments and errors.

    With `keep_head` the input's scaling is never folded into the linear head, so that the bound of
    the head's input goes with the head's own rows; it is then this bound that is made small.
    """
    network = lower(model, example_input)
    scale = input_scale(input_std, network.input_shape)
    scaled, input_bound = network, 1.0
    if scale is not None:
        scaled, input_bound = network.scale_input(scale, network.head if keep_head else None)
    head = network.head if keep_head else None
    end = network.output if head is None else network.steps[head].inputs[0]
    composition = compose(scaled, input_bound, [end], tighten=tighten)
    if not math.isfinite(composition.bounds[network.output]):
        raise RobustnessError("the Lipschitz bound is not finite: the weights are too large")
    norms = [
        OpNorm(name, step.operation.kind, step.operation.norm.value, step.operation.norm.method)
        for name, step in scaled.steps.items()
    ]
    if input_bound != 1.0:
        norms.insert(0, OpNorm(network.input, "input scaling", input_bound, "largest 1 / std"))
    return BoundedNetwork(network, composition, tuple(norms))
