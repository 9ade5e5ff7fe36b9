"""Blocks of a lowered network that are bounded as a whole, not operation by operation.

A block lies between two nodes where every path from the network's input to the later one goes
through the earlier one. The product of norms loses most where maps follow each other and where a
branch meets its shortcut; a block whose operations are linear maps and activations with slopes in
[0, c] is bounded by LipSDP instead, with linear maps that follow each other multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedprune.robustness.affine import Affine
from fedprune.robustness.dense_sdp import DEFAULT_WORK, slope_bound
from fedprune.robustness.forms import slope_system
from fedprune.robustness.linear_parts import is_linear
from fedprune.robustness.network import Network
from fedprune.robustness.operations import Function, Operation, Sum
from fedprune.robustness.spectral import Norm

MAX_VARIABLES = 2600
"""Entries of the input and of all activations of a block that is looked into."""

MAX_COLUMN_ENTRIES = 8_000_000
"""Entries of one node's linear form that are held."""

MONOTONE = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "tanh", "sigmoid", "softsign", "hardsigmoid", "selu"}
)
"""Activations whose slopes lie between 0 and their operation's norm."""


@dataclass(frozen=True)
class Block:
    """The part of a network between two nodes: `part` reads `start` and gives `end`."""

    start: str
    end: str
    part: Network


def dominators(network: Network) -> dict[str, str]:
    """Map each node to the last node through which every path to it goes: its dominator."""
    depth = {network.input: 0}
    above: dict[str, str] = {}
    for name, step in network.steps.items():
        common = step.inputs[0]
        for other in step.inputs[1:]:
            while common != other:
                if depth[common] >= depth[other]:
                    common = above[common]
                else:
                    other = above[other]
        above[name], depth[name] = common, depth[common] + 1
    return above


def block_between(network: Network, start: str, end: str) -> Block:
    """Cut out what lies between a node and one of its dominators."""
    shape = network.input_shape if start == network.input else network.steps[start].shape
    needed, steps = {end}, {}
    for name, step in reversed(list(network.steps.items())):
        if name in needed and name != start:
            needed.update(step.inputs)
            steps[name] = step
    ordered = dict(reversed(list(steps.items())))
    return Block(start, end, Network(start, shape, ordered, end))


def worthwhile_blocks(network: Network, ends: Iterable[str]) -> list[Block]:
    """Choose blocks by walking from each end towards the input, as far as one can be looked into.

    A block is worth a look if it joins at least two maps or branches.
    """
    above = dominators(network)
    found: dict[str, Block] = {}
    for end in ends:
        node = end
        while node != network.input and node not in found:
            block = _longest(network, above, node)
            if block is None:
                node = above[node]
                continue
            found[node] = block
            node = block.start
    return list(found.values())


def _longest(network: Network, above: Mapping[str, str], end: str) -> Block | None:
    best, start = None, end
    while start != network.input:
        start = above[start]
        block = block_between(network, start, end)
        if not _fits(block):
            break
        if _joins(block):
            best = block
    return best


def _fits(block: Block) -> bool:
    variables = columns = math.prod(block.part.input_shape)
    entries = columns
    for step in block.part.steps.values():
        size = math.prod(step.shape)
        entries = max(entries, size)
        if is_activation(step.operation):
            variables += size
        elif not is_linear(step.operation):
            return False
    return variables <= MAX_VARIABLES and variables * entries <= MAX_COLUMN_ENTRIES


def _joins(block: Block) -> bool:
    operations = [step.operation for step in block.part.steps.values()]
    maps = sum(isinstance(operation, Affine) for operation in operations)
    return maps >= 2 or (maps >= 1 and any(isinstance(one, Sum) for one in operations))


def is_activation(operation: Operation) -> bool:
    """Say whether an operation acts entry by entry with slopes between 0 and its norm."""
    if not isinstance(operation, Function):
        return False
    parameters: dict[str, Any] = getattr(operation.function, "keywords", {})
    if operation.name == "leaky_relu":
        return bool(parameters.get("negative_slope", 0.01) >= 0)
    if operation.name == "elu":
        return bool(parameters.get("alpha", 1.0) >= 0)
    return operation.name in MONOTONE


def block_norm(block: Block, *, work: float = DEFAULT_WORK) -> Norm:
    """Bound a block's Lipschitz constant by LipSDP, or as one matrix if it has no activation."""
    return slope_bound(slope_system(block.part), work=work)
