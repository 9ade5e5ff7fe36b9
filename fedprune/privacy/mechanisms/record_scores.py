"""Sums of per-record scores with Gaussian noise: what a client says under trust = "record".

Every record contributes one vector of bounded length, so one record more or less changes a
client's sum by no more than that, and Gaussian noise makes the sum zero-concentrated private (Bun
& Steinke 2016). What is bounded is fixed in public: nothing is clipped to a norm that was read off
the data.

A record's contribution comes from its non-negative scores alone: their fourth roots, centred, then
scaled to length 1. For Taylor scores that is the square root of the gate gradient's size. Without
a root the few units with the largest gradients use up the length; ranks or masks in place of
scores lose what makes one record say more than another. The centring costs nothing, because a
ranking needs differences only. A client says how its records rank the units on the whole, not how
many records it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, ZeroConcentratedEvent
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.estimation import VoteEstimate
from fedprune.privacy.mechanisms.gaussian_noise import MEAN, SIGMA, VARIANCE, gaussian_units
from fedprune.privacy.mechanisms.reports import Report
from fedprune.randomness import Randomness

Vector = NDArray[np.float64]

_ALLOWANCE = 1 - 2.0**-20  # rounding in a length over up to 2^30 units is far below 2^-20
_MOST_UNITS = 2**30
_ROUNDING = 1e-9  # a row whose scores differ by no more than this share says nothing
_BYTES = 8
_SPREAD = 0.25  # of the votes that sums are turned into


@dataclass(frozen=True)
class ScoreEstimate:
    """The mean over clients of their records' summed contributions.

    Attributes:
        mean: [num_units] unbiased; it adds up to about 0 over the units.
        variance: [num_units] of its noise, exactly.
        num_reports: how many clients it rests on.
    """

    mean: Vector
    variance: Vector
    num_reports: int

    def votes(self) -> VoteEstimate:
        """Scale to the range of votes, a spread of 1/4 about 1/2, as a ranking allows.

        Noise counts in the spread, so that what is nothing but noise is a vote of its own size.
        """
        spread = float(np.sqrt(np.mean(self.mean**2)))
        scale = _SPREAD / spread if spread > 0 else 1.0
        return VoteEstimate(
            0.5 + scale * self.mean,
            scale**2 * self.variance,
            self.num_reports,
            "sums of bounded per-record scores, scaled to the range of votes",
        )


@dataclass(frozen=True)
class RecordScores:
    """The mechanism for `num_units` units at a record-level (epsilon, delta).

    Unit of protection: one record. Neighbouring relation: one record added or removed. Trust: the
    client's own device alone.

    Attributes:
        epsilon, delta: what one report guarantees.
        num_units: d, the length of a record's scores.
    """

    epsilon: float
    delta: float
    num_units: int

    def __post_init__(self) -> None:
        """Refuse parameters that promise nothing.

        Raises:
            PrivacyError: if epsilon is not above 0, delta not in (0, 1), or there is no unit.
        """
        whole = isinstance(self.num_units, int) and not isinstance(self.num_units, bool)
        if not whole or not 1 <= self.num_units <= _MOST_UNITS:
            raise PrivacyError(
                f"num_units must be a whole number of at least 1, got {self.num_units!r}"
            )
        if self.length_units < 1:
            raise PrivacyError(
                f"epsilon = {self.epsilon!r} with delta = {self.delta!r} is too small to say "
                "anything about a record"
            )

    @cached_property
    def rho(self) -> Fraction:
        """The zero-concentrated rho of a report, exactly; it means no more than (epsilon, delta).

        A Gaussian of variance s^2 on a query of sensitivity l has rho = l^2 / (2 s^2) (Bun &
        Steinke 2016, Prop. 1.6); both are whole units here.
        """
        return Fraction(self.length_units**2, 2 * SIGMA**2)

    @cached_property
    def length_units(self) -> int:
        """The largest length of a record's contribution, in the units of the noise."""
        budget = Budget.zcdp(self.epsilon, self.delta, ADD_REMOVE_RECORD)
        return math.isqrt(math.floor(2 * filter_of(budget).capacity * SIGMA**2))

    @property
    def event(self) -> ZeroConcentratedEvent:
        """What one report releases about one client's records."""
        nearest = float(self.rho)
        return ZeroConcentratedEvent(
            nearest if Fraction(nearest) >= self.rho else math.nextafter(nearest, math.inf)
        )

    @property
    def report_bytes(self) -> int:
        """Size of every report, in bytes."""
        return _BYTES * self.num_units

    @property
    def variance_per_client(self) -> float:
        """Variance of the noise in one client's sum, whose records contribute length 1 each."""
        return VARIANCE / self.length_units**2

    # The client's side.

    def contributions(self, scores: ArrayLike) -> NDArray[np.int64]:
        """Give each record's bounded contribution, in units.

        Args:
            scores: [num_records, num_units] non-negative.

        Returns:
            [num_records, num_units] int64; every row's length is at most `length_units`, exactly.
            A row that is not finite and non-negative, or is the same everywhere, is zero.

        Raises:
            ReportError: if the scores have another width.
        """
        rows = np.asarray(scores, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.num_units:
            raise ReportError(
                f"a record must have {self.num_units} scores, got an array of shape "
                f"{list(rows.shape)}"
            )
        usable = (np.isfinite(rows) & (rows >= 0)).all(axis=1, keepdims=True)
        roots = np.sqrt(np.sqrt(np.where(usable, rows, 0.0)))
        centred = roots - roots.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        says = lengths > _ROUNDING * np.linalg.norm(roots, axis=1, keepdims=True)
        scale = self.length_units * _ALLOWANCE / np.where(says, lengths, np.inf)
        units: NDArray[np.int64] = np.trunc(centred * scale).astype(np.int64)
        return units

    def randomize(self, scores: ArrayLike, rng: Randomness) -> Report:
        """Draw one client's report from its records' scores, [num_records, num_units].

        Raises:
            ReportError: if the scores have another width.
        """
        return self.randomize_sum(self.contributions(scores).sum(axis=0), rng)

    def randomize_sum(self, total: NDArray[np.int64], rng: Randomness) -> Report:
        """Draw one client's report from the sum of its records' contributions, [num_units]."""
        noised = total + gaussian_units(self.num_units, rng)
        return Report(noised.astype("<i8").tobytes())

    # The server's side.

    def decode(self, reports: Sequence[Report]) -> NDArray[np.int64]:
        """Read reports: [count, num_units] int64, in units.

        Raises:
            ReportError: for a wrong length.
        """
        for index, report in enumerate(reports):
            if len(report.payload) != self.report_bytes:
                raise ReportError(
                    f"report {index} must have {self.report_bytes} bytes, got {len(report.payload)}"
                )
        raw = b"".join(report.payload for report in reports)
        return np.frombuffer(raw, dtype="<i8").astype(np.int64).reshape(-1, self.num_units)

    def estimate(self, reports: Iterable[Report]) -> ScoreEstimate:
        """Estimate the mean over clients of their records' summed contributions.

        Reports are read one after another, in memory O(num_units), and summed in float64 in their
        order.

        Raises:
            ReportError: if there is no report, or one of the wrong length.
        """
        total, count = np.zeros(self.num_units), 0
        for report in reports:
            total += self.decode([report])[0]
            count += 1
        if not count:
            raise ReportError("an estimate needs at least one report, got none")
        mean = (total / count - MEAN) / self.length_units
        variance = np.full(self.num_units, self.variance_per_client / count)
        return ScoreEstimate(mean, variance, count)
