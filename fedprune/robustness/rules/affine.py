"""Convolutions and their transposes, linear maps and batch norm in eval mode."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.robustness.affine import Convolution, Dense
from fedprune.robustness.geometry import Axis, Geometry
from fedprune.robustness.operations import Diagonal, Operation
from fedprune.robustness.rules._registry import REQUIRED, Call, Value, exact, register
from fedprune.robustness.transposed import TransposedConvolution


def convolution(call: Call) -> Operation:
    """Lower conv1d, conv2d or conv3d with any stride, padding, dilation, groups and mode."""
    given = call.attributes(weight=REQUIRED, bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight, value = given["weight"], given["input"]
    _check_constant(call, value, weight, given["bias"])
    spatial = weight.ndim - 2
    if len(value.shape) != spatial + 2:
        call.refuse(f"its input has shape {value.shape}, without a batch axis")
    stride, dilation = _spread(given["stride"], spatial), _spread(given["dilation"], spatial)
    kernel = tuple(weight.shape[2:])
    padding = _padding(given["padding"], kernel, dilation)
    axes = tuple(
        Axis(n, k, s, d, low, high)
        for n, k, s, d, (low, high) in zip(
            value.shape[2:], kernel, stride, dilation, padding, strict=True
        )
    )
    mode = getattr(call.module, "padding_mode", "zeros")
    bias = _bias(given["bias"], weight.shape[0])
    geometry = Geometry(axes, int(given["groups"]), mode)
    return Convolution(exact(weight), bias, bias.abs(), geometry)


def linear(call: Call) -> Operation:
    """Lower a linear map on the last axis."""
    given = call.attributes(weight=REQUIRED, bias=None)
    weight, value = given["weight"], given["input"]
    _check_constant(call, value, weight, given["bias"])
    if weight.ndim != 2 or len(value.shape) < 2:
        call.refuse(f"its input has shape {value.shape}, without a batch axis")
    bias = _bias(given["bias"], weight.shape[0])
    return Dense(exact(weight), bias, bias.abs(), math.prod(value.shape[1:-1]))


def transposed_convolution(call: Call) -> Operation:
    """Lower a transposed convolution as the adjoint of the convolution that it is."""
    given = call.attributes(
        weight=REQUIRED, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    weight, value = given["weight"], given["input"]
    _check_constant(call, value, weight, given["bias"])
    spatial = weight.ndim - 2
    if len(value.shape) != spatial + 2:
        call.refuse(f"its input has shape {value.shape}, without a batch axis")
    kernel = tuple(weight.shape[2:])
    stride, dilation = _spread(given["stride"], spatial), _spread(given["dilation"], spatial)
    padding = _spread(given["padding"], spatial)
    extra = _spread(given["output_padding"], spatial)
    axes = tuple(
        Axis((n - 1) * s - 2 * p + d * (k - 1) + e + 1, k, s, d, p, p)
        for n, k, s, d, p, e in zip(
            value.shape[2:], kernel, stride, dilation, padding, extra, strict=True
        )
    )
    groups = int(given["groups"])
    bias = _bias(given["bias"], weight.shape[1] * groups)
    return TransposedConvolution(exact(weight), bias, bias.abs(), Geometry(axes, groups), extra)


def multiply_matrix(call: Call) -> Operation:
    """Lower x @ W with a constant matrix W [in, out]: a linear map on the last axis."""
    given = call.bind(input=REQUIRED, other=REQUIRED)
    value, matrix = given["input"], given["other"]
    if not isinstance(value, Value) or not isinstance(matrix, Tensor) or matrix.ndim != 2:
        call.refuse("only a constant matrix on the right has a rule")
    bias = _bias(None, matrix.shape[1])
    return Dense(exact(matrix.T), bias, bias, math.prod(value.shape[1:-1]))


def batch_norm_module(call: Call) -> Operation:
    """Lower a batch-norm module in eval mode."""
    module: Any = call.module
    return batch_norm(
        call, call.value, module.running_mean, module.running_var, module.weight, module.bias,
        module.eps,
    )  # fmt: skip


def batch_norm_function(call: Call) -> Operation:
    """Lower torch.nn.functional.batch_norm with training=False."""
    given = call.bind(
        input=REQUIRED, running_mean=REQUIRED, running_var=REQUIRED, weight=None, bias=None,
        training=False, momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if given["training"]:
        call.refuse("it normalises by the batch (training=True)")
    return batch_norm(
        call, given["input"], given["running_mean"], given["running_var"], given["weight"],
        given["bias"], given["eps"],
    )  # fmt: skip


def batch_norm(
    call: Call,
    value: Value,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Operation:
    """Lower a normalisation by running statistics: scale and shift of each channel."""
    if mean is None or variance is None:
        call.refuse("it normalises by the batch (no running statistics)")
    spread = exact(variance) + eps
    if not bool((spread > 0).all()):
        call.refuse("its running variance plus eps is not positive")
    scale = spread.rsqrt() if weight is None else exact(weight) / spread.sqrt()
    offset = torch.zeros_like(scale) if bias is None else exact(bias)
    centre = exact(mean)
    return Diagonal(
        "batch_norm",
        scale,
        offset - centre * scale,
        offset.abs() + (centre * scale).abs(),
        math.prod(value.shape[1:]),
    )


def _check_constant(call: Call, value: Any, *weights: Any) -> None:
    if not isinstance(value, Value) or not all(w is None or isinstance(w, Tensor) for w in weights):
        call.refuse("its weights must be constants and its input must depend on the network's")


def _bias(bias: Tensor | None, outputs: int) -> Tensor:
    return torch.zeros(outputs, dtype=torch.float64) if bias is None else exact(bias)


def _spread(value: int | tuple[int, ...], spatial: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * spatial if len(values) == 1 else values


def _padding(
    padding: str | int | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if isinstance(padding, str):  # "same": the odd one goes behind, as torch does it
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(side, side) for side in _spread(padding, len(kernel))]


register(
    convolution,
    modules=(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    functions=(
        torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d,
    ),
)  # fmt: skip
register(
    transposed_convolution,
    modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    functions=(
        torch.nn.functional.conv_transpose1d, torch.nn.functional.conv_transpose2d,
        torch.nn.functional.conv_transpose3d,
    ),
)  # fmt: skip
register(multiply_matrix, functions=(operator.matmul, torch.matmul), methods=("matmul",))
register(linear, modules=(nn.Linear,), functions=(torch.nn.functional.linear,))
register(batch_norm_module, modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
register(batch_norm_function, functions=(torch.nn.functional.batch_norm,))
