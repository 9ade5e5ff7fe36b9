"""From reports to votes: streaming sums, unbiased means, exact variances."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.mechanisms.intervals import (
    VoteInterval,
    decided_units,
    normal_bounds,
    share_bounds,
    sub_gaussian_bounds,
)

Counts: TypeAlias = Literal["expected", "observed", "assigned"]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_ENOUGH_BITS = 20

_METHODS: dict[Counts, str] = {
    "expected": "unbiased over the clients' draws of blocks and bits",
    "observed": "unbiased given how many reports came about each block",
    "assigned": "unbiased given the public assignment of clients to blocks",
}


@dataclass(frozen=True)
class Tally:
    """The bits that a vote rests on, where it rests on one mechanism's reports alone.

    Attributes:
        keeps: [num_units] int64, how many of the bits received about a unit said keep.
        received: [num_units] int64, how many bits were received about it.
        gain: the mechanism's c.
    """

    keeps: NDArray[np.int64]
    received: NDArray[np.int64]
    gain: float


@dataclass(frozen=True)
class Pooled:
    """What bounds the error of votes pooled over phases that chose their units adaptively.

    Attributes:
        proxy: [num_units] float64, a sub-Gaussian variance proxy of each pooled mean.
        phases: how many phases a unit may have been asked in.
    """

    proxy: NDArray[np.float64]
    phases: int


@dataclass(frozen=True)
class VoteEstimate:
    """An unbiased estimate, per unit, of the share of clients that keep it.

    Attributes:
        mean: [num_units] float64, in [0, 1] up to noise.
        variance: [num_units] float64, of that mean given the clients' masks.
        num_reports: how many reports went in.
        method: in words, what the expectation and the variance are conditional on.
        tally: the bits themselves, where the votes come from one mechanism's reports.
        pooled: where they are a combination of several estimates.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    num_reports: int
    method: str
    tally: Tally | None = None
    pooled: Pooled | None = None

    def interval(self, confidence: float = 0.95, *, simultaneous: bool = True) -> VoteInterval:
        """Bound every unit's share of keeping clients.

        With a tally the interval holds at any number of reports (see `intervals.share_bounds`)
        for the share among the reporting clients, or among a larger population that they are a
        random sample of; that of pooled phases holds for the latter, whatever rule chose the units
        of each phase. Other estimates get a normal interval.

        Args:
            confidence: probability that all intervals hold at once (Bonferroni over the units,
                which no dependence between the units of a block can break), or that each one
                holds on its own.
            simultaneous: which of the two.

        Raises:
            PrivacyError: if the confidence is not in (0, 1).
        """
        if not 0 < confidence < 1:
            raise PrivacyError(f"confidence must be in (0, 1), got {confidence!r}")
        alpha = (1.0 - confidence) / (len(self.mean) if simultaneous else 1)
        if self.tally is not None:
            low, high = share_bounds(self.tally.keeps, self.tally.received, self.tally.gain, alpha)
            method = "exact tails of a sum of independent bits (Clopper-Pearson or Chernoff)"
        elif self.pooled is not None:
            alpha /= self.pooled.phases
            low, high = sub_gaussian_bounds(self.mean, self.pooled.proxy, alpha)
            method = "Hoeffding's bound for a sum that stops at one of the phases"
        else:
            low, high = normal_bounds(self.mean, self.variance, alpha)
            method = "normal, from the exact variances"
        return VoteInterval(low, high, confidence, simultaneous, method)

    def decided(self, keep_count: int, confidence: float = 0.95) -> NDArray[np.int8]:
        """Say which units are surely in or out of the `keep_count` with the largest shares.

        Returns:
            [num_units] int8: 1 surely among them, -1 surely not, 0 undecided: its interval
            straddles the cut. All statements hold at once with the confidence given.
        """
        bounds = self.interval(confidence, simultaneous=True)
        return decided_units(bounds.low, bounds.high, keep_count)


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
        count = np.bincount(blocks, minlength=len(self.received))
        ones = _ones_by_block(blocks, bits, len(self.received))
        signed = self.signed + 2 * ones - count[:, None]
        return VoteSums(signed, self.received + count, self.num_units)

    def __add__(self, other: VoteSums) -> VoteSums:
        """Merge the sums of two disjoint sets of reports."""
        return VoteSums(self.signed + other.signed, self.received + other.received, self.num_units)

    @property
    def num_reports(self) -> int:
        """Reports summed so far."""
        return int(self.received.sum())

    def tally(self, gain: float) -> Tally:
        """Count, per unit, the bits received and how many said keep."""
        received = np.broadcast_to(self.received[:, None], self.signed.shape)
        keeps = (self.signed + received) // 2
        return Tally(self._by_unit(keeps), self._by_unit(received), gain)

    def estimate(
        self, gain: Fraction | float, *, counts: Counts, population: float | None = None
    ) -> VoteEstimate:
        """Debias the sums with the mechanism's gain c.

        With `counts = "expected"` each block's sum is divided by the n / B reports expected of
        it: unbiased without conditions, variance (B / c^2 - 1) / (4 n) for fixed masks. With
        "observed" or "assigned" it is divided by the n_b reports that came. Those are, given the
        counts, from a random sample of the N clients of the population: the mean is unbiased and
        its variance is (1 / c^2 - 1) / (4 n_b) for the noise and (1 - n_b / N) S^2 / n_b for the
        sampling, with S^2 the clients' variance, estimated without bias from the bits' own spread
        and kept within its possible range; of fewer than 20 bits, too few to weigh votes by, it
        is set to the largest possible. A block that nobody spoke about keeps 1/2 with the variance
        of a single report.

        Args:
            gain: c; exactly, where it is so close to 1 that a float may not say so.
            counts: what the sums are divided by.
            population: N, the clients whose share is meant, of whom those reporting are a random
                sample; None for the reporting clients themselves, `math.inf` for a wider world.

        Raises:
            ReportError: if there is no report.
            PrivacyError: if the population is smaller than the number of reports.
        """
        if not self.num_reports:
            raise ReportError("votes need at least one report, got none")
        clients = float(self.num_reports if population is None else population)
        if not clients >= self.num_reports:
            raise PrivacyError(f"{self.num_reports} reports cannot come from {clients:g} clients")
        expected = counts == "expected"
        mean, variance = self._expected(gain, clients) if expected else self._known(gain, clients)
        return VoteEstimate(
            self._by_unit(mean),
            self._by_unit(variance),
            self.num_reports,
            _METHODS[counts],
            self.tally(float(gain)),
        )

    def _by_unit(self, by_block: NDArray[_Scalar]) -> NDArray[_Scalar]:
        return by_block.reshape(-1)[: self.num_units]

    def _expected(
        self, gain: Fraction | float, clients: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        blocks, reports, c = len(self.received), self.num_reports, float(gain)
        mean = 0.5 + blocks * self.signed / (2.0 * reports * c)
        # A sample of a larger population differs from it by at most S^2 <= N / (4 (N - 1)).
        sampling = (1.0 - reports / clients) / (1.0 - 1.0 / clients) if clients > reports else 0.0
        noise = bit_noise(gain) / c**2  # 1 / c^2 - 1
        variance = (blocks * noise + (blocks - 1.0) + sampling) / (4.0 * reports)
        return mean, np.full_like(mean, variance)

    def _known(
        self, gain: Fraction | float, clients: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        c, noise = float(gain), bit_noise(gain)
        count = np.maximum(self.received, 1)[:, None].astype(np.float64)
        average = self.signed / count
        spread = (1.0 - average**2) * count / np.maximum(count - 1.0, 1.0)
        largest = noise + c**2 * (clients / (clients - 1.0) if 1 < clients < np.inf else 1.0)
        spread = np.where(count >= _ENOUGH_BITS, np.clip(spread, noise, largest), largest)
        total = noise + (1.0 - count / clients) * (spread - noise)
        total = np.where(self.received[:, None] > 0, total, 1.0)
        return 0.5 + average / (2.0 * c), total / (4.0 * c**2 * count)


def bit_noise(gain: Fraction | float) -> float:
    """Give 1 - c^2, the variance of a sent +-1 bit on which all clients agree.

    It is computed in whole numbers and rounded once: with a large epsilon c differs from 1 by
    less than a float can say, and a variance of 0 would make the votes more than they are.

    Args:
        gain: c in (0, 1).

    Returns:
        Above 0 where c is below 1.
    """
    above, below = Fraction(gain).as_integer_ratio()
    return (below * below - above * above) / (below * below)


def _ones_by_block(
    blocks: NDArray[np.int64], bits: NDArray[np.bool_], num_blocks: int
) -> NDArray[np.int64]:
    """Count, per block and place, the bits that are set: [num_blocks, block_units]."""
    if num_blocks == 1:
        return np.asarray(bits.sum(axis=0, dtype=np.int64))[None]
    columns = (np.bincount(blocks, bit, num_blocks) for bit in np.ascontiguousarray(bits.T))
    return np.stack([column.astype(np.int64) for column in columns], axis=1)
