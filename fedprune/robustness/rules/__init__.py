"""One rule for each kind of operation, as module, function and tensor method."""

from fedprune.robustness.rules import (
    activation,
    affine,
    arithmetic,
    moving,
    normalising,
    pooling,
    shape,
)
from fedprune.robustness.rules._registry import (
    FUNCTION_RULES,
    METHOD_RULES,
    MODULE_RULES,
    Call,
    Value,
    find_values,
    function_rule,
    module_rule,
    register,
)

__all__ = [
    "FUNCTION_RULES",
    "METHOD_RULES",
    "MODULE_RULES",
    "Call",
    "Value",
    "activation",
    "affine",
    "arithmetic",
    "find_values",
    "function_rule",
    "module_rule",
    "moving",
    "normalising",
    "pooling",
    "register",
    "shape",
]
