"""Changes of accuracy, dense to pruned, each with the resamples that say how far it may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.fairness.counting import Counts
from fedprune.fairness.intervals import Interval, expanded_tail, unseen_share
from fedprune.fairness.rare import Shares, net_change
from fedprune.fairness.sample import Part, Sample, accuracies

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
        """The interval of as many independent rows, exact enough where few of them changed."""
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
    every = sample.of_all()
    draws, noise = _pruned_minus_dense(every.draws), len(sample.total) * sample.noise_variance
    return Change(
        value=float(_pruned_minus_dense(every.cells)),
        draws=draws,
        independent=every.independent,
        allowance=_allowance(every),
        limit=1.0,
        shares=_shares([(every, 1.0)], draws, every.independent, noise),
    )


def excess_loss(sample: Sample, code: int) -> Change:
    """psi_g = (A_g dense - A_g pruned) - (A dense - A pruned)."""
    own, every = sample.of_group(code), sample.of_all()
    draws = _finite(_pruned_minus_dense(every.draws) - _pruned_minus_dense(own.draws))
    # psi_g = others * (their change - the group's)
    others = 1 - float(own.cells.sum() / every.cells.sum())
    parts = [(own, -others), (sample.of_others(code), others)]
    return Change(
        value=float(_pruned_minus_dense(every.cells) - _pruned_minus_dense(own.cells)),
        draws=draws,
        independent=own.independent,
        allowance=_allowance(own),
        limit=2.0,
        shares=_shares(parts, draws, own.independent, sample.noise_variance),
    )


def difference_change(sample: Sample, best: int, worst: int) -> Change:
    """Change, dense to pruned, of the accuracy of `best` minus that of `worst`."""
    one, other = sample.of_group(best), sample.of_group(worst)
    draws = _finite(_pruned_minus_dense(one.draws) - _pruned_minus_dense(other.draws))
    independent = min(one.independent, other.independent)
    return Change(
        value=float(_pruned_minus_dense(one.cells) - _pruned_minus_dense(other.cells)),
        draws=draws,
        independent=independent,
        allowance=_allowance(one) + _allowance(other),
        limit=2.0,
        shares=_shares([(one, 1.0), (other, -1.0)], draws, independent, sample.noise_variance),
    )


def _shares(
    parts: list[tuple[Part, float]], draws: Floats, independent: int, noise_variance: float
) -> Shares:
    """Weighted changes of parts, whose rows count as fewer where clients were resampled.

    Rows of a client change alike, and those of its groups together: one factor, the variance over
    the resamples by that of independent rows (Korn & Graubard 1998), knows of both. Noise in the
    counts would hide it, and is wider than what few rows leave open.
    """
    held = [(part, weight) for part, weight in parts if part.cells.sum() > 0]
    plain = tuple(share for part, weight in held for share in net_change(part.cells, weight))
    found, sample = Shares(plain, noise_variance), parts[0][0].sample
    if not sample.whole_clients or sample.noise is not None:
        return found
    binomial = found.binomial_variance()
    if binomial == 0:
        return replace(
            found,
            parts=tuple(
                share
                for part, weight in held
                for share in net_change(part.cells, weight, part.seen())
            ),
        )
    variance = float(draws.var()) * independent / (independent - 1)
    return found.with_effect(max(1.0, variance / binomial))


def _finite(draws: Floats) -> Floats:
    return draws[np.isfinite(draws)]


def _pruned_minus_dense(counts: Counts | Floats) -> Floats:
    dense, pruned = accuracies(counts)
    return pruned - dense


def _allowance(part: Part) -> float:
    cells = part.cells
    rows, lost, gained = int(cells.sum()), max(0, int(cells[1, 0])), max(0, int(cells[0, 1]))
    one_sided = 1 - (1 - part.sample.confidence) / 2
    if lost + gained == 0:
        return unseen_share(part.seen(), one_sided)
    if rows in (lost, gained):  # a row that did not follow may differ by one, or by two
        return 2 * unseen_share(part.seen(), one_sided)
    return 0.0
