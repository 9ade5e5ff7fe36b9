"""The smallest model whose unfairness surely stays under a tolerance.

The gap is not monotone in the keep fraction, so neither bisection nor "the smallest that passes"
is valid: the more candidates are looked at, the likelier one passes by luck. Fixed-sequence testing
looks at them in an order fixed beforehand, each at the full level, and stops at the first that
fails; the chance of accepting any candidate beyond the tolerance is at most the level (Maurer,
Hothorn & Lehmacher 1995; Angelopoulos, Bates, Candes, Jordan & Lei 2021, "Learn then test",
section 3.2).

One candidate is tested with every ordered pair of groups: the gap grows by more than the tolerance
only if some pair's difference does, since the pair that is furthest apart after pruning was at most
the gap apart before. Rejecting "this pair grew by more" for every pair, each at the full level,
therefore bounds the gap's change with no correction for their number (intersection-union, Berger
1982) and no bias from picking the largest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_names, check_resampling, is_whole
from fedprune.fairness.changes import Change, difference_change
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.sample import Sample, draw_sample
from fedprune.fairness.tables import GroupTable, stack_tables
from fedprune.randomness import SimulationRandomness

MOST_GROUPS = 64  # every ordered pair of them is tested


@dataclass(frozen=True)
class GapTest:
    """Whether the gap grew by less than a tolerance.

    Attributes:
        p_value: of "it grew by the tolerance or more".
        upper_limit: one-sided limit of the change of the gap at the confidence asked for; it is
            below the tolerance exactly where p_value < 1 - confidence.
        left_out: names of groups too small to be tested; nothing is known of them.
    """

    p_value: float
    upper_limit: float
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class KeepChoice:
    """What fixed-sequence testing accepted.

    Attributes:
        keep: the smallest accepted keep fraction; None where not even the first was accepted.
        accepted: accepted keep fractions, in the order tested.
        stopped_at: the first that was not accepted; None where all were.
        level: chance of accepting any candidate beyond the tolerance.
    """

    keep: float | None
    accepted: tuple[float, ...]
    stopped_at: float | None
    level: float


def gap_test(
    tables: GroupTable | Sequence[GroupTable] | ArrayLike,
    names: Sequence[str],
    rng: SimulationRandomness,
    *,
    tolerance: float,
    pair: tuple[int, int] | None = None,
    min_group: int = 30,
    confidence: float = 0.95,
    resamples: int = 2000,
    noise: TableNoise | None = None,
) -> GapTest:
    """Test whether the gap between groups grew by less than `tolerance` from dense to pruned.

    Args:
        tables: one table a client, or [num_clients, num_groups, 2, 2] counts.
        names: [num_groups] what the groups are called.
        rng: names the stream that resamples.
        tolerance: growth of the gap that is too much, in accuracy (0.02 = 2 points).
        pair: codes (best, worst) fixed on other rows, to bound that difference alone; every
            ordered pair where it is not given.
        min_group: groups with fewer rows, at least 2, are left out.
        confidence: of the upper limit.
        resamples: paired bootstrap resamples.
        noise: what clients added to every cell; None where counts are exact.

    Raises:
        FairnessError: if fewer than two groups, or a group of the pair, have rows enough, there
            are too many groups, names do not fit the tables or an option is out of range.
    """
    _check(tolerance, confidence)
    check_resampling(min_group, resamples)
    stack = stack_tables(tables, noisy=noise is not None)
    check_names(names, stack.shape[1])
    sample = draw_sample(stack, min_group, confidence, resamples, rng, noise)
    pairs = _pairs(sample, pair)
    changes = [difference_change(sample, best, worst) for best, worst in pairs]
    left_out = set(range(len(names))) - {int(code) for code in sample.shown}
    return GapTest(
        p_value=max(_p_value(change, tolerance, confidence) for change in changes),
        upper_limit=max(_upper_limit(change, confidence) for change in changes),
        left_out=tuple(names[code] for code in sorted(left_out)),
    )


def choose_keep(
    keep_fractions: Sequence[float], p_values: Sequence[float], *, level: float = 0.05
) -> KeepChoice:
    """Accept keep fractions from the largest down until one fails its test.

    The candidates, and their order, must not depend on the rows that the p-values come from.

    Args:
        keep_fractions: [candidates] in (0, 1], strictly falling.
        p_values: [candidates] of "the gap grew by the tolerance or more"; candidates after the
            first that fails are not looked at, and may be NaN where they were not measured.
        level: of the test, in (0, 1).

    Raises:
        FairnessError: if lengths differ or are zero, the order is another or a number that is
            looked at is out of range.
    """
    keeps = [float(keep) for keep in keep_fractions]
    if not keeps or len(keeps) != len(p_values):
        raise FairnessError(
            f"every keep fraction needs its p-value, got {len(keeps)} and {len(p_values)}"
        )
    if not all(0 < keep <= 1 for keep in keeps) or any(
        later >= earlier for earlier, later in itertools.pairwise(keeps)
    ):
        raise FairnessError(f"keep fractions must fall strictly within (0, 1], got {keeps}")
    if not 0 < level < 1:
        raise FairnessError(f"level must be in (0, 1), got {level}")
    accepted: list[float] = []
    for keep, p_value in zip(keeps, p_values, strict=True):
        if not 0 <= p_value <= 1:
            raise FairnessError(f"the p-value at keep {keep:g} must be in [0, 1], got {p_value}")
        if p_value > level:
            return KeepChoice(accepted[-1] if accepted else None, tuple(accepted), keep, level)
        accepted.append(keep)
    return KeepChoice(accepted[-1], tuple(accepted), None, level)


def _pairs(sample: Sample, pair: tuple[int, int] | None) -> list[tuple[int, int]]:
    shown = [int(code) for code in sample.shown]
    if pair is not None:
        if not _is_pair(pair, shown):
            raise FairnessError(
                f"pair must be two of the groups with rows enough, {shown}, got {pair}"
            )
        return [(int(pair[0]), int(pair[1]))]
    if not 2 <= len(shown) <= MOST_GROUPS:
        raise FairnessError(
            f"testing the gap needs 2 to {MOST_GROUPS} groups with rows enough, got {len(shown)}"
        )
    return list(itertools.permutations(shown, 2))


def _is_pair(pair: object, shown: list[int]) -> bool:
    if not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2 or pair[0] == pair[1]:
        return False
    return all(is_whole(code) and code in shown for code in pair)


def _p_value(change: Change, tolerance: float, confidence: float) -> float:
    distance, error = tolerance - change.value - change.allowance, change.error
    least = change.shares.tail(tolerance - change.value, upward=True)
    if error == 0:
        # Every row followed its group; the allowance covers what hid at its own level, no more.
        return max(least, 1.0 if distance <= 0 else (1 - confidence) / 2)
    return max(least, float(stats.t.sf(distance / error, change.independent - 1)))


def _upper_limit(change: Change, confidence: float) -> float:
    quantile = float(stats.t.isf(1 - confidence, change.independent - 1))
    reach = change.shares.reach(float(stats.norm.isf(1 - confidence)), upward=True)
    resampled = change.allowance + quantile * change.error
    return min(change.limit, change.value + max(resampled, reach))


def _check(tolerance: float, confidence: float) -> None:
    if not 0 <= tolerance <= 2:
        raise FairnessError(f"tolerance must be in [0, 2], got {tolerance}")
    if not 0.5 < confidence < 1:
        raise FairnessError(f"confidence must be in (0.5, 1), got {confidence}")
