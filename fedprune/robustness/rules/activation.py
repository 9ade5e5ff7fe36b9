"""Pointwise activations: l2 Lipschitz constant = largest slope of the scalar function.

The smooth ones take their value from the mathematical library, which is trusted to a few units in
the last place of the larger of input and output; the piecewise linear ones are exact or nearly so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedprune.robustness.operations import Function, Operation, Rounding, copy_entries
from fedprune.robustness.rounding import EPSILON, up
from fedprune.robustness.rules._registry import NAMED_RULES, REQUIRED, Call, exact, register
from fedprune.robustness.spectral import Norm

LIBRARY_ERROR = Rounding(64 * EPSILON, 64 * EPSILON)


@dataclass(frozen=True)
class Activation:
    """A scalar function: its parameters with their defaults, and its largest slope."""

    name: str
    function: Callable[..., Any]
    slope: Callable[[dict[str, Any]], float]
    parameters: dict[str, Any] = field(default_factory=dict)
    is_exact: bool = True


def _constant(slope: float) -> Callable[[dict[str, Any]], float]:
    return lambda _: slope


# Refused because torch's function jumps: hardshrink and, at its threshold, softplus (by
# log(1 + exp(-threshold)) / beta, where it goes over to the identity).
# Largest slopes that are not obvious: GELU 1.12904 (erf) and 1.12906 (tanh form), SiLU 1.09984,
# Mish 1.08850, hard swish 1.5 at x = 3, SELU 1.0507 * 1.67326 at x = 0-, sigmoid 1/4 at 0.
ACTIVATIONS = (
    Activation("relu", functional.relu, _constant(1.0)),
    Activation("relu6", functional.relu6, _constant(1.0)),
    Activation("abs", torch.abs, _constant(1.0)),
    Activation(
        "leaky_relu",
        functional.leaky_relu,
        lambda p: max(1.0, abs(p["negative_slope"])),
        {"negative_slope": 0.01},
    ),
    Activation("hardtanh", functional.hardtanh, _constant(1.0), {"min_val": -1.0, "max_val": 1.0}),
    Activation("clamp", torch.clamp, _constant(1.0), {"min": None, "max": None}),
    Activation("clamp_min", torch.clamp_min, _constant(1.0), {"min": REQUIRED}),
    Activation("clamp_max", torch.clamp_max, _constant(1.0), {"max": REQUIRED}),
    Activation("softshrink", functional.softshrink, _constant(1.0), {"lambd": 0.5}, is_exact=False),
    Activation("logsigmoid", functional.logsigmoid, _constant(1.0), is_exact=False),
    Activation("tanhshrink", functional.tanhshrink, _constant(1.0), is_exact=False),
    Activation("atan", torch.atan, _constant(1.0), is_exact=False),
    Activation("erf", torch.erf, _constant(1.12838), is_exact=False),
    Activation("hardsigmoid", functional.hardsigmoid, _constant(0.16666666666666669)),
    Activation("hardswish", functional.hardswish, _constant(1.5), is_exact=False),
    Activation("tanh", torch.tanh, _constant(1.0), is_exact=False),
    Activation("sigmoid", torch.sigmoid, _constant(0.25), is_exact=False),
    Activation("softsign", functional.softsign, _constant(1.0), is_exact=False),
    Activation("silu", functional.silu, _constant(1.1), is_exact=False),
    Activation("mish", functional.mish, _constant(1.09), is_exact=False),
    Activation("selu", functional.selu, _constant(1.7581), is_exact=False),
    Activation("gelu", functional.gelu, _constant(1.13), {"approximate": "none"}, is_exact=False),
    Activation(
        "elu", functional.elu, lambda p: max(1.0, abs(p["alpha"])), {"alpha": 1.0}, is_exact=False
    ),
)

FORMS: dict[str, tuple[tuple[type[nn.Module], ...], tuple[Any, ...], tuple[str, ...]]] = {
    "relu": (
        (nn.ReLU,),
        (functional.relu, functional.relu_, torch.relu, torch.relu_),
        ("relu", "relu_"),
    ),
    "relu6": ((nn.ReLU6,), (functional.relu6,), ()),
    "abs": ((), (torch.abs, operator.abs, abs), ("abs", "abs_")),
    "leaky_relu": ((nn.LeakyReLU,), (functional.leaky_relu, functional.leaky_relu_), ()),
    "hardtanh": ((nn.Hardtanh,), (functional.hardtanh,), ()),
    "clamp": ((), (torch.clamp, torch.clip), ("clamp", "clamp_", "clip")),
    "clamp_min": ((), (torch.clamp_min,), ("clamp_min", "clamp_min_")),
    "clamp_max": ((), (torch.clamp_max,), ("clamp_max", "clamp_max_")),
    "softshrink": ((nn.Softshrink,), (functional.softshrink,), ()),
    "logsigmoid": ((nn.LogSigmoid,), (functional.logsigmoid,), ()),
    "tanhshrink": ((nn.Tanhshrink,), (functional.tanhshrink,), ()),
    "atan": ((), (torch.atan, torch.arctan), ("atan", "arctan")),
    "erf": ((), (torch.erf,), ("erf",)),
    "hardsigmoid": ((nn.Hardsigmoid,), (functional.hardsigmoid,), ()),
    "hardswish": ((nn.Hardswish,), (functional.hardswish,), ()),
    "tanh": ((nn.Tanh,), (torch.tanh, functional.tanh), ("tanh", "tanh_")),
    "sigmoid": ((nn.Sigmoid,), (torch.sigmoid, functional.sigmoid), ("sigmoid", "sigmoid_")),
    "softsign": ((nn.Softsign,), (functional.softsign,), ()),
    "silu": ((nn.SiLU,), (functional.silu,), ()),
    "mish": ((nn.Mish,), (functional.mish,), ()),
    "selu": ((nn.SELU,), (functional.selu, torch.selu), ()),
    "gelu": ((nn.GELU,), (functional.gelu,), ()),
    "elu": ((nn.ELU,), (functional.elu,), ()),
}


def activate(activation: Activation, call: Call) -> Operation:
    """Lower one activation; `inplace` is dropped, since the lowered network never overwrites."""
    given = call.attributes(**activation.parameters, inplace=False)
    if given["input"] is not call.value:
        call.refuse("a parameter depends on the input")
    chosen = {name: _parameter(call, given[name]) for name in activation.parameters}
    error = Rounding() if activation.is_exact else LIBRARY_ERROR
    if activation.name in ("leaky_relu", "hardsigmoid"):  # a product or two
        error = Rounding(4 * EPSILON, 4 * EPSILON)
    slope = activation.slope(chosen)
    return Function(
        activation.name,
        partial(activation.function, **chosen),
        Norm(slope, "largest slope"),
        error,
    )


def _parameter(call: Call, given: Any) -> Any:
    """A parameter as it is; a tensor, which must not broadcast, in float64."""
    if not isinstance(given, torch.Tensor):
        return given
    call.keep_shape(call.value, given)
    return exact(given)


def prelu(call: Call) -> Operation:
    """Lower a learned leaky ReLU: slope max(1, |weight|)."""
    weight = call.attributes(weight=REQUIRED)["weight"]
    slopes = exact(weight)
    slope = max(1.0, up(float(slopes.abs().max())))
    error = Rounding(0.0, EPSILON)
    function = partial(functional.prelu, weight=slopes)
    return Function("prelu", function, Norm(slope, "largest slope"), error)


def celu(call: Call) -> Operation:
    """Lower celu: slope 1 for a positive alpha, unbounded for a negative one."""
    alpha = float(call.attributes(alpha=1.0, inplace=False)["alpha"])
    if not alpha > 0:
        call.refuse(f"its slope has no bound with alpha={alpha}")
    function = partial(functional.celu, alpha=alpha)
    error = Rounding(64 * EPSILON, 64 * EPSILON)
    return Function("celu", function, Norm(1.0, "largest slope"), error)


def threshold(call: Call) -> Operation:
    """Lower threshold where it does not jump: value = threshold, slope 1."""
    given = call.attributes(threshold=REQUIRED, value=REQUIRED, inplace=False)
    if given["threshold"] != given["value"]:
        call.refuse(f"it jumps from {given['value']} to {given['threshold']}")
    function = partial(torch.clamp_min, min=float(given["value"]))
    return Function("threshold", function, Norm(1.0, "largest slope"))


def randomised_relu(call: Call) -> Operation:
    """Lower rrelu in eval mode: a leaky ReLU with the mean slope."""
    given = call.attributes(lower=1 / 8, upper=1 / 3, training=False, inplace=False)
    if given["training"]:
        call.refuse("it is called with training=True")
    slope = (float(given["lower"]) + float(given["upper"])) / 2
    function = partial(functional.leaky_relu, negative_slope=slope)
    error = Rounding(4 * EPSILON, 4 * EPSILON)
    return Function("rrelu", function, Norm(max(1.0, up(abs(slope))), "largest slope"), error)


def stochastic_depth(call: Call) -> Operation:
    """Lower torchvision's stochastic depth in eval mode: the identity."""
    if call.bind(input=REQUIRED, p=REQUIRED, mode=REQUIRED, training=True)["training"]:
        call.refuse("it is called with training=True")
    return copy_entries("stochastic_depth", _same)


