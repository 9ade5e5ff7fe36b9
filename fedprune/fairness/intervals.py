"""Intervals and tests for proportions, paired proportions and means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness.counting import as_floats


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean difference over seeds; `low` and `high` are None where one seed says nothing of them."""

    mean: float
    low: float | None
    high: float | None
    n: int


def wilson(successes: float, rows: float, confidence: float = 0.95) -> Interval:
    """Give Wilson's score interval of a proportion (Wilson 1927).

    Args:
        successes: rows that succeeded; a fraction of a row where an effective size is used.
        rows: rows, or the effective number of independent rows.
        confidence: coverage asked for, in (0, 1).

    Raises:
        FairnessError: if the counts are impossible or the confidence is out of range.
    """
    _check_proportion(successes, rows, confidence)
    z = float(stats.norm.isf((1 - confidence) / 2))
    share = successes / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    half = spread / (1 + z * z / rows)
    # The ends 0 and 1 are exact in real arithmetic; rounding must not cut them off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == rows else min(1.0, centre + half)
    return Interval(low, high)


def clopper_pearson(successes: int, rows: int, confidence: float = 0.95) -> Interval:
    """Give the exact interval of a proportion (Clopper and Pearson 1934).

    Raises:
        FairnessError: if the counts are impossible or not whole, or the confidence is out of range.
    """
    _check_counts(successes, rows)
    _check_proportion(successes, rows, confidence)
    tail, failures = (1 - confidence) / 2, rows - successes
    low = float(stats.beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(stats.beta.isf(tail, successes + 1, failures)) if failures else 1.0
    return Interval(low, high)


def exact_mcnemar(lost: int, gained: int) -> float:
    """Give the two-sided exact p-value that two classifiers are equally often right.

    McNemar's test in its exact form: given the rows on which they disagree, `lost` is binomial
    with probability 1/2. It holds for independent rows only.

    Args:
        lost: rows the first got right and the second wrong.
        gained: rows the first got wrong and the second right.

    Raises:
        FairnessError: if a count is negative or not whole.
    """
    _check_counts(lost, gained)
    if lost < 0 or gained < 0:
        raise FairnessError(f"counts must be at least 0, got {lost} and {gained}")
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(int(lost), int(lost + gained), 0.5).pvalue)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Adjust p-values so that the chance of any false rejection is bounded (Holm 1979).

    Returns:
        [tests] adjusted p-values, in the order given: compare each with the level.

    Raises:
        FairnessError: if they are no list of numbers or a p-value is outside [0, 1].
    """
    values = as_floats(p_values, "p-values")
    if values.ndim != 1:
        raise FairnessError(f"p-values must be [tests], got the shape {list(values.shape)}")
    if not np.all((values >= 0) & (values <= 1)):  # a NaN fails both comparisons
        raise FairnessError(f"p-values must be in [0, 1], got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Give the mean of a - b over seeds with Student's t interval.

    Args:
        a: [seeds] one figure a seed.
        b: [seeds] the figure to subtract, of the same seeds in the same order.
        confidence: coverage asked for, in (0, 1).

    Raises:
        FairnessError: if lengths differ, there is no seed or a figure is not finite.
    """
    _check_confidence(confidence)
    first, second = as_floats(a, "a"), as_floats(b, "b")
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise FairnessError(
            f"a and b must hold one figure for each of the same seeds, got the shapes "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    difference = first - second
    if not np.all(np.isfinite(difference)):
        raise FairnessError(f"figures must be finite, got differences {difference.tolist()}")
    mean, seeds = float(difference.mean()), difference.size
    if seeds == 1:
        return PairedDifference(mean, None, None, 1)
    error = float(difference.std(ddof=1)) / math.sqrt(seeds)
    half = float(stats.t.isf((1 - confidence) / 2, seeds - 1)) * error
    return PairedDifference(mean, mean - half, mean + half, seeds)


def expanded_tail(independent: int, confidence: float) -> float:
    """Give the tail of the bootstrap percentile interval that allows for few independent draws.

    A plain percentile interval is too narrow by sqrt((n-1)/n) and takes normal where Student's
    quantiles are due; reading the percentiles a little further out repairs both (Hesterberg 2015,
    "What teachers should know about the bootstrap", arXiv:1411.5279: the expanded percentile
    interval).

    Args:
        independent: independent draws behind the estimate, at least 2.
        confidence: coverage asked for, in (0, 1).
    """
    quantile = float(stats.t.isf((1 - confidence) / 2, independent - 1))
    return float(stats.norm.sf(math.sqrt(independent / (independent - 1)) * quantile))


def unseen_share(independent: int, confidence: float) -> float:
    """Give the largest share that may hide in the population though none of n draws showed it.

    The one-sided limit of Clopper and Pearson at zero successes, 1 - (1 - confidence)^(1/n): at
    95 % and large n it is the rule of three, 3/n.
    """
    return -math.expm1(math.log1p(-confidence) / independent)


def _check_counts(*counts: float) -> None:
    if not all(isinstance(count, Real) and float(count).is_integer() for count in counts):
        raise FairnessError(f"counts must be whole numbers, got {' and '.join(map(str, counts))}")


def _check_proportion(successes: float, rows: float, confidence: float) -> None:
    _check_confidence(confidence)
    if not 0 <= successes <= rows or not 0 < rows < math.inf:
        raise FairnessError(
            f"a proportion needs 0 <= successes <= rows and rows above 0, got {successes} of {rows}"
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise FairnessError(f"confidence must be in (0, 1), got {confidence}")
