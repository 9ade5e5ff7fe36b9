"""Arguments that several questions share, refused by name where they fit none."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import RobustnessError


def check_whole(value: Any, name: str, least: int) -> int:
    """Give a whole number of at least `least`, Python's, numpy's or torch's; refuse others.

    Raises:
        RobustnessError: if it is a fraction, a truth value, no number or too small.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise RobustnessError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def check_radius(value: Any, *, may_be_zero: bool = False) -> float:
    """Give the length of a ball; refuse what is none.

    Raises:
        RobustnessError: if it is no number, not finite or not positive.
    """
    number = as_number(value)
    if not (number > 0 or (may_be_zero and number == 0)) or math.isinf(number):
        allowed = "at least 0" if may_be_zero else "positive"
        raise RobustnessError(f"radius must be {allowed} and finite, got {value!r:.60}")
    return number


def as_number(value: Any) -> float:
    """Give a real number as a float, and NaN for what is none or too large for one."""
    if isinstance(value, str | bytes | bool | complex):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def as_floats(value: Any) -> Tensor | None:
    """Give real numbers in a new float64 tensor on the CPU, and None for what are none."""
    if isinstance(value, Tensor):
        return None if value.is_complex() else value.detach().cpu().double().clone()
    try:
        found = np.array(value)
        return torch.from_numpy(found.astype(np.float64)) if found.dtype.kind in "fiub" else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def check_tensor(value: Any, name: str) -> None:
    """Refuse a tensor that is not real and finite; everything else passes.

    Raises:
        RobustnessError: naming the tensor.
    """
    if not isinstance(value, Tensor):
        return
    if value.layout != torch.strided or value.device.type == "meta":
        raise RobustnessError(f"{name} must be a dense tensor with values, got {value.layout}")
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


def check_labels(value: Any, count: int, classes: int | None) -> Tensor:
    """Give the classes of `count` examples as integers of 64 bits; refuse what are none.

    Args:
        value: is to be [count], integers of any kind.
        count: number of examples.
        classes: number of classes; any where it is None.

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
    check_tensor(value, "labels")
    labels = value.long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "at least 0" if classes is None else f"in [0, {classes})"
        raise RobustnessError(f"labels must be integers {allowed}, got {low} to {high}")
    return labels


def kind(value: object) -> str:
    """Name the type of a value, with its module where that says more."""
    own = type(value)
    return own.__name__ if own.__module__ == "builtins" else f"{own.__module__}.{own.__name__}"
