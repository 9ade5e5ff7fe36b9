"""Changes of accuracy, dense to pruned, each with the resamples that say how far it may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.fairness.counting import Counts
from fedprune.fairness.intervals import Interval, expanded_tail, unseen_share
from fedprune.fairness.rare import Shares, net_change
from fedprune.fairness.sample import Sample, accuracies

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """An estimated difference with its resamples.

    `allowance` is what the resamples cannot show: in a group where every row changed alike (as
    when none changed at all) every resample is the same, yet that many rows do not prove it of
    all rows. See `unseen_share`. `shares` says how far the difference may be off where few rows
    changed; no interval is narrower.
    """

    value: float
    draws: Floats
    independent: int
    allowance: float
    limit: float
    shares: Shares

    @property
    def error(self) -> float:
        """Standard error from the resamples; exactly 0 where all are the same."""
        if self.draws.min() == self.draws.max():  # rounding would leave a tiny deviation
            return 0.0
        return float(self.draws.std()) * math.sqrt(self.independent / (self.independent - 1))

    def interval(self, confidence: float) -> Interval:
        """Expanded percentiles, widened by the allowance, within what is possible."""
        tail = expanded_tail(self.independent, confidence)
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        least = self.least_interval(confidence)
        return Interval(
            max(-self.limit, min(float(low) - self.allowance, least.low)),
            min(self.limit, max(float(high) + self.allowance, least.high)),
        )

    def least_interval(self, confidence: float) -> Interval:
        """The interval of independent rows, exact enough where few of them changed."""
        deviations = float(stats.norm.isf((1 - confidence) / 2))
        return Interval(
            self.value - self.shares.reach(deviations, upward=False),
            self.value + self.shares.reach(deviations, upward=True),
        )

    def p_value(self) -> float:
        """Two-sided p-value of no difference: Student's t on the spread of the resamples.

        Counting resamples beyond zero would not do: its smallest value, one in their number,
        times the number of groups (Holm) can be too large to ever reject.
        """
        n, error = self.independent, self.error
        least = min(1.0, 2 * self.shares.tail(abs(self.value), upward=self.value < 0))
        if error == 0:  # every row followed its group: what share could have hidden the truth?
            return max(least, min(1.0, 2 * (1 - min(2.0, abs(self.value)) / 2) ** n))
        distance = max(0.0, abs(self.value) - self.allowance)
        return max(least, 2 * float(stats.t.sf(distance / error, n - 1)))


def overall_change(sample: Sample) -> Change:
    """Pruned minus dense accuracy over all rows."""
    total = sample.total.sum(axis=0)
    independent = sample.independent_overall()
    return Change(
        value=float(_pruned_minus_dense(total)),
        draws=_pruned_minus_dense(sample.totals.sum(axis=1)),
        independent=independent,
        allowance=_allowance(total, sample.seen_overall(), sample.confidence),
        limit=1.0,
        shares=Shares(net_change(total, 1.0), len(sample.total) * sample.noise_variance),
    )


def excess_loss(sample: Sample, code: int) -> Change:
    """psi_g = (A_g dense - A_g pruned) - (A dense - A pruned)."""
    own, total = sample.total[code], sample.total.sum(axis=0)
    draws = _pruned_minus_dense(sample.totals.sum(axis=1)) - _pruned_minus_dense(
        sample.totals[:, code]
    )
    others = 1 - float(own.sum() / total.sum())  # psi_g = others * (their change - the group's)
    parts = (*net_change(own, -others), *net_change(total - own, others))
    return Change(
        value=float(_pruned_minus_dense(total) - _pruned_minus_dense(own)),
        draws=draws[np.isfinite(draws)],
        independent=sample.independent(code),
        allowance=_allowance(own, sample.seen(code), sample.confidence),
        limit=2.0,
        shares=Shares(parts, sample.noise_variance),
    )


def difference_change(sample: Sample, best: int, worst: int) -> Change:
    """Change, dense to pruned, of the accuracy of `best` minus that of `worst`."""
    one, other = sample.total[best], sample.total[worst]
    draws = _pruned_minus_dense(sample.totals[:, best]) - _pruned_minus_dense(
        sample.totals[:, worst]
    )
    counts = [(code, sample.seen(code)) for code in (best, worst)]
    return Change(
        value=float(_pruned_minus_dense(one) - _pruned_minus_dense(other)),
        draws=draws[np.isfinite(draws)],
        independent=min(sample.independent(code) for code in (best, worst)),
        allowance=sum(_allowance(sample.total[code], n, sample.confidence) for code, n in counts),
        limit=2.0,
        shares=Shares((*net_change(one, 1.0), *net_change(other, -1.0)), sample.noise_variance),
    )


def _pruned_minus_dense(counts: Counts | Floats) -> Floats:
    dense, pruned = accuracies(counts)
    return pruned - dense


def _allowance(cells: Counts, independent: int, confidence: float) -> float:
    rows, lost, gained = int(cells.sum()), max(0, int(cells[1, 0])), max(0, int(cells[0, 1]))
    one_sided = 1 - (1 - confidence) / 2
    if lost + gained == 0:
        return unseen_share(independent, one_sided)
    if rows in (lost, gained):  # a row that did not follow may differ by one, or by two
        return 2 * unseen_share(independent, one_sided)
    return 0.0
