"""Layer, group, instance and root-mean-square norms, and softmax: bounded where that is rigorous.

A layer norm takes u = x - mean(x) over a group of n entries to g(u) = u / s, s^2 = |u|^2 / n + e.
Its Jacobian by u, (I - u u^T / (n s^2)) / s, is symmetric with the eigenvalues 1 / s and, along u,
e / s^3 <= 1 / s; taking off the mean is a projection. Hence the l2 Lipschitz constant is at most
1 / sqrt(e), and no smaller: it is reached where all entries are equal. With factors a the bound is
max|a| / sqrt(e); groups do not meet, so it holds for all together. The root-mean-square norm is
the same without the projection. The bound is honest and large (316 at e = 1e-5).

Evaluated in two passes, u is off by gamma_(n+8) |x|, which g stretches by 1 / sqrt(e); g itself is
computed to a relative gamma_(n+8) in every entry.

Softmax has the Jacobian diag(p) - p p^T, whose row sums of absolute values 2 p_i (1 - p_i) are at
most 1/2 (Gershgorin). That of log-softmax is I - 1 p^T; its norm is convex in p, so it is largest
where p is a unit vector, and there its square is the largest eigenvalue of I + 1 1^T on n - 1
entries: the norm is sqrt(n). Attention multiplies two tensors that both depend on the input, which
has no global Lipschitz constant, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.robustness.operations import Function, Operation, Rounding
from fedprune.robustness.rounding import down, gamma, norm_up, product_up, quotient_up, sqrt_up, up
from fedprune.robustness.rules._registry import REQUIRED, Call, Value, exact, register
from fedprune.robustness.rules.affine import batch_norm
from fedprune.robustness.spectral import Norm


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Normalise groups of entries and scale: x [n, ...] -> [n, ...].

    `group` is the shape [groups, entries] of one example; `scale` and `shift` broadcast.
    """

    group: tuple[int, int]
    scale: Tensor
    shift: Tensor
    eps: float
    centred: bool = True

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute in two passes, mean first."""
        entries = inputs.reshape(len(inputs), *self.group)
        if self.centred:
            entries = entries - entries.mean(dim=2, keepdim=True)
        spread = (entries.square().mean(dim=2, keepdim=True) + self.eps).sqrt()
        return (entries / spread).reshape(inputs.shape) * self.scale + self.shift


def _normalised(call: Call, name: str, normaliser: Normaliser) -> Operation:
    if not normaliser.eps > 0:
        call.refuse(f"its eps is {normaliser.eps}; without a positive one nothing bounds its slope")
    largest = float(normaliser.scale.abs().max())
    slope = quotient_up(largest, down(math.sqrt(normaliser.eps)))
    steps = gamma(normaliser.group[1] + 32)
    shift = normaliser.shift.expand(1, *call.value.shape[1:])
    error = Rounding(
        product_up(steps, slope), steps, product_up(steps, float(norm_up(shift.numpy())))
    )
    return Function(name, normaliser, Norm(slope, "largest factor / sqrt(eps)"), error)


def layer_norm(call: Call) -> Operation:
    """Lower a layer norm over the last axes."""
    given = call.attributes(normalized_shape=REQUIRED, weight=None, bias=None, eps=1e-5)
    return _over_last_axes(call, given, centred=True)


def rms_norm(call: Call) -> Operation:
    """Lower a root-mean-square norm over the last axes."""
    given = call.attributes(normalized_shape=REQUIRED, weight=None, eps=None)
    if given["eps"] is None:
        call.refuse("its eps is left to the number format")
    return _over_last_axes(call, {**given, "bias": None}, centred=False)


def _over_last_axes(call: Call, given: dict[str, Any], *, centred: bool) -> Operation:
    shape, last = call.value.shape, tuple(given["normalized_shape"])
    if len(last) >= len(shape) or shape[len(shape) - len(last) :] != last:
        call.refuse(f"it normalises {last} of an input {shape}")
    _check_constant(call, given["weight"], given["bias"])
    normaliser = Normaliser(
        (math.prod(shape[1 : len(shape) - len(last)]), math.prod(last)),
        torch.ones(last, dtype=torch.float64)
        if given["weight"] is None
        else exact(given["weight"]),
        torch.zeros(last, dtype=torch.float64) if given["bias"] is None else exact(given["bias"]),
        given["eps"],
        centred,
    )
    return _normalised(call, "layer_norm" if centred else "rms_norm", normaliser)


def group_norm(call: Call) -> Operation:
    """Lower a group norm."""
    given = call.attributes(num_groups=REQUIRED, weight=None, bias=None, eps=1e-5)
    return _by_channels(call, "group_norm", given["num_groups"], given)


def instance_norm(call: Call) -> Operation:
    """Lower an instance norm: of the input, or of running statistics, which is a batch norm."""
    module: Any = call.module
    if module is None:
        given = call.bind(
            input=REQUIRED, running_mean=None, running_var=None, weight=None, bias=None,
            use_input_stats=True, momentum=0.1, eps=1e-5,
        )  # fmt: skip
    else:
        given = call.attributes(
            running_mean=None, running_var=None, weight=None, bias=None, eps=1e-5
        )
        given["use_input_stats"] = not module.track_running_stats
    if not given["use_input_stats"]:
        return batch_norm(
            call, given["input"], given["running_mean"], given["running_var"], given["weight"],
            given["bias"], given["eps"],
        )  # fmt: skip
    return _by_channels(call, "instance_norm", call.value.shape[1], given)


def _by_channels(call: Call, name: str, groups: int, given: dict[str, Any]) -> Operation:
    shape = call.value.shape
    _check_constant(call, given["weight"], given["bias"])
    if len(shape) < 3 and name == "instance_norm":
        call.refuse(f"its input has shape {shape}, without a batch axis")
    ones = [1] * (len(shape) - 2)
    channels = torch.ones(shape[1], dtype=torch.float64)
    scale = channels if given["weight"] is None else exact(given["weight"])
    shift = 0 * channels if given["bias"] is None else exact(given["bias"])
    normaliser = Normaliser(
        (groups, math.prod(shape[1:]) // groups),
        scale.reshape(-1, *ones),
        shift.reshape(-1, *ones),
        given["eps"],
    )
    return _normalised(call, name, normaliser)


def _check_constant(call: Call, *weights: Any) -> None:
    if not all(weight is None or isinstance(weight, Tensor) for weight in weights):
        call.refuse("its weights must be constants")


def soften(name: str, function: Callable[..., Tensor], sign: float, call: Call) -> Operation:
    """Lower softmax, softmin or log_softmax over an axis other than the batch's."""
    if call.module is None:
        given = call.bind(input=REQUIRED, dim=None, _stacklevel=3, dtype=None)
    else:
        given = call.attributes(dim=None) | {"dtype": None}
    value, dim = given["input"], given["dim"]
    if not isinstance(value, Value) or given["dtype"] is not None:
        call.refuse("it changes the number format")
    if dim is None or dim % len(value.shape) == 0:
        call.refuse("it must name an axis that is not the batch's")
    count = value.shape[dim]
    wrapped = partial(_signed, function, sign, dim)
    if name != "log_softmax":
        error = Rounding(gamma(32), gamma(count + 64))
        return Function(name, wrapped, Norm(0.5, "largest slope"), error)
    slope = sqrt_up(count)
    size = sqrt_up(math.prod(value.shape[1:]))
    error = Rounding(product_up(gamma(64), slope), gamma(64), product_up(gamma(count + 64), size))
    return Function(name, wrapped, Norm(up(slope), "largest slope"), error)


def _signed(function: Callable[..., Tensor], sign: float, dim: int, inputs: Tensor) -> Tensor:
    return function(sign * inputs, dim=dim)


register(layer_norm, modules=(nn.LayerNorm,), functions=(functional.layer_norm,))
register(rms_norm, modules=(nn.RMSNorm,), functions=(functional.rms_norm,))
register(group_norm, modules=(nn.GroupNorm,), functions=(functional.group_norm,))
register(
    instance_norm,
    modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    functions=(functional.instance_norm,),
)
register(
    partial(soften, "softmax", torch.softmax, 1.0),
    modules=(nn.Softmax,), functions=(functional.softmax, torch.softmax), methods=("softmax",),
)  # fmt: skip
register(
    partial(soften, "softmin", torch.softmax, -1.0),
    modules=(nn.Softmin,), functions=(functional.softmin,),
)  # fmt: skip
register(
    partial(soften, "log_softmax", torch.log_softmax, 1.0),
    modules=(nn.LogSoftmax,), functions=(functional.log_softmax, torch.log_softmax),
    methods=("log_softmax",),
)  # fmt: skip
