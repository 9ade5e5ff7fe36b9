"""Outward rounding: every bound is a float that is provably on the safe side of a real number.

IEEE 754 double precision rounds each sum, product, quotient and square root to nearest, so the
exact result lies within one neighbouring float; one `nextafter` outward after each such operation
is enough. Whole inner products need the a-priori constant gamma_n of Higham, "Accuracy and
Stability of Numerical Algorithms" (2002), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

EPSILON = 2.0**-52
"""Spacing of double precision floats at 1: twice the unit roundoff."""

TINY = 2.0**-900
"""Absolute allowance that covers every underflow inside one operation."""

Floats = NDArray[np.float64]

Scaled = TypeVar("Scaled", bound=float | NDArray[np.float64] | NDArray[np.complex128])


def up(value: float) -> float:
    """Give the next float above."""
    return math.nextafter(value, math.inf)


def down(value: float) -> float:
    """Give the next float below."""
    return math.nextafter(value, -math.inf)


def product_up(*factors: float) -> float:
    """Multiply non-negative factors, never below the exact product."""
    result = 1.0
    for factor in factors:
        result = up(result * factor)
    return result


def sum_up(terms: Iterable[float]) -> float:
    """Add terms, never below the exact sum."""
    result = 0.0
    for term in terms:
        result = up(result + term)
    return result


def sqrt_up(value: float) -> float:
    """Take a square root, never below the exact one."""
    return up(math.sqrt(value))


def quotient_up(numerator: float, denominator: float) -> float:
    """Divide non-negative numbers, never below the exact quotient."""
    return up(numerator / denominator)


def add_up(left: Floats, right: Floats) -> Floats:
    """Add elementwise, never below the exact sums."""
    return np.nextafter(left + right, np.inf)


def multiply_up(left: Floats | float, right: Floats) -> Floats:
    """Multiply non-negative numbers elementwise, never below the exact products."""
    return np.nextafter(left * right, np.inf)


def divide_down(numerator: Floats, denominator: Floats | float) -> Floats:
    """Divide elementwise by a positive number, never above the exact quotients."""
    with np.errstate(over="ignore"):
        return np.nextafter(numerator / denominator, -np.inf)


def gamma(terms: int) -> float:
    """Bound the relative error of a sum of `terms` products in any order: n u / (1 - n u)."""
    steps = terms * EPSILON / 2
    return quotient_up(up(steps), down(1.0 - steps))


def norm_up(values: NDArray[np.generic], axis: int | tuple[int, ...] | None = None) -> Floats:
    """Take Euclidean norms over `axis`, never below the exact ones.

    Entries are scaled by a power of two first (exactly), so squares neither overflow nor vanish.
    """
    magnitudes = np.abs(values).astype(np.float64, copy=False)
    if magnitudes.size == 0:
        return np.zeros(np.sum(magnitudes, axis=axis).shape)
    exponent = power_of_two(magnitudes)
    scaled = np.ldexp(magnitudes, -exponent)
    count = magnitudes.size if axis is None else _count(magnitudes.shape, axis)
    squares = np.sum(np.square(scaled), axis=axis) * (1 + (count + 8) * EPSILON) + TINY
    return np.asarray(np.ldexp(np.sqrt(squares) * (1 + 4 * EPSILON), exponent))


def power_of_two(magnitudes: Floats) -> int:
    """Give the exponent e with max |value| < 2^e, and 0 where all values are 0."""
    return int(np.frexp(np.max(magnitudes))[1])


def times_power(values: Scaled, exponent: int) -> Scaled:
    """Multiply by 2^exponent in two steps, since 2^1074 is no float: exact above underflow."""
    half = exponent // 2
    with np.errstate(over="ignore", under="ignore"):
        scaled: Any = values * 2.0**half * 2.0 ** (exponent - half)
    return cast(Scaled, scaled)


def _count(shape: tuple[int, ...], axis: int | tuple[int, ...]) -> int:
    axes = (axis,) if isinstance(axis, int) else axis
    return math.prod(shape[a] for a in axes)
