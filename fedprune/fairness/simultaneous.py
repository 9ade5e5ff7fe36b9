"""Statements about all groups at once: bands that hold together, and what chance makes of a gap.

Best minus worst is biased upward: even groups that fare alike show a gap. Two honest answers
stand beside the followed pair. The gap that chance alone would show is the mean range of the
groups' deviations over the resamples. And a band that holds for all groups at once (the largest
standardised deviation, Westfall & Young 1993; Romano & Wolf 2005) gives an interval that covers
the gap whichever groups are truly best and worst; it is wider than it need be.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.fairness.changes import Change, excess_loss
from fedprune.fairness.intervals import Interval
from fedprune.fairness.sample import Sample, accuracies, accuracy_interval

Floats = NDArray[np.float64]


def gap_by_chance(sample: Sample) -> tuple[float, float]:
    """Mean best-minus-worst over resamples, dense and pruned, had all groups equal accuracy."""
    dense, pruned = (_deviations(sample, model) for model in (0, 1))
    return float(np.ptp(dense, axis=1).mean()), float(np.ptp(pruned, axis=1).mean())


def gap_interval(sample: Sample, model: int) -> Interval:
    """Cover best minus worst accuracy of one model, 0 dense or 1 pruned, whichever they are.

    A group in which (nearly) every row is right, or wrong, hardly varies over resamples: no band
    is narrower than the intervals of the single accuracies at a level divided by their number.
    """
    values = sample.shares(sample.total[sample.shown])[model]
    deviations = _deviations(sample, model)
    reach = _half_widths(deviations, _least_independent(sample), sample.confidence)
    single = [_accuracy_interval(sample, int(code), model) for code in sample.shown]
    low = np.minimum(values - reach, [interval.low for interval in single])
    high = np.maximum(values + reach, [interval.high for interval in single])
    least = max(0.0, float(low.max() - high.min()))
    return Interval(least, min(1.0, float(high.max() - low.min())))


def excess_intervals(sample: Sample) -> list[Interval]:
    """Intervals of psi_g that hold for all groups shown at once, in their order."""
    changes: list[Change] = [excess_loss(sample, int(code)) for code in sample.shown]
    if not changes:
        return []
    dense, pruned = (_all_draws(sample, model) for model in (0, 1))
    overall = np.subtract(*accuracies(sample.totals.sum(axis=1)))
    excess = (dense - pruned) - overall[:, None]
    deviations = np.nan_to_num(excess - np.array([change.value for change in changes]))
    reach = _half_widths(deviations, _least_independent(sample), sample.confidence)
    each = 1 - (1 - sample.confidence) / len(changes)  # Bonferroni, where few rows changed
    least = [change.least_interval(each) for change in changes]
    return [
        Interval(
            max(-change.limit, min(change.value - float(half) - change.allowance, single.low)),
            min(change.limit, max(change.value + float(half) + change.allowance, single.high)),
        )
        for change, half, single in zip(changes, reach, least, strict=True)
    ]


def _all_draws(sample: Sample, model: int) -> Floats:
    return accuracies(sample.totals[:, sample.shown])[model]


def _accuracy_interval(sample: Sample, code: int, model: int) -> Interval:
    """A group's accuracy at the level that holds for all groups shown (Bonferroni)."""
    return accuracy_interval(
        sample.total[code].sum(axis=1 - model),
        accuracies(sample.totals[:, code])[model],
        sample.independent(code),
        sample.whole_clients,
        1 - (1 - sample.confidence) / len(sample.shown),
        2 * sample.noise_variance,
    )


def _deviations(sample: Sample, model: int) -> Floats:
    """Resampled accuracies minus the estimated ones: [resamples, shown]; 0 where undefined.

    Resamples of a group all of whose rows are right, or wrong, are all the same, which does not
    make its accuracy certain: it varies then as a binomial share with two rows more of either kind
    does (Agresti & Coull 1998), in normal draws that are the same every time; clients, where
    whole ones are resampled, count as its draws.
    """
    counts = sample.total[sample.shown]
    found = np.nan_to_num(_all_draws(sample, model) - accuracies(counts)[model])
    still = np.flatnonzero(found.std(axis=0) == 0)
    draws = np.array([sample.independent(int(code)) for code in sample.shown])[still]
    right = sample.shares(counts)[model][still]
    share = (right * draws + 2) / (draws + 4)
    drawn = np.random.default_rng(0).standard_normal((len(found), len(still)))
    found[:, still] = drawn * np.sqrt(share * (1 - share) / (draws + 4))
    return found


def _least_independent(sample: Sample) -> int:
    return min(sample.independent(int(code)) for code in sample.shown)


def _half_widths(deviations: Floats, independent: int, confidence: float) -> Floats:
    errors = deviations.std(axis=0)
    standard = np.abs(deviations) / np.where(errors > 0, errors, 1.0)
    critical = float(np.quantile(standard.max(axis=1), confidence))
    tail = (1 - confidence) / 2  # as the expanded percentiles: few draws ask for Student's t
    student = float(stats.t.isf(tail, independent - 1) / stats.norm.isf(tail))
    widened = critical * student * math.sqrt(independent / (independent - 1))
    return np.asarray(widened * errors)