def dropout(call: Call) -> Operation:
    """Lower dropout in eval mode: the identity."""
    if call.module is None:
        positional = [argument for argument in call.args[1:] if isinstance(argument, bool)]
        training = call.kwargs.get("training", positional[0] if positional else True)
        if training:
            call.refuse("it is called with training=True")
    return copy_entries("dropout", _same)


def identity(call: Call) -> Operation:
    """Lower an operation that hands its input on: identity, contiguous, clone."""
    assert call.value is not None
    return copy_entries("identity", _same)


def _same(tensor: Any) -> Any:
    return tensor


for _activation in ACTIVATIONS:
    _modules, _functions, _methods = FORMS[_activation.name]
    register(
        partial(activate, _activation), modules=_modules, functions=_functions, methods=_methods
    )
register(prelu, modules=(nn.PReLU,), functions=(functional.prelu, torch.prelu))
register(celu, modules=(nn.CELU,), functions=(functional.celu, torch.celu))
register(threshold, modules=(nn.Threshold,), functions=(functional.threshold,))
register(randomised_relu, modules=(nn.RReLU,), functions=(functional.rrelu,))
NAMED_RULES["torchvision.ops.stochastic_depth.stochastic_depth"] = stochastic_depth
register(
    dropout,
    modules=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
             nn.FeatureAlphaDropout),
    functions=(functional.dropout, functional.dropout1d, functional.dropout2d,
               functional.dropout3d, functional.alpha_dropout, functional.feature_alpha_dropout),
)  # fmt: skip
register(
    identity,
    modules=(nn.Identity,),
    functions=(torch.clone, operator.pos),
    methods=("contiguous", "clone"),
)
