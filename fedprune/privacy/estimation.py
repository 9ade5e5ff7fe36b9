"""From reports to votes: streaming sums, unbiased means, exact variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ReportError

Counts: TypeAlias = Literal["expected", "observed"]


@dataclass(frozen=True)
class VoteEstimate:
    """An unbiased estimate, per unit, of the share of clients that keep it.

    Attributes:
        mean: [num_units] float64, in [0, 1] up to noise.
        variance: [num_units] float64, of that mean given the clients' masks.
        num_reports: how many reports went in.
        method: in words, what the expectation and the variance are conditional on.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    num_reports: int
    method: str


@dataclass(frozen=True)
class VoteSums:
    """Sums over reports; they add up over clients and need memory O(num_units) only.

    Attributes:
        signed: [num_blocks, block_units] int64, sum of the +-1 bits received.
        received: [num_blocks] int64, reports received about each block.
        num_units: d; the last block may reach past it.
    """

    signed: NDArray[np.int64]
    received: NDArray[np.int64]
    num_units: int

    @staticmethod
    def empty(num_units: int, num_blocks: int, block_units: int) -> VoteSums:
        """Sums over no reports."""
        signed = np.zeros((num_blocks, block_units), dtype=np.int64)
        return VoteSums(signed, np.zeros(num_blocks, dtype=np.int64), num_units)

    def plus(self, blocks: NDArray[np.int64], bits: NDArray[np.bool_]) -> VoteSums:
        """Add decoded reports: [count] block numbers and [count, block_units] bits."""
        signed = self.signed.copy()
        np.add.at(signed, blocks, np.where(bits, 1, -1))
        received = self.received + np.bincount(blocks, minlength=len(self.received))
        return VoteSums(signed, received, self.num_units)

    def __add__(self, other: VoteSums) -> VoteSums:
        """Merge the sums of two disjoint sets of reports."""
        return VoteSums(self.signed + other.signed, self.received + other.received, self.num_units)

    @property
    def num_reports(self) -> int:
        """Reports summed so far."""
        return int(self.received.sum())

    def estimate(self, gain: float, *, counts: Counts) -> VoteEstimate:
        """Debias the sums with the mechanism's gain c.

        With `counts = "expected"` each block's sum is divided by the n / B reports expected of
        it: unbiased without conditions, variance (B / c^2 - 1) / (4 n) for fixed masks. With
        "observed" it is divided by the reports that came: unbiased given those counts, and with
        the variance smaller where clients agree: (1 / c^2 - (2p - 1)^2) / (4 n_b), estimated
        from the bits' own spread and kept within its possible range. A block that nobody spoke
        about keeps 1/2 with the variance of a single report.

        Raises:
            ReportError: if there is no report.
        """
        if not self.num_reports:
            raise ReportError("votes need at least one report, got none")
        by_block = self._expected(gain) if counts == "expected" else self._observed(gain)
        mean, variance = (part.reshape(-1)[: self.num_units] for part in by_block)
        method = {
            "expected": "unbiased over the clients' draws of blocks and bits",
            "observed": "unbiased given how many reports came about each block",
        }[counts]
        return VoteEstimate(mean, variance, self.num_reports, method)

    def _expected(self, gain: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        blocks, reports = len(self.received), self.num_reports
        mean = 0.5 + blocks * self.signed / (2.0 * reports * gain)
        variance = (blocks / gain**2 - 1.0) / (4.0 * reports)
        return mean, np.full_like(mean, variance)

    def _observed(self, gain: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        count = np.maximum(self.received, 1)[:, None].astype(np.float64)
        average = self.signed / count
        spread = (1.0 - average**2) * count / np.maximum(count - 1.0, 1.0)
        smallest = 1.0 - gain**2  # the spread of a bit on which all clients agree
        spread = np.where(count > 1.0, np.clip(spread, smallest, 1.0), 1.0)
        return 0.5 + average / (2.0 * gain), spread / (4.0 * gain**2 * count)
