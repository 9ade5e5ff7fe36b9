"""Equalised odds and demographic parity of binary tasks, dense and pruned, from count tables.

Demographic parity difference: the largest minus the smallest rate of predicting 1 over the groups.
Equalised odds difference: the larger of the same differences of the true positive and of the false
positive rate (Hardt, Price & Srebro 2016). Both equal fairlearn's where every group has rows of
both labels and enough of them to be shown; a group without rows of a label has no such rate and is
left out of it, where fairlearn sets the rate to 0. Each rate is the "accuracy" of a plain count
table, so whatever holds of gaps of accuracy, noise included, holds of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedprune.fairness.analysis import summarize
from fedprune.fairness.arguments import check_names, check_other
from fedprune.fairness.counting import Counts
from fedprune.fairness.intervals import Interval
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.outcomes import RATES, OutcomeTable, rate_tables, stack_outcomes
from fedprune.fairness.sample import Sample, draw_sample
from fedprune.fairness.simultaneous import gap_interval
from fedprune.fairness.summary import FairnessSummary, PairChange, plain
from fedprune.randomness import SimulationRandomness

JUDGED = ("selection", "true positive", "false positive")


@dataclass(frozen=True)
class GroupRate:
    """One rate of one group. Every figure is None where the group is too small to be shown."""

    name: str
    rows: int
    too_small: bool
    dense: float | None = None
    pruned: float | None = None
    interval_dense: Interval | None = None
    interval_pruned: Interval | None = None


@dataclass(frozen=True)
class RateChange:
    """A rate in every group: largest minus smallest, dense and pruned, and the followed pair.

    Differences are None where fewer than two groups have rows enough. They are biased upward;
    `pair` was fixed beforehand and has an interval, `*_by_chance` is what equal groups would show,
    and `interval_*` covers the difference whichever groups have the largest and smallest rate.
    `resampled` and `conditional_on` are those of `FairnessSummary`.
    """

    rate: str
    groups: tuple[GroupRate, ...]
    difference_dense: float | None
    difference_pruned: float | None
    change: float | None
    pair: PairChange | None
    dense_by_chance: float | None
    pruned_by_chance: float | None
    resampled: str
    conditional_on: str
    interval_dense: Interval | None = None
    interval_pruned: Interval | None = None


@dataclass(frozen=True)
class EqualizedOdds:
    """The larger of two differences of rates, and the rate that is followed with its pair.

    The rate to follow, as the pair of groups, is the one that differs most on other rows.
    `interval_*` covers the larger of the differences, whichever rate and groups it is of: each of
    the two is covered at half the error level (Bonferroni).
    """

    difference_dense: float
    difference_pruned: float
    change: float
    followed_rate: str
    pair: PairChange
    interval_dense: Interval
    interval_pruned: Interval


@dataclass(frozen=True)
class OutcomeSummary:
    """What outcome tables say of a binary task.

    `demographic_parity` is the change of the selection rate. `true_positive` and `false_positive`
    are None where fewer than two groups have rows of label 1, or of label 0; `equalized_odds` is
    None where either of them is or has no difference to show.
    """

    group: str
    demographic_parity: RateChange
    true_positive: RateChange | None
    false_positive: RateChange | None
    equalized_odds: EqualizedOdds | None

    def to_json(self) -> dict[str, Any]:
        """Give plain lists, dicts, numbers and strings."""
        return dict(plain(self))


def summarize_outcomes(
    tables: OutcomeTable | Sequence[OutcomeTable] | ArrayLike,
    names: Sequence[str],
    rng: SimulationRandomness,
    *,
    other: OutcomeTable | Sequence[OutcomeTable] | ArrayLike | None = None,
    other_name: str = "other rows",
    group: str = "group",
    min_group: int = 30,
    confidence: float = 0.95,
    resamples: int = 2000,
    noise: TableNoise | None = None,
    other_noise: TableNoise | None = None,
) -> OutcomeSummary:
    """Say what pruning did to demographic parity and equalised odds, with intervals.

    Arguments are those of `summarize`, of outcome tables; `min_group` counts the rows that a rate
    is taken over: of label 1 for true positives, of label 0 for false positives. A rate that has
    no two groups with such rows is None; the others are reported.

    Raises:
        FairnessError: if there are no rows, fewer than two groups have rows, names or `other` do
            not fit the tables or an option is out of range.
    """
    stack = stack_outcomes(tables, noisy=noise is not None)
    elsewhere = None if other is None else stack_outcomes(other, noisy=other_noise is not None)
    _check_groups(stack, elsewhere, names)
    found: dict[str, RateChange] = {}
    samples: dict[str, Sample] = {}
    for rate in JUDGED:
        cells = RATES[rate][1]
        added = None if noise is None else noise.times(cells)
        counts = rate_tables(stack, rate)
        if rate != "selection" and (counts.sum(axis=(0, 2, 3)) > 0).sum() < 2:
            continue
        found[rate] = _rate_change(
            rate,
            summarize(
                counts,
                names,
                rng.stream(rate),
                other=None if elsewhere is None else rate_tables(elsewhere, rate),
                other_name=other_name,
                group=group,
                min_group=min_group,
                confidence=confidence,
                resamples=resamples,
                noise=added,
                other_noise=None if other_noise is None else other_noise.times(cells),
            ),
        )
        if rate != "selection":
            samples[rate] = draw_sample(
                counts, min_group, confidence, resamples, rng.stream(rate), added
            )
    odds = _equalized_odds(found, samples, stack if elsewhere is None else elsewhere, names)
    true_positive, false_positive = found.get("true positive"), found.get("false positive")
    return OutcomeSummary(group, found["selection"], true_positive, false_positive, odds)


def _check_groups(stack: Counts, elsewhere: Counts | None, names: Sequence[str]) -> None:
    check_names(names, stack.shape[1])
    if elsewhere is not None:
        check_other(stack.shape[1], elsewhere.shape[1])


def _rate_change(rate: str, found: FairnessSummary) -> RateChange:
    return RateChange(
        rate=rate,
        groups=tuple(
            GroupRate(
                name=group.name,
                rows=group.rows,
                too_small=group.too_small,
                dense=group.accuracy_dense,
                pruned=group.accuracy_pruned,
                interval_dense=group.interval_dense,
                interval_pruned=group.interval_pruned,
            )
            for group in found.groups
        ),
        difference_dense=found.gap_dense,
        difference_pruned=found.gap_pruned,
        change=found.gap_change,
        pair=found.pair,
        dense_by_chance=found.gap_dense_by_chance,
        pruned_by_chance=found.gap_pruned_by_chance,
        resampled=found.resampled,
        conditional_on=found.conditional_on,
        interval_dense=found.gap_dense_interval,
        interval_pruned=found.gap_pruned_interval,
    )


def _equalized_odds(
    found: dict[str, RateChange],
    samples: dict[str, Sample],
    chosen_on: Counts,
    names: Sequence[str],
) -> EqualizedOdds | None:
    rates = [found[rate] for rate in samples]
    dense = [one.difference_dense for one in rates if one.difference_dense is not None]
    pruned = [one.difference_pruned for one in rates if one.difference_pruned is not None]
    if len(dense) < 2 or len(pruned) < 2:
        return None
    followed = max(rates, key=lambda one: _difference_elsewhere(one, chosen_on, names))
    if followed.pair is None:
        return None
    return EqualizedOdds(
        difference_dense=max(dense),
        difference_pruned=max(pruned),
        change=max(pruned) - max(dense),
        followed_rate=followed.rate,
        pair=followed.pair,
        interval_dense=_larger_difference(samples, 0),
        interval_pruned=_larger_difference(samples, 1),
    )


def _larger_difference(samples: dict[str, Sample], model: int) -> Interval:
    """Cover the larger of both rates' differences, of one model: 0 dense, 1 pruned."""
    each = [
        gap_interval(replace(sample, confidence=(1 + sample.confidence) / 2), model)
        for sample in samples.values()
    ]
    return Interval(max(one.low for one in each), max(one.high for one in each))


def _difference_elsewhere(change: RateChange, chosen_on: Counts, names: Sequence[str]) -> float:
    """How far apart the followed pair's pruned rates are where the pair was chosen."""
    if change.pair is None:
        return 0.0
    total = rate_tables(chosen_on, change.rate).sum(axis=0)
    codes = [list(names).index(name) for name in (change.pair.best, change.pair.worst)]
    shares = [total[code, :, 1].sum() / max(1, total[code].sum()) for code in codes]
    return float(np.subtract(*shares))
