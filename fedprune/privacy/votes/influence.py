"""How far hostile clients can move votes: one of them, or a share of all.

A liar may send any report of the right format; nothing more extreme is possible, and every report
weighs the same. A vote moves most where a liar sends the same bit for a unit again and again and
its honest mask would have said the opposite: by (1/c + 1) / 2 of the liars' share of the reports
about that unit. Where clients draw their blocks, liars can all claim one block; where blocks are
assigned they cannot, and the public permutation spreads them over all blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.estimation import Counts
from fedprune.privacy.mechanisms.intervals import decided_units
from fedprune.privacy.mechanisms.mechanism import Mechanism

Corruption: TypeAlias = Literal["before", "after"]


@dataclass(frozen=True)
class Influence:
    """What a share of hostile clients can do to the votes.

    Attributes:
        liar_share: gamma, the share of the reporting clients that lie.
        one_client: the most that one client's report can change one unit's vote.
        block_share: the largest share of the reports about one unit that the liars can hold; of
            the expected number of reports, and possibly above 1, with "expected" counts.
        vote_shift: the most that all liars together can move one unit's expected vote.
        margin_shift: the most that they can move the difference of two units' expected votes.
        units_at_once: how many units they can move that far at the same time.
        sentence: all of it in words, with the condition that it holds under.
    """

    liar_share: float
    one_client: float
    block_share: float
    vote_shift: float
    margin_shift: float
    units_at_once: int
    sentence: str

    def beyond_reach(self, mean: ArrayLike, keep_count: int) -> NDArray[np.int8]:
        """Say which units' selection the liars cannot change, noise apart.

        Args:
            mean: [num_units] votes.
            keep_count: how many of the largest are kept.

        Returns:
            [num_units] int8: 1 kept whatever they send, -1 removed whatever they send, else 0.
        """
        votes = np.asarray(mean, dtype=np.float64)
        return decided_units(votes - self.vote_shift, votes + self.vote_shift, keep_count)


def influence(
    mechanism: Mechanism,
    num_reports: int,
    liar_share: float = 0.0,
    *,
    counts: Counts = "assigned",
    corruption: Corruption = "before",
    confidence: float = 0.999,
) -> Influence:
    """Bound what one client, and a share of liars, can do to the votes.

    Args:
        mechanism: that the reports follow.
        num_reports: n, of honest and hostile clients together.
        liar_share: gamma in [0, 1].
        counts: how the votes are debiased; "assigned" also says that blocks were assigned.
        corruption: whether it is settled who lies "before" the label of a public assignment is
            known, or only "after", when liars can be recruited block by block.
        confidence: that no block holds more liars than `block_share`, for "before".

    Raises:
        PrivacyError: if a parameter is out of range.
    """
    if num_reports < 1 or not 0 <= liar_share <= 1 or not 0 < confidence < 1:
        raise PrivacyError(
            f"num_reports must be at least 1, liar_share in [0, 1] and confidence in (0, 1), got "
            f"{num_reports!r}, {liar_share!r} and {confidence!r}"
        )
    gain, blocks = float(mechanism.agreement_gain), mechanism.num_blocks
    in_block = max(1, num_reports // blocks)
    if counts == "expected":
        # One report's part is B z / (2 n c), where an honest one's expectation is at most 1 / n.
        share, shift = liar_share * blocks, liar_share * (blocks / gain + 1.0) / 2.0
        one, condition = blocks / (num_reports * gain), "all liars claim the same block"
    else:
        if counts == "observed":
            share, condition = _drawn_share(liar_share, blocks), "all liars claim the same block"
        else:
            share, condition = _assigned_share(
                num_reports, in_block, blocks, liar_share, corruption, confidence
            )
        shift, one = share * (1.0 / gain + 1.0) / 2.0, 1.0 / (in_block * gain)
    everywhere = counts == "assigned" and corruption == "before"
    units = mechanism.num_units if everywhere else min(mechanism.block_units, mechanism.num_units)
    sentence = (
        f"one client changes one unit's vote by at most {one:.3g}; a share of {liar_share:g} liars "
        f"moves an expected vote by at most {shift:.3g}, a difference of two by at most "
        f"{2 * shift:.3g}, of up to {units} units at once ({condition})"
    )
    return Influence(liar_share, one, share, shift, 2.0 * shift, units, sentence)


def tolerated_share(
    mechanism: Mechanism, num_reports: int, margin: float, *, counts: Counts = "assigned"
) -> float:
    """Largest share of liars that cannot turn around two votes that differ by `margin`.

    Found by halving, to 2^-20; 0 where a single liar could already do it.
    """
    if not margin > 0:
        raise PrivacyError(f"margin must be above 0, got {margin!r}")
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2.0
        found = influence(mechanism, num_reports, middle, counts=counts)
        low, high = (middle, high) if found.margin_shift < margin else (low, middle)
    return low


def _drawn_share(liar_share: float, blocks: int) -> float:
    """Liars' share of a block that they all claim, honest clients spreading evenly."""
    honest = (1.0 - liar_share) / blocks
    return liar_share / (liar_share + honest) if liar_share > 0 else 0.0


def _assigned_share(
    num_reports: int,
    in_block: int,
    blocks: int,
    liar_share: float,
    corruption: Corruption,
    confidence: float,
) -> tuple[float, str]:
    liars = math.floor(liar_share * num_reports + 1e-9)
    if corruption == "after":
        return min(1.0, liars / in_block), "liars recruited after the assignment was known"
    if blocks == 1:
        return liars / num_reports, "every report speaks about every unit"
    tail = (1.0 - confidence) / blocks  # no block at all, by a union bound
    most = int(hypergeom.isf(tail, num_reports, liars, in_block)) if liars else 0
    words = f"liars settled before the assignment was known, with probability {confidence:g}"
    return min(1.0, most / in_block), words
