"""How bounds of parts become a bound of the network: every valid way, the least wins.

By products: norms multiply along a path, add where branches meet in an addition, and their squares
add where they are concatenated. By blocks: wherever a part of the network can be looked into
(`blocks`), its own bound replaces the product over its operations if it is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedprune.robustness.blocks import block_norm, worthwhile_blocks
from fedprune.robustness.network import Network
from fedprune.robustness.rounding import product_up

PRODUCT = "product of layer norms, branches added"
BLOCKS = "blocks bounded as a whole, product of the rest"


@dataclass(frozen=True)
class BlockNorm:
    """One block bounded as a whole.

    Attributes:
        start: the node that it reads.
        end: the node that it gives.
        norm: certified bound of its Lipschitz constant.
        product: what the product of layer norms says.
        method: how `norm` was found.
    """

    start: str
    end: str
    norm: float
    product: float
    method: str


@dataclass(frozen=True)
class Composition:
    """A bound for every node in two ways; `bounds` has the smaller one of each node."""

    products: Mapping[str, float]
    bounds: Mapping[str, float]
    blocks: tuple[BlockNorm, ...]

    def method(self, node: str) -> str:
        """Name the way that gave a node's bound."""
        return BLOCKS if self.bounds[node] < self.products[node] else PRODUCT


def compose(
    network: Network, input_bound: float, ends: Sequence[str], *, tighten: bool = True
) -> Composition:
    """Bound every node of a network.

    Args:
        network: lowered, with the input's scaling folded in.
        input_bound: bound of the input node itself.
        ends: nodes whose bounds are wanted as small as possible.
        tighten: False leaves it at products.
    """
    products = network.bounds(input_bound)
    if not tighten:
        return Composition(products, products, ())
    blocks = _block_norms(network, ends)
    by_end: dict[str, list[BlockNorm]] = {}
    for block in blocks:
        by_end.setdefault(block.end, []).append(block)
    bounds = {network.input: input_bound}
    for name, step in network.steps.items():
        stacked = np.array([bounds[source] for source in step.inputs])
        ways = [float(step.operation.compose(stacked))]
        ways += [product_up(bounds[one.start], one.norm) for one in by_end.get(name, ())]
        bounds[name] = min(ways)
    return Composition(products, bounds, blocks)


def _block_norms(network: Network, ends: Sequence[str]) -> tuple[BlockNorm, ...]:
    found = []
    for block in worthwhile_blocks(network, ends):
        norm = block_norm(block)
        product = block.part.bounds()[block.end]
        found.append(BlockNorm(block.start, block.end, norm.value, product, norm.method))
    return tuple(block for block in found if math.isfinite(block.norm))
