"""Counts of records in disjoint cells, each with discrete Laplace noise.

A record falls into one cell, so one record more or less changes a table by 1 in l1. A client that
counts no more than `capacity` of its records changes its table by no more than twice that, whatever
its data. Added to an integer query of l1 sensitivity s, discrete Laplace noise of scale s/epsilon
is epsilon-differentially private (Ghosh, Roughgarden & Sundararajan 2009; Inusah & Kozubowski
2006 for the distribution). Everything is exact: the scale is a fraction, the noise is sampled
without rounding, and nothing is clamped, so that sums over clients stay unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT, PureEvent
from fedprune.privacy.mechanisms.discrete_gaussian import MAX_DEVIATION, DiscreteLaplace
from fedprune.privacy.mechanisms.reports import Rows
from fedprune.randomness import Randomness

Counts = NDArray[np.int64]

_BYTES = 8
_MOST_CELLS = 2**20
_MOST_RECORDS = 2**40


@dataclass(frozen=True)
class NoisedCounts:
    """The mechanism for tables of `num_cells` counts at one epsilon (delta = 0).

    Unit of protection: one record (add or remove) with `capacity` = 0, else one client (any change
    of its whole data). Trust: the client's own device alone.

    Attributes:
        epsilon: what one table guarantees.
        num_cells: counts in a table.
        capacity: records that a client's table may count at most; 0 protects records, not clients,
            and counts them all.
    """

    epsilon: float
    num_cells: int
    capacity: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters that promise nothing.

        Raises:
            PrivacyError: naming the parameter, its value and what it may be.
        """
        for name, least, most in (("num_cells", 1, _MOST_CELLS), ("capacity", 0, _MOST_RECORDS)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= most:
                raise PrivacyError(
                    f"{name} must be a whole number in [{least}, {most}], got {value!r}"
                )
        PureEvent(self.epsilon)  # refuses what is not above 0 and finite
        least_epsilon = self.sensitivity / (MAX_DEVIATION // 4)
        if self.epsilon < least_epsilon:
            raise PrivacyError(
                f"epsilon must be at least {least_epsilon:g} for a table of counts that one "
                f"{'client' if self.capacity else 'record'} changes by {self.sensitivity}, got "
                f"{self.epsilon!r}"
            )

    @property
    def sensitivity(self) -> int:
        """How much neighbouring data change a table, in l1."""
        return 2 * self.capacity if self.capacity else 1

    @property
    def relation(self) -> str:
        """The neighbouring relation of the guarantee."""
        return REPLACEMENT if self.capacity else ADD_REMOVE_RECORD

    @property
    def event(self) -> PureEvent:
        """What one table releases."""
        return PureEvent(self.epsilon)

    @property
    def scale(self) -> Fraction:
        """Scale t of the noise: P[k] is proportional to exp(-|k| / t)."""
        return Fraction(self.sensitivity) / Fraction(self.epsilon)

    @property
    def variance(self) -> float:
        """Variance of the noise in each cell: 2 q / (1 - q)^2 with q = exp(-1/t)."""
        rate = float(1 / self.scale)
        return 2 * math.exp(-rate) / math.expm1(-rate) ** 2

    @property
    def report_bytes(self) -> int:
        """Size of every table, in bytes."""
        return _BYTES * self.num_cells

    # The client's side.

    def randomize_rows(self, counts: Counts, rngs: Sequence[Randomness]) -> Rows:
        """Noise the tables of many clients, each from its own source.

        Args:
            counts: [num_clients, num_cells], at least 0.
            rngs: a source for every client.

        Returns:
            [num_clients, report_bytes] uint8, what goes on the wire.

        Raises:
            ReportError: if the counts have another shape, are negative, or add up to more records
                than a client's table may count.
        """
        self._check(counts, len(rngs))
        noise = DiscreteLaplace(self.scale).sample(rngs, self.num_cells)
        return (counts + noise).astype("<i8").view(np.uint8).reshape(-1, self.report_bytes)

    def _check(self, counts: Counts, clients: int) -> None:
        if counts.shape != (clients, self.num_cells):
            raise ReportError(
                f"tables must be [{clients}, {self.num_cells}] counts, got shape "
                f"{list(counts.shape)}"
            )
        if (counts < 0).any() or (counts > _MOST_RECORDS).any():
            raise ReportError(f"counts must be in [0, {_MOST_RECORDS}]")
        if self.capacity and (counts.sum(axis=1) > self.capacity).any():
            raise ReportError(
                f"a table may count {self.capacity} records at most, got "
                f"{int(counts.sum(axis=1).max())}"
            )

    # The server's side.

    def decode_rows(self, rows: Rows) -> Counts:
        """Read tables as they came: [num_clients, num_cells], unbiased, negative ones too.

        Raises:
            ReportError: for a wrong length, or a count that no client can have sent.
        """
        if rows.ndim != 2 or rows.dtype != np.uint8 or rows.shape[1] != self.report_bytes:
            raise ReportError(
                f"noised tables must be [count, {self.report_bytes}] uint8, got "
                f"{list(rows.shape)} of {rows.dtype}"
            )
        counts = np.frombuffer(rows.tobytes(), dtype="<i8").astype(np.int64)
        # Noise past 2^40 has a probability below exp(-2^24): whoever sends it did not draw it.
        if ((counts > 2 * _MOST_RECORDS) | (counts < -2 * _MOST_RECORDS)).any():
            raise ReportError("a noised table has a count that no client can have drawn")
        return counts.reshape(len(rows), self.num_cells)
