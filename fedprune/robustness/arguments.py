"""Arguments that several questions share, refused by name where they fit none."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from fedprune.errors import RobustnessError


def check_whole(value: Any, name: str, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        RobustnessError: if it is a fraction, a truth value, no number or too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise RobustnessError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_radius(value: Any) -> None:
    """Refuse what is no length of a ball.

    Raises:
        RobustnessError: if it is no number, not finite or not positive.
    """
    number = float(value) if isinstance(value, Real) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise RobustnessError(f"radius must be positive and finite, got {value!r}")


def check_tensor(value: Any, name: str) -> None:
    """Refuse a tensor that is not real and finite; everything else passes.

    Raises:
        RobustnessError: naming the tensor.
    """
    if not isinstance(value, Tensor):
        return
    if value.is_complex():
        raise RobustnessError(f"{name} is complex, for which there are no rules")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise RobustnessError(f"{name} has values that are not finite")


def check_inputs(value: Any, name: str, shape: tuple[int, ...] | None = None) -> None:
    """Refuse what is no tensor of real, finite examples.

    Args:
        value: is to be [n, ...].
        name: of it.
        shape: of an example; any where it is None.

    Raises:
        RobustnessError: saying what it is.
    """
    if not isinstance(value, Tensor):
        raise RobustnessError(f"{name} must be a torch tensor, got {kind(value)}")
    wanted = "..." if shape is None else ", ".join(map(str, shape))
    fits = value.ndim >= 1 and (shape is None or tuple(value.shape[1:]) == shape)
    if not fits or len(value) == 0:
        raise RobustnessError(
            f"{name} must be [n, {wanted}] with n at least 1, got {list(value.shape)}"
        )
    check_tensor(value, name)


def check_labels(value: Any, count: int, classes: int) -> None:
    """Refuse what are no classes of `count` examples.

    Raises:
        RobustnessError: if they are no tensor of so many integers, or one is no class.
    """
    if not isinstance(value, Tensor):
        raise RobustnessError(f"labels must be a torch tensor, got {kind(value)}")
    if value.is_floating_point() or value.is_complex() or value.shape != (count,):
        raise RobustnessError(
            f"labels must be one integer for each of {count} inputs, "
            f"got {value.dtype} {list(value.shape)}"
        )
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= classes:
        raise RobustnessError(f"labels must be integers in [0, {classes}), got {low} to {high}")


def kind(value: object) -> str:
    """Name the type of a value, with its module where that says more."""
    own = type(value)
    return own.__name__ if own.__module__ == "builtins" else f"{own.__module__}.{own.__name__}"
