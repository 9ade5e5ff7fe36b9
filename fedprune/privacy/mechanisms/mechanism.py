"""What every mechanism for mask reports has in common: checks, wire format, sums, estimation.

A mechanism differs from another only in how it draws the bits that a report carries. All of them
send z in {0,1}^m about one block of m units such that a sent +-1 bit is c times the true one in
expectation, so that one estimator serves all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.mechanisms.estimation import Counts, VoteEstimate, VoteSums, bit_noise
from fedprune.privacy.mechanisms.reports import Report, ReportFormat, Rows, in_parts
from fedprune.randomness import Randomness

MIN_EPSILON, MAX_EPSILON = 1e-6, 64.0
_CHUNK_WORDS = 1 << 18  # words that a cohort draws at a time: what a cache holds
_CHUNK_BITS = 1 << 22  # bits that are decoded at a time
_OBSERVED_FROM = 20  # expected reports a block from which counts are conditioned on


class Mechanism(ABC):
    """Draws reports about masks of `num_units` bits and turns reports into unbiased votes.

    Attributes:
        name: as configurations call it.
        epsilon: the stated budget of one report, for the client, under replacement.
        delta: of that statement; 0 for pure epsilon.
        num_units: d, bits of a mask.
        block_units: m, bits that one report speaks about.
        num_blocks: ceil(d / m); the last block is filled with dummy units.
        format: of a report on the wire.
    """

    name: ClassVar[str]

    def __init__(self, epsilon: float, delta: float, num_units: int, block_units: int) -> None:
        """Take parameters that were checked."""
        self.epsilon, self.delta = float(epsilon), float(delta)
        self.num_units, self.block_units = int(num_units), int(block_units)
        self.num_blocks = -(-self.num_units // self.block_units)
        self.format = ReportFormat(self.num_blocks, self.block_units)

    # What a mechanism must say of itself.

    @property
    @abstractmethod
    def agreement_gain(self) -> Fraction:
        """c: the expectation of a sent +-1 bit times the true one."""

    @property
    @abstractmethod
    def pure_epsilon(self) -> float:
        """The largest log-ratio over all outputs of one report: `epsilon` where delta is 0."""

    @abstractmethod
    def _draw(
        self,
        masks: NDArray[np.bool_],
        rngs: Sequence[Randomness],
        blocks: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Draw block numbers [count] and randomised bits [count, block_units] of a small cohort."""

    @property
    @abstractmethod
    def _words_per_client(self) -> int:
        """Random words that a client's report usually takes."""

    # The client's side.

    @property
    def report_bytes(self) -> int:
        """Size of every report, in bytes."""
        return self.format.size

    def randomize(self, mask: ArrayLike, rng: Randomness, block: int | None = None) -> Report:
        """Draw the report of one client's mask, [num_units] bool, about `block` if one is given."""
        blocks = None if block is None else [block]
        return self.randomize_many(np.asarray(mask)[None], [rng], blocks)[0]

    def randomize_many(
        self, masks: ArrayLike, rngs: Sequence[Randomness], blocks: ArrayLike | None = None
    ) -> list[Report]:
        """Draw the reports of many clients, client i from `rngs[i]` alone.

        Args:
            masks: [num_clients, num_units] bool, True = keep.
            rngs: one source of randomness a client; one object may serve several clients.
            blocks: [num_clients] the block each client is asked about; None where every client
                draws its own, uniformly and secretly until it reports.

        Raises:
            ReportError: if the masks have another length than `num_units` or are not boolean, or
                a block does not exist.
        """
        return self.format.split(self.randomize_rows(masks, rngs, blocks))

    def randomize_rows(
        self, masks: ArrayLike, rngs: Sequence[Randomness], blocks: ArrayLike | None = None
    ) -> Rows:
        """Draw what `randomize_many` draws, as one array: [num_clients, report_bytes] uint8."""
        bits = self._checked(masks)
        if len(rngs) != len(bits):
            raise ReportError(f"{len(bits)} masks need as many random sources, got {len(rngs)}")
        asked = None if blocks is None else self._checked_blocks(blocks, len(bits))
        rows = np.empty((len(bits), self.format.size), dtype=np.uint8)
        chunk = max(1, _CHUNK_WORDS // self._words_per_client)
        for start in range(0, len(bits), chunk):
            part = slice(start, start + chunk)
            drawn = self._draw(bits[part], rngs[part], None if asked is None else asked[part])
            rows[part] = self.format.encode_rows(*drawn)
        return rows

    def _checked(self, masks: ArrayLike) -> NDArray[np.bool_]:
        array = np.asarray(masks)
        if array.ndim != 2 or array.shape[1] != self.num_units:
            raise ReportError(
                f"a mask must have {self.num_units} units, got an array of shape {array.shape[1:]}"
            )
        if array.dtype != np.bool_:
            raise ReportError(f"a mask must be boolean, got dtype {array.dtype}")
        return array

    def _checked_blocks(self, blocks: ArrayLike, count: int) -> NDArray[np.int64]:
        array = np.asarray(blocks)
        if array.shape != (count,) or array.dtype.kind not in "iu":
            raise ReportError(
                f"blocks must be {count} whole numbers, one a report, got shape {array.shape} of "
                f"{array.dtype}"
            )
        if array.size and not 0 <= array.min() <= array.max() < self.num_blocks:
            raise ReportError(
                f"a block must be in [0, {self.num_blocks}), got {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)

    # The server's side.

    def new_sums(self) -> VoteSums:
        """Empty sums to which reports are added as they arrive (memory O(d))."""
        return VoteSums.empty(self.num_units, self.num_blocks, self.block_units)

    def add(
        self, sums: VoteSums, reports: Iterable[Report] | Rows, blocks: ArrayLike | None = None
    ) -> VoteSums:
        """Return the sums with further reports added, read in parts of constant size.

        Args:
            sums: what was summed before; it is not changed.
            reports: any iterable of them, or [count, report_bytes] uint8.
            blocks: [count] the block each report must be about, where blocks are assigned.

        Raises:
            ReportError: if a report has the wrong length or impossible content, or speaks about
                another block than the one assigned.
        """
        asked = None if blocks is None else np.asarray(blocks)
        first, chunk = 0, max(1, _CHUNK_BITS // self.block_units)
        for part in in_parts(reports, chunk):
            spoken, bits = self.format.decode(part, first=first)
            if asked is not None:
                _refuse_other_blocks(spoken, asked[first : first + chunk], first)
            sums, first = sums.plus(spoken, bits), first + len(spoken)
        if asked is not None and asked.shape != (first,):
            raise ReportError(f"reports need as many assigned blocks, got {asked.size}")
        return sums

    def estimate_sums(
        self, sums: VoteSums, *, counts: Counts = "expected", population: float | None = None
    ) -> VoteEstimate:
        """Turn sums into unbiased votes; see `VoteSums.estimate`."""
        return sums.estimate(self.agreement_gain, counts=counts, population=population)

    def estimate(
        self, reports: Iterable[Report] | Rows, *, counts: Counts = "expected"
    ) -> VoteEstimate:
        """Estimate, per unit, the share of the reporting clients that keep it.

        Returns:
            mean [num_units] and variance [num_units]; the mean is unbiased.

        Raises:
            ReportError: if there is no report, or one of the wrong length or content.
        """
        return self.estimate_sums(self.add(self.new_sums(), reports), counts=counts)

    # What to expect before anything is asked.

    @property
    def kappa(self) -> float:
        """1 / (m c^2): a vote's variance is at most d * kappa / (4 n)."""
        return 1.0 / (self.block_units * float(self.agreement_gain) ** 2)

    def variance_per_vote(
        self, num_reports: int, *, assigned: bool = False, keep_share: float = 0.5
    ) -> float:
        """Exact variance of one unit's vote over `num_reports` fixed masks.

        Client-drawn blocks, expected counts: (B / c^2 - 1) / (4 n), whatever the masks, since a
        report's part of the mean is B z / c in one block and 0 in the others. Assigned blocks:
        that of the smallest block, n_b = n // B reports from a random sample of all n clients,
        (1 / c^2 - 1) / (4 n_b) + p (1 - p) (n - n_b) / (n_b (n - 1)), largest at p = 1/2.

        Args:
            num_reports: n; where fewer than the blocks are assigned, the value for one a block.
            assigned: whether blocks are assigned instead of drawn by the clients.
            keep_share: p, the share of the clients that keep the unit; matters if assigned.
        """
        if num_reports < 1:
            raise PrivacyError(f"num_reports must be at least 1, got {num_reports!r}")
        noise = bit_noise(self.agreement_gain) / float(self.agreement_gain) ** 2  # 1 / c^2 - 1
        if not assigned:
            return (self.num_blocks * noise + (self.num_blocks - 1)) / (4.0 * num_reports)
        in_block = max(1, num_reports // self.num_blocks)
        others = (num_reports - in_block) / max(1, num_reports - 1)
        return (noise / 4.0 + keep_share * (1.0 - keep_share) * others) / in_block


def check_parameters(epsilon: float, num_units: int, delta: float = 0.0) -> None:
    """Refuse what no mechanism can be made for.

    Raises:
        PrivacyError: if epsilon is not in [1e-6, 64], delta not in [0, 1) or there is no unit.
    """
    if not _is_number(epsilon) or not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise PrivacyError(
            f"epsilon must be in [{MIN_EPSILON:g}, {MAX_EPSILON:g}], got {epsilon!r}"
        )
    if not _is_number(delta) or not 0 <= delta < 1:
        raise PrivacyError(f"delta must be in [0, 1), got {delta!r}")
    if not _is_number(num_units) or not math.isfinite(num_units):
        raise PrivacyError(f"num_units must be a whole number of at least 1, got {num_units!r}")
    if num_units != int(num_units) or num_units < 1:
        raise PrivacyError(f"num_units must be a whole number of at least 1, got {num_units!r}")


def counts_for(mechanism: Mechanism, num_reports: int, *, assigned: bool = False) -> Counts:
    """Choose how votes are debiased: on known counts, or where every block surely gets many."""
    if assigned:
        return "assigned"
    many = num_reports >= _OBSERVED_FROM * mechanism.num_blocks
    return "observed" if many else "expected"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _refuse_other_blocks(spoken: NDArray[np.int64], asked: NDArray[np.int64], first: int) -> None:
    if len(asked) != len(spoken):
        raise ReportError(f"reports need as many assigned blocks, got {first + len(asked)} or more")
    wrong = np.flatnonzero(spoken != asked)
    if wrong.size:
        raise ReportError(
            f"report {first + wrong[0]} is about block {spoken[wrong[0]]}, but its client was "
            f"assigned block {asked[wrong[0]]}"
        )
