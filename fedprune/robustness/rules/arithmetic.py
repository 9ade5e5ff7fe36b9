"""Sums, differences, constant factors, extrema, concatenations and stacks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedprune.robustness.branches import Extremum, Stack
from fedprune.robustness.operations import (
    Concatenation,
    Function,
    Operation,
    Rounding,
    Sum,
)
from fedprune.robustness.rounding import EPSILON, up
from fedprune.robustness.rules._registry import REQUIRED, Call, Value, exact, register
from fedprune.robustness.spectral import Norm


def add(call: Call) -> Operation:
    """Lower left + alpha * right; either side may be a constant."""
    given = call.bind(input=REQUIRED, other=REQUIRED, alpha=1)
    return _combine(call, given["input"], given["other"], 1.0, given["alpha"])


def subtract(call: Call) -> Operation:
    """Lower left - alpha * right; either side may be a constant."""
    given = call.bind(input=REQUIRED, other=REQUIRED, alpha=1)
    return _combine(call, given["input"], given["other"], 1.0, -given["alpha"])


def multiply(call: Call) -> Operation:
    """Lower a product with a constant number or tensor."""
    given = call.bind(input=REQUIRED, other=REQUIRED)
    left, right = given["input"], given["other"]
    value, factor = (left, right) if isinstance(left, Value) else (right, left)
    constant = _constant(call, factor)
    call.keep_shape(value, constant)
    return _scaling("mul", constant, lambda x: x * constant)


def divide(call: Call) -> Operation:
    """Lower a quotient by a constant number or tensor without zeros."""
    given = call.bind(input=REQUIRED, other=REQUIRED)
    if not isinstance(given["input"], Value):
        call.refuse("the divisor depends on the input")
    constant = _constant(call, given["other"])
    call.keep_shape(given["input"], constant)
    if not bool((constant != 0).all()):
        call.refuse("the divisor has zeros")
    return _scaling("div", 1 / constant, lambda x: x / constant)


def negate(call: Call) -> Operation:
    """Lower -x."""
    assert isinstance(call.value, Value)
    return Function("neg", torch.neg, Norm(1.0, "exact"))


def concatenate(call: Call) -> Operation:
    """Lower a concatenation of tensors that all depend on the input."""
    given = call.bind(tensors=REQUIRED, dim=0)
    tensors, dim = list(given["tensors"]), given["dim"]
    if not all(isinstance(tensor, Value) for tensor in tensors):
        call.refuse("one of the parts is a constant")
    axis = dim % len(tensors[0].shape)
    if axis == 0:
        call.refuse("it joins examples of the batch (dim=0)")
    return Concatenation(axis)


def stack(call: Call) -> Operation:
    """Lower a stack of tensors that all depend on the input."""
    given = call.bind(tensors=REQUIRED, dim=0)
    tensors = list(given["tensors"])
    if not all(isinstance(tensor, Value) for tensor in tensors):
        call.refuse("one of the parts is a constant")
    axis = given["dim"] % (len(tensors[0].shape) + 1)
    if axis == 0:
        call.refuse("it stacks before the batch (dim=0)")
    return Stack(axis)


def extremum(function: Callable[..., Tensor], call: Call) -> Operation:
    """Lower the entrywise maximum or minimum of two tensors, or of one and a constant."""
    given = call.bind(input=REQUIRED, other=REQUIRED)
    left, right = given["input"], given["other"]
    if isinstance(left, Value) and isinstance(right, Value):
        if left.shape != right.shape:
            call.refuse(f"it broadcasts {left.shape} with {right.shape}")
        return Extremum(function)
    value, other = (left, right) if isinstance(left, Value) else (right, left)
    constant = _constant(call, other)
    call.keep_shape(value, constant)
    return Function(
        function.__name__, partial(function, other=constant), Norm(1.0, "largest slope")
    )


def _combine(call: Call, left: Any, right: Any, first: float, second: float) -> Operation:
    if isinstance(left, Value) and isinstance(right, Value):
        if left.shape != right.shape:
            call.refuse(f"it broadcasts {left.shape} with {right.shape}")
        return Sum((first, float(second)))
    value, weight = (left, first) if isinstance(left, Value) else (right, float(second))
    other, factor = (right, float(second)) if isinstance(left, Value) else (left, first)
    constant = _constant(call, other) * factor
    call.keep_shape(value, constant)
    return Sum((weight,), constant.expand(1, *value.shape[1:]).clone())


def _constant(call: Call, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return exact(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return torch.tensor(float(value), dtype=torch.float64)
    return call.refuse("only one side may depend on the input, and the other must be a number")


def _scaling(name: str, factor: Tensor, function: Any) -> Operation:
    largest = up(float(factor.abs().max()) * (1 + 4 * EPSILON))
    return Function(name, function, Norm(largest, "largest factor"), Rounding(0.0, 2 * EPSILON))


register(add, functions=(operator.add, operator.iadd, torch.add), methods=("add", "add_"))
register(
    subtract,
    functions=(operator.sub, operator.isub, torch.sub, torch.subtract),
    methods=("sub", "sub_", "subtract"),
)
register(
    multiply,
    functions=(operator.mul, operator.imul, torch.mul, torch.multiply),
    methods=("mul", "mul_", "multiply"),
)
register(
    divide,
    functions=(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
    methods=("div", "div_", "divide"),
)
register(negate, functions=(operator.neg, torch.neg, torch.negative), methods=("neg", "negative"))
register(stack, functions=(torch.stack,))
for _function in (torch.maximum, torch.minimum):
    register(partial(extremum, _function), functions=(_function,), methods=(_function.__name__,))
register(concatenate, functions=(torch.cat, torch.concat, torch.concatenate))
