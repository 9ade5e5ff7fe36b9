"""Reports less their masks: what must be independent over clients, with one known law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.reports import Report
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse

Bits: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Noise:
    """What n reports add to their masks.

    Attributes:
        mechanism: that the reports are said to come from.
        blocks: [n] int64, the block that each report is about.
        agree: [n, block_units] bool, whether each bit sent is the true one; a block's dummy
            units have False as their truth.
        drawn_blocks: whether clients drew their blocks; assigned ones are no noise.
    """

    mechanism: ThresholdResponse
    blocks: NDArray[np.int64]
    agree: Bits
    drawn_blocks: bool = True

    @staticmethod
    def of(
        mechanism: ThresholdResponse,
        masks: ArrayLike,
        reports: Sequence[Report],
        *,
        drawn_blocks: bool = True,
    ) -> Noise:
        """Take the true masks out of reports.

        Args:
            mechanism: that the reports are said to come from.
            masks: [n, num_units] bool, or one mask [num_units] that all clients have.
            reports: n of them.
            drawn_blocks: whether clients drew their blocks.

        Raises:
            ReportError: if a report is not one that the mechanism can send.
            PrivacyError: if there is no report or the masks do not fit.
        """
        if not reports:
            raise PrivacyError("an audit of reports needs at least one, got none")
        truth = _checked(masks, mechanism.num_units, len(reports))
        blocks, sent = mechanism.format.decode(reports)
        size, count = mechanism.block_units, mechanism.num_blocks
        dummies = np.zeros((len(truth), count * size - mechanism.num_units), dtype=np.bool_)
        by_block = np.concatenate([truth, dummies], axis=1).reshape(len(truth), count, size)
        rows = np.arange(len(blocks)) if len(truth) > 1 else np.zeros(len(blocks), dtype=np.int64)
        return Noise(mechanism, blocks, sent == by_block[rows, blocks], drawn_blocks)

    @property
    def num_blocks(self) -> int:
        """Blocks that a client may have drawn; 1 where they were assigned."""
        return self.mechanism.num_blocks if self.drawn_blocks else 1

    @cached_property
    def agreements(self) -> NDArray[np.int64]:
        """Bits of each report that agree: [n] int64."""
        return np.asarray(self.agree.sum(axis=1), dtype=np.int64)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """A number for every client, [n] int64; two are equal where all of their noise is."""
        drawn = self.blocks if self.drawn_blocks else np.zeros_like(self.blocks)
        blocks = np.ascontiguousarray(drawn, dtype=np.int64).view(np.uint8)
        rows = np.concatenate([blocks.reshape(-1, 8), np.packbits(self.agree, axis=1)], axis=1)
        whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))
        _, numbers = np.unique(whole.reshape(-1), return_inverse=True)
        return np.asarray(np.ravel(numbers), dtype=np.int64)

    @cached_property
    def outcome_chances(self) -> list[Fraction]:
        """Probability of one outcome (block and bits) by how many bits agree: [m + 1]."""
        counts = range(self.mechanism.block_units + 1)
        return [self.mechanism.block_probability(a) / self.num_blocks for a in counts]

    def power_sum(self, order: int) -> Fraction:
        """Sum over all outcomes of their probability to a power; 2 is a pair's collision."""
        size, chances = self.mechanism.block_units, self.outcome_chances
        terms = (math.comb(size, a) * p**order for a, p in enumerate(chances))
        return self.num_blocks * sum(terms, Fraction(0))


def _checked(masks: ArrayLike, units: int, count: int) -> Bits:
    truth = np.asarray(masks)
    if truth.dtype != np.bool_ or truth.shape not in ((units,), (count, units)):
        raise PrivacyError(
            f"masks of {count} reports must be boolean and of {units} units, got {truth.dtype} "
            f"{truth.shape}"
        )
    return truth.reshape(-1, units)
