"""What a rule receives and where it is registered.

Adding an operation means adding one function that turns a `Call` into an `Operation` and one line
that registers it under its module class, function or tensor method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedprune.errors import UnsupportedOpError
from fedprune.robustness.operations import Operation

REQUIRED = object()


@dataclass(frozen=True)
class Value:
    """A tensor of the traced network that depends on its input: its node and shape [1, ...]."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call met while tracing, its arguments resolved to `Value`s and constants."""

    node: str
    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module | None = None

    def bind(self, **defaults: Any) -> dict[str, Any]:
        """Match the arguments with names and defaults in the order of the signature.

        Raises:
            UnsupportedOpError: if an argument is missing or unknown.
        """
        names = list(defaults)
        if len(self.args) > len(names):
            self.refuse(f"takes {len(names)} arguments here, got {len(self.args)}")
        bound = {**defaults, **dict(zip(names, self.args, strict=False))}
        for name, value in self.kwargs.items():
            if name not in defaults:
                self.refuse(f"has no rule for the argument {name}")
            bound[name] = value
        missing = [name for name, value in bound.items() if value is REQUIRED]
        if missing:
            self.refuse(f"lacks the argument {missing[0]}")
        return bound

    def attributes(self, **defaults: Any) -> dict[str, Any]:
        """Read the same names from the module, if there is one, else from the arguments."""
        if self.module is None:
            return self.bind(input=REQUIRED, **defaults)
        values = {name: getattr(self.module, name, value) for name, value in defaults.items()}
        return {"input": self.value, **values}

    @property
    def value(self) -> Value:
        """The one argument that depends on the network's input.

        Raises:
            UnsupportedOpError: if there is not exactly one.
        """
        found = list(self.values())
        if len(found) != 1:
            self.refuse(f"combines {len(found)} tensors that depend on the input")
        return found[0]

    def values(self) -> Iterator[Value]:
        """Go through the arguments that depend on the network's input, in order."""
        yield from find_values((self.args, dict(self.kwargs)))

    def keep_shape(self, value: Value, constant: Tensor) -> None:
        """Refuse a constant that makes copies of the value's entries by broadcasting.

        Raises:
            UnsupportedOpError: if the result has not the shape of the value.
        """
        stand_in = torch.empty(value.shape, device="meta") + constant.to("meta")
        if tuple(stand_in.shape) != value.shape:
            self.refuse(f"it broadcasts {value.shape} with {tuple(constant.shape)}")

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that names this node and operation."""
        raise UnsupportedOpError(
            f"no rigorous Lipschitz rule for operation {self.label!r} at node {self.node!r}: {why}"
        )


Rule = Callable[[Call], Operation]

MODULE_RULES: dict[type[nn.Module], Rule] = {}
FUNCTION_RULES: dict[Any, Rule] = {}
METHOD_RULES: dict[str, Rule] = {}
NAMED_RULES: dict[str, Rule] = {}
"""Functions of packages that are not imported for their sake: "module.name" to rule."""


def register(
    rule: Rule,
    *,
    modules: tuple[type[nn.Module], ...] = (),
    functions: tuple[Any, ...] = (),
    methods: tuple[str, ...] = (),
) -> None:
    """Enter one rule under every form in which a model can call the operation."""
    MODULE_RULES.update(dict.fromkeys(modules, rule))
    FUNCTION_RULES.update(dict.fromkeys(functions, rule))
    METHOD_RULES.update(dict.fromkeys(methods, rule))


def function_rule(function: Any) -> Rule | None:
    """Find the rule of a function, by itself or by its full name."""
    if function in FUNCTION_RULES:
        return FUNCTION_RULES[function]
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    return NAMED_RULES.get(f"{module}.{name}")


def module_rule(module: nn.Module) -> Rule | None:
    """Find the rule of a module's class, or of the base class whose forward it inherits."""
    if "forward" in vars(module):
        return None
    for base in type(module).__mro__:
        if base in MODULE_RULES and type(module).forward is base.forward:
            return MODULE_RULES[base]
    return None


def find_values(argument: Any) -> Iterator[Value]:
    """Go through nested containers and yield every `Value`."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, slice):
        yield from find_values((argument.start, argument.stop, argument.step))
    elif isinstance(argument, Mapping):
        for inner in argument.values():
            yield from find_values(inner)
    elif isinstance(argument, (tuple, list)):
        for inner in argument:
            yield from find_values(inner)


def exact(tensor: Tensor) -> Tensor:
    """Copy a weight to float64 on the CPU, detached and contiguous; no bit is lost."""
    return tensor.detach().to(device="cpu", dtype=torch.float64, copy=True).contiguous()
