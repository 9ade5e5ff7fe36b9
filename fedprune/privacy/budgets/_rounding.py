"""Numbers that err on one side: a charge never too small, a capacity never too large.

Floating-point results carry a bound of their own error; `above` and `below` move a result past
it. A filter's currency is counted in exact fractions on a grid, so that sums are exact.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fedprune.errors import PrivacyError

# Every formula here uses fewer than 100 roundings of half an ulp (2^-53) each.
_RELATIVE_ERROR = 2.0**-46
_GRID = 2**40


def above(value: float, magnitude: float = 0.0) -> float:
    """Round a computed value up past its own error.

    Args:
        value: computed in double precision.
        magnitude: sum of the absolute values of the terms it is the sum of; 0 where nothing
            cancels, so that the error is relative to the value itself.
    """
    return math.nextafter(value + _RELATIVE_ERROR * max(abs(value), magnitude), math.inf)


def below(value: float, magnitude: float = 0.0) -> float:
    """Round a computed value down past its own error; see `above`."""
    return -above(-value, magnitude)


def grid_up(value: float | Fraction) -> Fraction:
    """Return the smallest multiple of 2^-40 that is not below a value."""
    return Fraction(math.ceil(_finite(value) * _GRID), _GRID)


def grid_down(value: float | Fraction) -> Fraction:
    """Return the largest multiple of 2^-40 that is not above a value."""
    return Fraction(math.floor(_finite(value) * _GRID), _GRID)


def float_up(value: Fraction) -> float:
    """Return the smallest double that is not below a fraction (infinity past the largest)."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.nextafter(math.inf, 0)
    return nearest if nearest >= value else math.nextafter(nearest, math.inf)


def _finite(value: float | Fraction) -> Fraction:
    if isinstance(value, float) and not math.isfinite(value):
        raise PrivacyError(f"a privacy cost must be finite, got {value!r}")
    return Fraction(value)
