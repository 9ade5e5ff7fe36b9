"""A lower bound on epsilon from draws in two neighbouring worlds.

If a mechanism is (epsilon, delta)-differentially private, every event has
P[event | world] <= e^epsilon P[event | other] + delta. With Clopper-Pearson limits at alpha/2 each,
    epsilon_hat = ln((TPR_low - delta) / FPR_high)
exceeds the true epsilon with probability at most alpha (Jagielski, Ullman & Oprea 2020), provided
that the event was fixed before the draws that it is counted on.

Where the worlds are mirror images, the mirrored event is counted in the exchanged worlds and both
counts are added: the mean of the two inequalities above is an inequality about mean probabilities,
and a sum of independent trials with unequal probabilities has lighter tails than the binomial with
their mean (Hoeffding 1956, Theorem 4), so that the limits still hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.empirical.limits import check_level, lower_limit, upper_limit
from fedprune.privacy.empirical.outcome import TestOutcome

Statistics: TypeAlias = NDArray[np.float64]
Sampler: TypeAlias = Callable[[int], Statistics]

_CHUNK = 20_000
_SMALLEST_P = 1e-30
_CANDIDATES = 64


@dataclass(frozen=True)
class EventCounts:
    """How often an event came in each of two neighbouring worlds.

    Attributes:
        hits, draws: in the world that makes the event likely.
        false_hits, false_draws: in the other one.
        event: the event, in words, and how it was chosen.
        mirrored: whether its mirror image in the exchanged worlds is counted too.
    """

    hits: int
    draws: int
    false_hits: int
    false_draws: int
    event: str
    mirrored: bool = False

    @property
    def num_draws(self) -> int:
        """Draws in both worlds; a mirrored event is counted on each of them twice."""
        return self.draws if self.mirrored else self.draws + self.false_draws

    def epsilon_lower(self, *, alpha: float = 0.05, delta: float = 0.0) -> float:
        """Bound epsilon from below; 0 where the draws show nothing.

        Args:
            alpha: probability, at most, that the bound lies above the true epsilon.
            delta: of the (epsilon, delta) in question.

        Raises:
            PrivacyError: if alpha is not in (0, 1) or delta not in [0, 1).
        """
        check_level(alpha, delta)
        if self.hits < 2:  # a sum of two unequal binomials needs two for its lower limit
            return 0.0
        true = lower_limit(self.hits, self.draws, alpha / 2) - delta
        false = upper_limit(self.false_hits, self.false_draws, alpha / 2)
        return max(0.0, math.log(true / false)) if true > 0 else 0.0

    def test_claim(
        self, claimed: float, *, delta: float = 0.0, name: str = "two worlds"
    ) -> TestOutcome:
        """Test that epsilon is at most `claimed`; the p-value is the smallest alpha that rejects.

        The figure found is the ratio's logarithm as it was counted, without its uncertainty.
        """
        return TestOutcome(
            test=name,
            claim=f"epsilon is at most {claimed:g}",
            claimed=claimed,
            found=self.observed(delta),
            p_value=_smallest_alpha(self, claimed, delta),
            draws=self.num_draws,
            detail=f"{self.hits:,} of {self.draws:,} against {self.false_hits:,} of "
            f"{self.false_draws:,}; event: {self.event}",
        )

    def observed(self, delta: float = 0.0) -> float:
        """Logarithm of the counted ratio; infinite where the other world never had the event."""
        true = self.hits / self.draws - delta
        if true <= 0:
            return 0.0
        return math.log(true * self.false_draws / self.false_hits) if self.false_hits else math.inf


def two_worlds(
    world: Sampler,
    other: Sampler,
    *,
    draws: int,
    threshold: float | None = None,
    mirrored: bool = False,
    alpha: float = 0.05,
    delta: float = 0.0,
    choosing_share: float = 0.2,
) -> EventCounts:
    """Draw a decision statistic in two neighbouring worlds and count {statistic >= threshold}.

    Args:
        world: draws `count` independent statistics, [count] float64, large where they speak for
            this world.
        other: the same in the neighbouring world.
        draws: in each world.
        threshold: of the event, fixed beforehand; None chooses the one with the largest bound on
            the first `choosing_share` of the draws, which are then not counted.
        mirrored: also count {statistic <= -threshold} with the worlds exchanged.
        alpha: error level that a threshold is chosen for.
        delta: of the claim that a threshold is chosen for.
        choosing_share: share of the draws that a threshold is chosen on.

    Raises:
        PrivacyError: if there are no draws, or the share leaves none for choosing or counting.
    """
    check_level(alpha, delta)
    if draws < 1:
        raise PrivacyError(f"an audit needs at least one draw in each world, got {draws!r}")
    ours, theirs = _drawn(world, draws), _drawn(other, draws)
    how = "fixed beforehand"
    if threshold is None:
        first = int(draws * choosing_share)
        if not 1 <= first < draws:
            raise PrivacyError(
                f"choosing_share must leave draws for choosing and counting, got {choosing_share!r}"
            )
        threshold = best_threshold(
            ours[:first], theirs[:first], mirrored=mirrored, alpha=alpha, delta=delta
        )
        ours, theirs = ours[first:], theirs[first:]
        how = f"chosen on {first:,} other draws a world"
    counts = count_event(ours, theirs, threshold, mirrored=mirrored)
    return replace(counts, event=f"{counts.event}, {how}")


def count_event(
    ours: Statistics, theirs: Statistics, threshold: float, *, mirrored: bool = False
) -> EventCounts:
    """Count {statistic >= threshold} in statistics of two worlds, [n] and [m] float64."""
    hits, draws = int((ours >= threshold).sum()), len(ours)
    false_hits, false_draws = int((theirs >= threshold).sum()), len(theirs)
    event = f"statistic >= {threshold:g}"
    if mirrored:
        hits, draws = hits + int((theirs <= -threshold).sum()), draws + len(theirs)
        false_hits += int((ours <= -threshold).sum())
        false_draws += len(ours)
        event += ", and its mirror image with the worlds exchanged"
    return EventCounts(hits, draws, false_hits, false_draws, event, mirrored)


def best_threshold(
    ours: Statistics,
    theirs: Statistics,
    *,
    mirrored: bool = False,
    alpha: float = 0.05,
    delta: float = 0.0,
) -> float:
    """Choose, among quantiles of all statistics, the threshold whose bound is the largest.

    The bound itself must then be counted on other draws.
    """
    everything = np.concatenate([ours, theirs, *([-ours, -theirs] if mirrored else [])])
    candidates = np.unique(np.quantile(everything, np.linspace(0, 1, _CANDIDATES), method="lower"))
    if mirrored and (candidates > 0).any():
        candidates = candidates[candidates > 0]

    def bound(threshold: float) -> float:
        counts = count_event(ours, theirs, threshold, mirrored=mirrored)
        return counts.epsilon_lower(alpha=alpha, delta=delta)

    return float(max(candidates, key=bound))


def _drawn(sampler: Sampler, draws: int) -> Statistics:
    sizes = [min(_CHUNK, draws - start) for start in range(0, draws, _CHUNK)]
    return np.concatenate([np.asarray(sampler(size), dtype=np.float64) for size in sizes])


def _smallest_alpha(counts: EventCounts, claimed: float, delta: float) -> float:
    """Bisect for the level from which the bound exceeds the claim; rounded up."""
    low, high = math.log(_SMALLEST_P), math.log(0.999)
    if counts.epsilon_lower(alpha=math.exp(high), delta=delta) <= claimed:
        return 1.0
    if counts.epsilon_lower(alpha=math.exp(low), delta=delta) > claimed:
        return _SMALLEST_P
    while high - low > 1e-6:
        middle = (low + high) / 2
        rejects = counts.epsilon_lower(alpha=math.exp(middle), delta=delta) > claimed
        low, high = (low, middle) if rejects else (middle, high)
    return math.exp(high)
