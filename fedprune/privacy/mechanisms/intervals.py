"""Intervals for votes that hold at any number of reports, and what they decide.

The reports about a unit are n_b bits from a simple random sample of the clients (given how many
clients spoke about its block, drawn or assigned). How many of the sampled clients keep the unit is
hypergeometric, hence a sum of independent coins (its generating function has real roots only:
Vatutin & Mikhailov 1982); randomised response on top keeps it one, so the number K of bits that
say keep is Poisson-binomial with mean n_b q, q = (1 - c) / 2 + c p. Its tails more than one away
from the mean are at most the binomial's (Hoeffding 1956), so a Clopper-Pearson interval for q
covers, and p = (q - (1 - c) / 2) / c follows. The tail at the mean itself is above 1/4 wherever
n_b q and n_b (1 - q) are above 1 (Greenberg & Mohri 2014), which every possible q satisfies if
n_b (1 - c) / 2 > 1; where it does not, the Chernoff bound with the Kullback-Leibler divergence is
used instead, which holds for every Poisson-binomial (Hoeffding 1963).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr
from scipy.stats import beta, norm

from fedprune.errors import PrivacyError

Vector = NDArray[np.float64]

_HALVINGS = 60
_LARGEST_TAIL = 0.25  # up to which a tail probability excludes nothing within one of the mean


@dataclass(frozen=True)
class VoteInterval:
    """Lower and upper bounds of every unit's share of keeping clients.

    Attributes:
        low, high: [num_units] float64.
        confidence: that all hold at once if `simultaneous`, else that each one does.
        method: in words.
    """

    low: Vector
    high: Vector
    confidence: float
    simultaneous: bool
    method: str


def share_bounds(
    keeps: NDArray[np.int64], received: NDArray[np.int64], gain: float, alpha: float
) -> tuple[Vector, Vector]:
    """Bound shares from randomised bits: each interval misses with probability at most alpha.

    Args:
        keeps: [num_units] bits that said keep.
        received: [num_units] bits received; a unit without any gets [0, 1].
        gain: c, the expectation of a sent +-1 bit times the true one, in (0, 1].
        alpha: half of it for each side.

    Returns:
        low and high, [num_units] within [0, 1].
    """
    smallest = (1.0 - gain) / 2.0
    count = received.astype(np.float64)
    low, high = _clopper_pearson(keeps, received, alpha)
    few = (count * smallest <= 1.0) | (alpha / 2.0 > _LARGEST_TAIL)
    if few.any():
        loose_low, loose_high = _chernoff(keeps[few], np.maximum(count[few], 1.0), alpha)
        low[few], high[few] = loose_low, loose_high
    low, high = (low - smallest) / gain, (high - smallest) / gain
    none = received == 0
    return np.clip(np.where(none, 0.0, low), 0, 1), np.clip(np.where(none, 1.0, high), 0, 1)


def normal_bounds(mean: Vector, variance: Vector, alpha: float) -> tuple[Vector, Vector]:
    """Give mean -+ z sqrt(variance): for sums of many bounded parts, none of them dominant."""
    half = norm.isf(alpha / 2.0) * np.sqrt(variance)
    return mean - half, mean + half


def sub_gaussian_bounds(mean: Vector, proxy: Vector, alpha: float) -> tuple[Vector, Vector]:
    """Give mean -+ sqrt(2 ln(2 / alpha) proxy), which holds at any number of reports."""
    half = np.sqrt(2.0 * np.log(2.0 / alpha) * proxy)
    return mean - half, mean + half


def decided_units(low: ArrayLike, high: ArrayLike, keep_count: int) -> NDArray[np.int8]:
    """Say which units belong to the `keep_count` largest whatever the values between the bounds.

    Args:
        low: [num_units] lower bounds.
        high: [num_units] upper bounds.
        keep_count: how many units are kept, 0 to num_units.

    Returns:
        [num_units] int8: 1 if fewer than `keep_count` others can be as large, -1 if at least so
        many others are surely larger, else 0.

    Raises:
        PrivacyError: if `keep_count` is out of range.
    """
    bottom, top = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if not 0 <= keep_count <= len(bottom):
        raise PrivacyError(f"keep_count must be in [0, {len(bottom)}], got {keep_count!r}")
    count = len(bottom)
    can_be_as_large = count - np.searchsorted(np.sort(top), bottom, side="left") - 1  # not itself
    surely_larger = count - np.searchsorted(np.sort(bottom), top, side="right")
    decided = np.zeros(count, dtype=np.int8)
    decided[can_be_as_large < keep_count] = 1
    decided[surely_larger >= keep_count] = -1
    return decided


def _clopper_pearson(
    keeps: NDArray[np.int64], received: NDArray[np.int64], alpha: float
) -> tuple[Vector, Vector]:
    count = np.maximum(received, 1)
    low = np.where(keeps > 0, beta.ppf(alpha / 2, np.maximum(keeps, 1), count - keeps + 1), 0.0)
    less = np.maximum(count - keeps, 1)
    high = np.where(keeps < count, beta.isf(alpha / 2, keeps + 1, less), 1.0)
    return low, high


def _chernoff(keeps: NDArray[np.int64], count: Vector, alpha: float) -> tuple[Vector, Vector]:
    """Solve count * KL(keeps / count || q) = ln(2 / alpha) for q on both sides."""
    rate, wanted = keeps / count, np.log(2.0 / alpha) / count
    return _far_side(rate, wanted, 0.0), _far_side(rate, wanted, 1.0)


def _far_side(rate: Vector, wanted: Vector, end: float) -> Vector:
    near, far = rate.copy(), np.full_like(rate, end)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2.0
        divergence = rel_entr(rate, middle) + rel_entr(1.0 - rate, 1.0 - middle)
        inside = divergence < wanted
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return far
