"""Blocks of a lowered network that are bounded as a whole, not operation by operation.

A block lies between two nodes where every path from the network's input to the later one goes
through the earlier one. The product of norms loses most where maps follow each other and where a
branch meets its shortcut; a block whose operations are linear maps and activations with slopes in
[0, c] is bounded by LipSDP instead, with linear maps that follow each other multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.robustness.dense_sdp import DEFAULT_WORK, SlopeSystem, slope_bound
from fedprune.robustness.linear_parts import apply_absolute, apply_linear, is_linear, rounding
from fedprune.robustness.network import Network, Step
from fedprune.robustness.operations import Affine, Function, Operation, Sum
from fedprune.robustness.rounding import EPSILON, Floats
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


def worthwhile_blocks(network: Network, ends: Iterator[str] | list[str]) -> list[Block]:
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


@dataclass(frozen=True)
class _Form:
    """A node's linear dependence on one group of variables: [columns, *shape], and its error."""

    value: Tensor
    error: Tensor


_Forms = dict[int, _Form]  # group 0 is the block's input, the others are activations in order


def slope_system(part: Network) -> SlopeSystem:
    """Write a network of linear operations and activations as a `SlopeSystem`.

    Activations with slopes in [0, c] are rescaled to [0, 1], which multiplies what reads them.
    """
    forms: dict[str, _Forms] = {part.input: {0: _identity(part.input_shape, 1.0)}}
    sizes, rows = [math.prod(part.input_shape)], []
    for name, step in part.steps.items():
        read = [forms[source] for source in step.inputs]
        if is_activation(step.operation):
            rows.append(read[0])
            forms[name] = {len(sizes): _identity(step.shape, step.operation.norm.value)}
            sizes.append(math.prod(step.shape))
        else:
            forms[name] = _pushed(step, read)
    inner = [_matrix(form, sizes) for form in rows]
    outer, outer_error = _matrix(forms[part.output], sizes)
    width = sum(sizes)
    none = np.zeros((0, width))
    return SlopeSystem(
        np.concatenate([none, *(value for value, _ in inner)]),
        np.concatenate([none, *(error for _, error in inner)]),
        outer,
        outer_error,
        tuple(sizes[1:]),
    )


def _identity(shape: tuple[int, ...], factor: float) -> _Form:
    size = math.prod(shape)
    value = factor * torch.eye(size, dtype=torch.float64).reshape(size, *shape[1:])
    return _Form(value, torch.zeros_like(value))


def _pushed(step: Step, read: list[_Forms]) -> _Forms:
    """Push the columns of every group through a linear operation, with their errors."""
    operation, relative = step.operation, rounding(step.operation)
    result: _Forms = {}
    for group in sorted({group for forms in read for group in forms}):
        known = next(forms[group] for forms in read if group in forms)
        count = len(known.value)
        parts = [
            forms.get(group) or _nothing(count, shape)
            for forms, shape in zip(read, _shapes(read), strict=True)
        ]
        values, errors = [part.value for part in parts], [part.error for part in parts]
        value = apply_linear(operation, *values)
        size = apply_absolute(operation, *(one.abs() for one in values))
        carried = apply_absolute(operation, *errors)
        result[group] = _Form(value, (carried + relative * size) * (1 + 1e-9))
    return result


def _nothing(count: int, shape: tuple[int, ...]) -> _Form:
    zeros = torch.zeros(count, *shape, dtype=torch.float64)
    return _Form(zeros, zeros)


def _shapes(read: list[_Forms]) -> list[tuple[int, ...]]:
    return [tuple(next(iter(forms.values())).value.shape[1:]) for forms in read]


def _matrix(forms: _Forms, sizes: list[int]) -> tuple[Floats, Floats]:
    """Lay a node's form out as [entries, all variables]; later groups stay zero."""
    entries = next(iter(forms.values())).value[0].numel()
    starts = np.cumsum([0, *sizes])
    value, error = np.zeros((entries, starts[-1])), np.zeros((entries, starts[-1]))
    for group, form in forms.items():
        place = slice(starts[group], starts[group + 1])
        value[:, place] = form.value.flatten(1).numpy().T
        error[:, place] = form.error.flatten(1).numpy().T + 4 * EPSILON * np.abs(value[:, place])
    return value, error

