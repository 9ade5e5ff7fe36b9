"""Pointwise activations: l2 Lipschitz constant = largest slope of the scalar function.

The smooth ones take their value from the mathematical library, which is trusted to a few units in
the last place of the larger of input and output; the piecewise linear ones are exact or nearly so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedprune.robustness.operations import Function, Operation, Rounding, copy_entries
from fedprune.robustness.rounding import EPSILON, up
from fedprune.robustness.rules._registry import REQUIRED, Call, exact, register
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
    "abs": ((), (torch.abs, abs), ("abs", "abs_")),
    "leaky_relu": ((nn.LeakyReLU,), (functional.leaky_relu, functional.leaky_relu_), ()),
    "hardtanh": ((nn.Hardtanh,), (functional.hardtanh,), ()),
    "clamp": ((), (torch.clamp, torch.clip), ("clamp", "clamp_", "clip")),
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
    chosen = {name: given[name] for name in activation.parameters}
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


def prelu(call: Call) -> Operation:
    """Lower a learned leaky ReLU: slope max(1, |weight|)."""
    weight = call.attributes(weight=REQUIRED)["weight"]
    slopes = exact(weight)
    slope = max(1.0, up(float(slopes.abs().max())))
    error = Rounding(0.0, EPSILON)
    function = partial(functional.prelu, weight=slopes)
    return Function("prelu", function, Norm(slope, "largest slope"), error)


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
register(
    dropout,
    modules=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    functions=(functional.dropout, functional.dropout1d, functional.dropout2d,
               functional.dropout3d, functional.alpha_dropout),
)  # fmt: skip
register(
    identity, modules=(nn.Identity,), functions=(torch.clone,), methods=("contiguous", "clone")
)
