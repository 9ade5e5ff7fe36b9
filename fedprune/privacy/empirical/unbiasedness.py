"""Do the sampler and the estimator speak of the same mechanism?

Known masks go in, the real estimator's votes come out. Averaged over units, vote times truth must
have the mean 1: it is the reports' mean agreement over the gain c. A sampler whose threshold or
epsilon is not the one that the estimator divides by has another gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedprune.privacy.empirical.noise import Noise
from fedprune.privacy.empirical.outcome import TestOutcome
from fedprune.privacy.mechanisms.reports import Report
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse

_BERRY_ESSEEN = 0.4748  # Shevtsova 2011, for sums of independent terms with one law


@dataclass(frozen=True)
class Law:
    """A discrete law: values and their probabilities, [k] float64 each."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    def moment(self, order: int) -> float:
        """Absolute moment about 1."""
        return float(self.weights @ np.abs(self.values - 1.0) ** order)


def unbiasedness_test(
    mechanism: ThresholdResponse, mask: ArrayLike, reports: Sequence[Report]
) -> TestOutcome:
    """Test that the estimator, given reports of clients with one known mask, gives that mask back.

    The statistic is the mean over units of (2 vote - 1) times the true +-1 bit, a mean over
    independent reports whose exact law follows from the mechanism. Two bounds hold for its tail,
    the normal one raised by the Berry-Esseen error and Bernstein's; the p-value is the smaller, so
    that it is never too small.

    Args:
        mechanism: that the reports are said to come from, with its estimator.
        mask: that every client has, [num_units] bool.
        reports: of that many clients, each with a block that it drew.

    Raises:
        ReportError: if a report is not one that the mechanism can send.
    """
    truth = np.where(np.asarray(mask, dtype=np.bool_), 1.0, -1.0)
    votes = mechanism.estimate(reports, counts="expected").mean
    found = float(np.mean((2.0 * votes - 1.0) * truth))
    law, count = law_of_one_report(mechanism), len(reports)
    score = (found - 1.0) * math.sqrt(count / law.moment(2))
    return TestOutcome(
        test="unbiasedness",
        claim="votes on known masks are right on average",
        claimed=1.0,
        found=found,
        p_value=_tail(law, abs(found - 1.0), count),
        draws=count,
        detail=f"{score:+.1f} standard errors",
    )


def agreement_test(
    mechanism: ThresholdResponse, masks: ArrayLike, reports: Sequence[Report]
) -> TestOutcome:
    """Test that reports agree with their masks in at least tau places as often as stated.

    An exact binomial test, two-sided. It sees a threshold that is off by one even where the gain
    is flat in the threshold, and an epsilon that is too high or too low.

    Args:
        mechanism: that the reports are said to come from.
        masks: [n, num_units] bool, or one mask that all clients have.
        reports: n of them.

    Raises:
        ReportError: if a report is not one that the mechanism can send.
    """
    agreements = Noise.of(mechanism, masks, reports).agreements
    reached = int((agreements >= mechanism.threshold).sum())
    claimed = float(sum(mechanism.agreement_probabilities[mechanism.threshold :]))
    return TestOutcome(
        test="agreement",
        claim="reports reach the threshold as often as stated",
        claimed=claimed,
        found=reached / len(reports),
        p_value=float(stats.binomtest(reached, len(reports), claimed).pvalue),
        draws=len(reports),
        detail=f"{reached:,} reports of {len(reports):,}",
    )


def _tail(law: Law, distance: float, count: int) -> float:
    """Bound the chance that a mean of `count` draws is further than `distance` from 1."""
    variance = law.moment(2)
    normal = float(stats.norm.sf(distance * math.sqrt(count / variance)))
    error = _BERRY_ESSEEN * law.moment(3) / (variance * math.sqrt(variance * count))
    largest = float(np.abs(law.values - 1.0).max())
    exponent = count * distance**2 / (2.0 * (variance + largest * distance / 3.0))
    return min(1.0, 2.0 * (normal + error), 2.0 * math.exp(-exponent))


def law_of_one_report(mechanism: ThresholdResponse) -> Law:
    """Law of one report's share in the statistic; its mean is 1."""
    units, blocks, size = mechanism.num_units, mechanism.num_blocks, mechanism.block_units
    last = units - (blocks - 1) * size
    parts = [(1.0 / blocks, last)]
    if blocks > 1:
        parts.append((1.0 - 1.0 / blocks, size))
    scale = blocks / (units * float(mechanism.agreement_gain))
    values = [scale * (2.0 * np.arange(real + 1) - real) for _, real in parts]
    weights = [share * _agreements_among(mechanism, real) for share, real in parts]
    return Law(np.concatenate(values), np.concatenate(weights))


def _agreements_among(mechanism: ThresholdResponse, real: int) -> NDArray[np.float64]:
    """Law of how many of a block's first `real` bits agree: [real + 1]."""
    size = mechanism.block_units
    chances = np.array([float(p) for p in mechanism.agreement_probabilities])
    if real == size:
        return chances
    found = np.zeros(real + 1)
    for agreements, chance in enumerate(chances):
        found += chance * stats.hypergeom.pmf(np.arange(real + 1), size, agreements, real)
    return found
