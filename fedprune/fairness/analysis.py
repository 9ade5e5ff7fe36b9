"""From a stack of client tables to gaps, excess losses and their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_names, check_other, check_resampling
from fedprune.fairness.changes import difference_change, excess_loss, overall_change
from fedprune.fairness.counting import Counts, as_codes
from fedprune.fairness.intervals import Interval, exact_mcnemar, holm
from fedprune.fairness.method import describe_condition, describe_method, describe_resampled
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.sample import Sample, accuracies, accuracy_interval, draw_sample
from fedprune.fairness.simultaneous import excess_intervals, gap_by_chance, gap_interval
from fedprune.fairness.spread import client_spread
from fedprune.fairness.summary import (
    AccuracyChange,
    FairnessSummary,
    GroupResult,
    PairChange,
    WorstGroup,
)
from fedprune.fairness.tables import GroupTable, stack_tables
from fedprune.randomness import SimulationRandomness

PRIOR_ROWS = 10  # rows by which a small group's accuracy is drawn to the overall one in a choice


def summarize(
    tables: GroupTable | Sequence[GroupTable] | ArrayLike,
    names: Sequence[str],
    rng: SimulationRandomness,
    *,
    other: GroupTable | Sequence[GroupTable] | ArrayLike | None = None,
    other_name: str = "other rows",
    group: str = "group",
    min_group: int = 30,
    confidence: float = 0.95,
    resamples: int = 2000,
    noise: TableNoise | None = None,
    other_noise: TableNoise | None = None,
) -> FairnessSummary:
    """Say what pruning did to each group, with intervals, from counts alone.

    With at least 30 clients whole clients are resampled; with fewer, or where a group has rows on
    fewer than 10 of them, records within each client, and the conclusion is conditional on them.

    Args:
        tables: one table a client, or [num_clients, num_groups, 2, 2] counts.
        names: [num_groups] what the groups are called.
        rng: names the stream that resamples; the same stream gives the same intervals.
        other: tables of other rows, on which the pair of groups to follow is chosen. Without
            them the pair is chosen on the very rows it is judged on, and the result says so.
        other_name: what to call those rows, as in "validation rows".
        group: what divides the rows, as in "class" or "sex".
        min_group: groups with fewer rows, at least 2, are named as too small and get no figure.
        confidence: of every interval, in (0, 1).
        resamples: paired bootstrap resamples.
        noise: what clients added to every cell of their tables; None where counts are exact. Every
            interval then allows for it, and a group is shown only where it surely has its rows.
        other_noise: the same for `other`.

    Raises:
        FairnessError: if there are no rows, noise hides how many there are, fewer than two groups
            have rows, names do not fit the tables or an option is out of range.
    """
    stack = stack_tables(tables, noisy=noise is not None)
    _check(stack.sum(axis=0), names, confidence, resamples, min_group, noise is not None)
    sample = draw_sample(stack, min_group, confidence, resamples, rng, noise)
    pair = _follow_pair(sample, names, other, other_name, other_noise)
    dense, pruned = sample.shares(sample.total)
    enough = len(sample.shown) >= 2
    chance = gap_by_chance(sample) if enough else (None, None)
    gap_dense, gap_pruned = _gap(dense, sample), _gap(pruned, sample)
    return FairnessSummary(
        group=group,
        accuracy=_overall(sample),
        groups=_group_results(sample, names),
        gap_dense=gap_dense,
        gap_pruned=gap_pruned,
        gap_change=None if gap_dense is None or gap_pruned is None else gap_pruned - gap_dense,
        pair=pair,
        worst_group_dense=_worst(dense, sample, names),
        worst_group_pruned=_worst(pruned, sample, names),
        clients=client_spread(stack, noise),
        min_group=min_group,
        confidence=confidence,
        resamples=resamples,
        resampled=describe_resampled(sample),
        conditional_on=describe_condition(sample),
        method=describe_method(sample, resamples, min_group, pair, names),
        gap_dense_by_chance=chance[0],
        gap_pruned_by_chance=chance[1],
        gap_dense_interval=gap_interval(sample, 0) if enough else None,
        gap_pruned_interval=gap_interval(sample, 1) if enough else None,
        noise=noise,
    )


def choose_pair(
    table: GroupTable | Sequence[GroupTable] | ArrayLike,
    among: Sequence[int] | None = None,
    *,
    noisy: bool = False,
) -> tuple[int, int]:
    """Choose the two groups to follow: best and worst accuracy of the pruned model on this table.

    Choose on other rows than those the pair is judged on: the largest of many noisy differences
    is too large. So that a tiny group is not chosen by luck, each accuracy is first drawn to the
    overall one as if `PRIOR_ROWS` rows had it. Ties go to the lower index.

    Args:
        table: counts of other rows; client tables are added up.
        among: group codes to choose from; all where it is not given.
        noisy: whether noise was added to the counts; what it makes negative counts as zero.

    Returns:
        The codes (best, worst), which differ.

    Raises:
        FairnessError: if the table has no rows or there are fewer than two groups to choose from.
    """
    total = np.maximum(stack_tables(table, noisy=noisy).sum(axis=0), 0)
    codes = list(range(len(total))) if among is None else as_codes(among, "among").tolist()
    outside = next((code for code in codes if not 0 <= code < len(total)), None)
    if outside is not None:
        raise FairnessError(f"group codes must be from 0 to {len(total) - 1}, got {outside}")
    if len(set(codes)) < 2 or total.sum() == 0:
        raise FairnessError(
            f"choosing a pair needs at least 2 groups and 1 row, got {len(set(codes))} groups "
            f"and {int(total.sum())} rows"
        )
    rows, right = total.sum(axis=(1, 2)), total[:, :, 1].sum(axis=1)
    drawn_in = (right + PRIOR_ROWS * right.sum() / rows.sum()) / (rows + PRIOR_ROWS)
    best = max(codes, key=lambda code: (drawn_in[code], -code))
    worst = min((code for code in codes if code != best), key=lambda code: (drawn_in[code], code))
    return best, worst


def _check(
    total: Counts,
    names: Sequence[str],
    confidence: float,
    resamples: int,
    min_group: int,
    noisy: bool,
) -> None:
    rows = total.sum(axis=(1, 2))
    check_names(names, len(total))
    if rows.sum() <= 0:
        beyond = " beyond their noise" if noisy else ""
        raise FairnessError(f"the tables count zero examples{beyond}: there is nothing to compare")
    if (rows > 0).sum() < 2:
        only = names[int(rows.argmax())]
        raise FairnessError(f"fairness needs rows of at least two groups, got only {only!r}")
    if not 0 < confidence < 1:
        raise FairnessError(f"confidence must be in (0, 1), got {confidence}")
    check_resampling(min_group, resamples)


def _follow_pair(
    sample: Sample,
    names: Sequence[str],
    other: GroupTable | Sequence[GroupTable] | ArrayLike | None,
    other_name: str,
    other_noise: TableNoise | None,
) -> PairChange | None:
    if len(sample.shown) < 2:
        return None
    noisy = (sample.noise if other is None else other_noise) is not None
    elsewhere = sample.total[None] if other is None else stack_tables(other, noisy=noisy)
    check_other(len(sample.total), elsewhere.shape[1])
    best, worst = choose_pair(elsewhere, [int(code) for code in sample.shown], noisy=noisy)
    dense, pruned = sample.shares(sample.total)
    change = difference_change(sample, best, worst)
    same = "the same rows, so the difference itself is biased upward too"
    return PairChange(
        best=names[best],
        worst=names[worst],
        chosen_on=same if other is None else other_name,
        difference_dense=float(dense[best] - dense[worst]),
        difference_pruned=float(pruned[best] - pruned[worst]),
        change=change.value,
        interval=change.interval(sample.confidence),
    )


def _overall(sample: Sample) -> AccuracyChange:
    total, totals = sample.total.sum(axis=0), sample.totals.sum(axis=1)
    (dense, pruned), (dense_draws, pruned_draws) = sample.shares(total), accuracies(totals)
    change = overall_change(sample)
    noise_variance = 2 * len(sample.total) * sample.noise_variance  # wrong, right: 2 cells a group
    options = (change.independent, sample.whole_clients, sample.confidence, noise_variance)
    return AccuracyChange(
        rows=int(total.sum()),
        dense=float(dense),
        pruned=float(pruned),
        interval_dense=accuracy_interval(total.sum(axis=1), dense_draws, *options),
        interval_pruned=accuracy_interval(total.sum(axis=0), pruned_draws, *options),
        change=change.value,
        change_interval=change.interval(sample.confidence),
    )


def _group_results(sample: Sample, names: Sequence[str]) -> tuple[GroupResult, ...]:
    codes = [int(code) for code in sample.shown]
    excess = holm([excess_loss(sample, code).p_value() for code in codes])
    exact = _mcnemar(sample, codes)
    bands = excess_intervals(sample)
    tests = dict(zip(codes, zip(excess, exact, bands, strict=True), strict=True))
    rows = np.maximum(sample.total.sum(axis=(1, 2)), 0)
    return tuple(
        _group_result(sample, code, name, *tests[code])
        if code in tests
        else GroupResult(name, int(rows[code]), int(sample.holders[code]), too_small=True)
        for code, name in enumerate(names)
    )


def _mcnemar(sample: Sample, codes: list[int]) -> list[tuple[float | None, float | None]]:
    """Exact p-values and adjusted ones; None where rows are not independent or counts noisy."""
    if sample.whole_clients or sample.noise is not None:
        return [(None, None)] * len(codes)
    cells = [sample.total[code] for code in codes]
    exact = [exact_mcnemar(int(cell[1, 0]), int(cell[0, 1])) for cell in cells]
    return [(raw, float(adjusted)) for raw, adjusted in zip(exact, holm(exact), strict=True)]


def _group_result(
    sample: Sample,
    code: int,
    name: str,
    p_holm: float,
    mcnemar: tuple[float | None, float | None],
    band: Interval,
) -> GroupResult:
    cells = sample.total[code]
    (dense, pruned), draws = sample.shares(cells), accuracies(sample.totals[:, code])
    excess = excess_loss(sample, code)
    noise_variance = 2 * sample.noise_variance
    options = (excess.independent, sample.whole_clients, sample.confidence, noise_variance)
    return GroupResult(
        name=name,
        rows=int(cells.sum()),
        clients=int(sample.holders[code]),
        too_small=False,
        accuracy_dense=float(dense),
        accuracy_pruned=float(pruned),
        interval_dense=accuracy_interval(cells.sum(axis=1), draws[0], *options),
        interval_pruned=accuracy_interval(cells.sum(axis=0), draws[1], *options),
        excess_loss=excess.value,
        excess_interval=excess.interval(sample.confidence),
        p_holm=float(p_holm),
        mcnemar_p=mcnemar[0],
        mcnemar_p_holm=mcnemar[1],
        excess_simultaneous=band,
    )


def _gap(accuracy: NDArray[np.float64], sample: Sample) -> float | None:
    if len(sample.shown) < 2:
        return None
    shown = accuracy[sample.shown]
    return float(shown.max() - shown.min())


def _worst(
    accuracy: NDArray[np.float64], sample: Sample, names: Sequence[str]
) -> WorstGroup | None:
    if len(sample.shown) < 2:
        return None
    code = int(sample.shown[accuracy[sample.shown].argmin()])
    return WorstGroup(names[code], float(accuracy[code]))
