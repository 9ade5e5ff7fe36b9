"""How many examples are certified at which radius, with exact intervals and beside attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fedprune.errors import RobustnessError
from fedprune.robustness.rounding import Floats, divide_down


def certified_radii(margins: Floats, body_upper: float) -> Floats:
    """Give the radii [n] below which no perturbation changes the label: margins / bound.

    Rounded down. A radius of 0 or less means that nothing is certified, and every perturbation
    strictly shorter than a positive radius leaves the prediction on the label.

    Raises:
        RobustnessError: if the bound is not a positive finite number or a margin is NaN.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not (np.isfinite(body_upper) and body_upper > 0):
        raise RobustnessError(f"body_upper must be positive and finite, got {body_upper}")
    if np.isnan(values).any():
        raise RobustnessError("a margin is NaN")
    return np.where(values > 0, divide_down(values, body_upper), np.minimum(values, 0.0))


def certified_accuracy(radii: Floats, radius: float) -> float:
    """Give the share of examples certified at a radius: strictly above it.

    Raises:
        RobustnessError: if there are no examples or the radius is negative or not finite.
    """
    certified, total = _count(radii, radius)
    return certified / total


def certified_interval(
    radii: Floats, radius: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Give the exact (Clopper-Pearson) interval for the certified share of the population.

    Args:
        radii: [n] certified radii of independent examples.
        radius: at which they are counted, strictly above.
        confidence: coverage of the two-sided interval, in (0, 1).

    Raises:
        RobustnessError: as for `certified_accuracy`, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise RobustnessError(f"confidence must be in (0, 1), got {confidence}")
    certified, total = _count(radii, radius)
    tail = (1 - confidence) / 2
    low = special.betaincinv(certified, total - certified + 1, tail) if certified else 0.0
    missed = total - certified
    high = special.betaincinv(certified + 1, missed, 1 - tail) if missed else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class CertifiedCurve:
    """Certified accuracy over radii, with its intervals: each [radii].

    Attributes:
        radii: l2, in the unit of the certificates.
        certified: share of examples whose certified radius is strictly larger.
        low, high: exact interval for the share of the population, radius by radius.
        found_accurate: share that an attack at that radius did not break, None if none was run:
            the truth lies between `certified` and it.
        examples: how many were counted.
        confidence: of each interval.
    """

    radii: tuple[float, ...]
    certified: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    found_accurate: tuple[float, ...] | None
    examples: int
    confidence: float


def certified_curve(
    radii: Floats,
    at: Sequence[float],
    *,
    survived: Sequence[NDArray[np.bool_]] | None = None,
    confidence: float = 0.95,
) -> CertifiedCurve:
    """Count certified examples at several radii, beside what attacks left standing.

    Args:
        radii: [n] certified radii of independent examples.
        at: radii at which to count.
        survived: for each of `at`, [n] bool: right and not broken by an attack of that radius.
        confidence: of the two-sided interval at each radius.

    Raises:
        RobustnessError: as for `certified_interval`; shapes that do not match; or a certified
            example that an attack broke, which proves a certificate wrong.
    """
    intervals = [certified_interval(radii, radius, confidence=confidence) for radius in at]
    return CertifiedCurve(
        tuple(float(radius) for radius in at),
        tuple(certified_accuracy(radii, radius) for radius in at),
        tuple(low for low, _ in intervals),
        tuple(high for _, high in intervals),
        None if survived is None else _left_standing(radii, at, survived),
        len(radii),
        confidence,
    )


def _left_standing(
    radii: Floats, at: Sequence[float], survived: Sequence[NDArray[np.bool_]]
) -> tuple[float, ...]:
    if len(survived) != len(at) or any(one.shape != np.shape(radii) for one in survived):
        raise RobustnessError(
            f"survived must hold one array of {np.shape(radii)} for each of {len(at)} radii"
        )
    for radius, standing in zip(at, survived, strict=True):
        broken = int(np.count_nonzero((np.asarray(radii) > radius) & ~standing))
        if broken:
            raise RobustnessError(
                f"{broken} examples certified beyond radius {radius} were broken by an attack: "
                f"the certificates are wrong"
            )
    return tuple(float(np.mean(standing)) for standing in survived)


def _count(radii: Floats, radius: float) -> tuple[int, int]:
    if len(radii) == 0:
        raise RobustnessError("there are no examples to count")
    if not (np.isfinite(radius) and radius >= 0):
        raise RobustnessError(f"radius must be finite and at least 0, got {radius}")
    if np.isnan(np.asarray(radii)).any():
        raise RobustnessError("a certified radius is NaN")
    return int(np.count_nonzero(np.asarray(radii) > radius)), len(radii)
