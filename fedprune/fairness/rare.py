"""Changes so rare that resamples say too little of them.

Where pruning changed k of a group's rows and k is small, every resample is made of those k: none
shows what k rows more would have done, and the spread of the resamples, about sqrt(k), is that of
a k that may have been lucky. With 1 row lost of 100 a true share of 4 % is no surprise (Poisson,
P[at most 1 | 4] = 0.09), yet no percentile of resamples reaches it.

Wilson's interval of a single share does not suffer from this. A difference of several shares of
disjoint rows has an interval too: the distances of Wilson's limits from the shares, added in
squares (the method of variance estimates recovery, Zou & Donner 2008; Newcombe 1998). Changes that
come by clients count as fewer rows than they are, for two clients that lost all say little of how
many clients do: as many that their binomial variance is that of the resamples (the effective
number, Korn & Graubard 1998). It is used as the least width that an interval may have. Where
changes are many it agrees with the resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from fedprune.fairness.counting import Counts

_FARTHEST = 38.0  # standard deviations: the chance beyond is below the smallest float


@dataclass(frozen=True)
class Share:
    """`weight` times `count` of `rows` rows, a part of a difference.

    `effective` is how many independent rows would say as much; all of them where it is not given.
    """

    weight: float
    count: float
    rows: float
    effective: float | None = None

    def distance(self, deviations: float, upward: bool) -> float:
        """How far Wilson's limit lies from the share, times the weight's size."""
        n, square = self.effective or self.rows, deviations**2
        share = self.count / self.rows
        half = deviations * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
        shift = (0.5 - share) * square / n
        away = half + shift if upward == (self.weight > 0) else half - shift
        return abs(self.weight) * max(0.0, away) / (1 + square / n)


@dataclass(frozen=True)
class Shares:
    """A sum of weighted shares of disjoint rows.

    Attributes:
        parts: the shares.
        noise_variance: of every count.
    """

    parts: tuple[Share, ...]
    noise_variance: float = 0.0

    def reach(self, deviations: float, *, upward: bool) -> float:
        """How far the sum may be off in one direction, at so many standard deviations."""
        squares = sum(one.distance(deviations, upward) ** 2 for one in self.parts)
        return math.sqrt(squares + self.variance_of_noise() * deviations**2)

    def variance_of_noise(self) -> float:
        """What noise in the counts adds to the variance of the sum."""
        return self.noise_variance * sum((one.weight / one.rows) ** 2 for one in self.parts)

    def tail(self, distance: float, *, upward: bool) -> float:
        """One-sided p-value of the sum being off by `distance` or more."""
        if distance <= 0:
            return 1.0
        if self.reach(_FARTHEST, upward=upward) <= distance:
            return 0.0
        found = optimize.brentq(
            lambda deviations: self.reach(deviations, upward=upward) - distance, 0.0, _FARTHEST
        )
        return float(stats.norm.sf(found))

    def binomial_variance(self) -> float:
        """Variance of the sum, were all rows independent."""
        return sum(
            one.weight**2 * (one.count / one.rows) * (1 - one.count / one.rows) / one.rows
            for one in self.parts
        )

    def with_effect(self, effect: float) -> Shares:
        """Let every row count as 1 / `effect` independent ones."""
        parts = tuple(replace(one, effective=one.rows / effect) for one in self.parts)
        return replace(self, parts=parts)


def net_change(cells: Counts, weight: float, effective: float | None = None) -> tuple[Share, ...]:
    """Weighted shares whose sum is pruned minus dense accuracy of [2, 2] counts, if they count."""
    rows = float(cells.sum())
    if rows <= 0:
        return ()
    gained, lost = (float(np.clip(count, 0, rows)) for count in (cells[0, 1], cells[1, 0]))
    return Share(weight, gained, rows, effective), Share(-weight, lost, rows, effective)
