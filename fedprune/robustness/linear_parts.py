"""The linear part of an operation, its absolute value, and how far float64 takes either astray.

Analyses that look into a network (`blocks`, `local`) push many columns through its linear
operations. For T x computed in float64, with T the stored weights after folding,

    |computed - exact| <= rounding * |T| |x|    entry by entry,

where `rounding` counts the terms of an inner product and the few roundings of a folded weight.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.robustness.affine import Convolution, Dense
from fedprune.robustness.operations import (
    FOLD_STEPS,
    Concatenation,
    Diagonal,
    Function,
    Operation,
    Sum,
)
from fedprune.robustness.rounding import gamma

COPIES = frozenset({"permute", "transpose", "pad"})
"""Functions that move, drop or repeat entries, besides those that say so themselves."""

AVERAGES = frozenset({"avg_pool", "adaptive_avg_pool", "mean", "sum"})
"""Linear functions whose coefficients all have one sign."""

SCALINGS = frozenset({"mul", "div"})
"""Products with constants, entry by entry."""

SIGNED = frozenset({"neg"})
"""Linear functions that change signs only."""

MEAN_TERMS = 1 << 20
"""Terms allowed for in an average, whose length an operation does not tell."""


def is_linear(operation: Operation) -> bool:
    """Say whether an operation is affine and its linear part is known here."""
    if isinstance(operation, Convolution):
        return operation.geometry.padding_mode == "zeros"
    if isinstance(operation, (Dense, Diagonal, Sum, Concatenation)):
        return True
    if isinstance(operation, Function):
        moves = operation.keeps_entries or operation.moves_entries
        return moves or operation.name in COPIES | AVERAGES | SCALINGS | SIGNED
    return False


def apply_linear(operation: Operation, *columns: Tensor) -> Tensor:
    """Apply the linear part to [n, ...]; constants that the operation adds are left out."""
    if isinstance(operation, (Convolution, Dense)):
        return replace(operation, bias=torch.zeros_like(operation.bias)).run(*columns)
    if isinstance(operation, Diagonal):
        return replace(operation, shift=torch.zeros_like(operation.shift)).run(*columns)
    if isinstance(operation, Sum):
        return replace(operation, constant=None).run(*columns)
    if isinstance(operation, Function) and operation.name == "pad":
        # what is padded with a constant other than zero is not part of the linear map
        return operation.run(*columns) - operation.run(torch.zeros_like(columns[0]))
    return operation.run(*columns)


def apply_absolute(operation: Operation, *columns: Tensor) -> Tensor:
    """Apply the linear part with every coefficient replaced by its absolute value.

    Args:
        operation: affine.
        columns: [n, ...] each, not negative.
    """
    if isinstance(operation, (Convolution, Dense)):
        positive: Operation = replace(operation, weight=operation.weight.abs())
        return apply_linear(positive, *columns)
    if isinstance(operation, Diagonal):
        return apply_linear(replace(operation, scale=operation.scale.abs()), *columns)
    if isinstance(operation, Sum):
        weights = [abs(weight) for weight in operation.weights]
        return apply_linear(replace(operation, weights=weights), *columns)
    if isinstance(operation, Function) and operation.name in SIGNED:
        return columns[0]
    if isinstance(operation, Function) and operation.name in AVERAGES | SCALINGS:
        return apply_linear(operation, *columns).abs()
    return apply_linear(operation, *columns)


def offset_size(operation: Operation, output: Tensor) -> Tensor | float:
    """Bound the terms that make up the constant an operation adds, to broadcast with its output.

    Args:
        operation: affine.
        output: [n, ...], what it gave.
    """
    if isinstance(operation, Dense):
        return operation.magnitude
    if isinstance(operation, (Convolution, Diagonal)):
        return operation.magnitude.reshape(-1, *[1] * (output.ndim - 2))
    if isinstance(operation, Sum) and operation.constant is not None:
        return operation.constant.abs()
    return 0.0


def rounding(operation: Operation) -> float:
    """Relative error, entry by entry, of one application with respect to |T| |x|.

    Folding's roundings count towards the weights, so that they are covered as well.
    """
    if isinstance(operation, (Convolution, Dense)):
        return gamma(math.prod(operation.weight.shape[1:]) + 4 * FOLD_STEPS)
    if isinstance(operation, Diagonal):
        return gamma(4 * FOLD_STEPS)
    if isinstance(operation, Sum):
        return gamma(2 * len(operation.weights) + 4)
    if isinstance(operation, Function) and operation.name in AVERAGES:
        return gamma(MEAN_TERMS)
    if isinstance(operation, Function) and operation.name in SCALINGS | {"pad"}:
        return gamma(4)
    return 0.0
