"""Threshold randomised response over blocks of a mask: pure local differential privacy.

A client draws one block of m units uniformly and sends z in {0,1}^m with probability proportional
to e^epsilon where z agrees with its bits in at least tau places, and to 1 elsewhere. m = 1 is
Warner's randomised response (1965); tau = m is k-ary randomised response over the block's 2^m
patterns (Kairouz, Bonawitz & Ramage 2016); m odd and tau = (m+1)/2 is the l-infinity mechanism of
Duchi, Jordan & Wainwright (2018). The largest log-ratio over all outputs is exactly the epsilon
that is stated, whatever (m, tau).

With A ~ Bin(m, 1/2) and q = P[A >= tau] the expected agreement is
    c = (e^eps - 1) / (1 + q (e^eps - 1)) * E[(2A/m - 1) 1{A >= tau}],
and z/c (in +-1) is an unbiased estimate of the bits, with kappa = 1 / (m c^2) as the figure of
merit: a vote over n clients has variance at most d * kappa / (4 n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.estimation import Counts, VoteEstimate, VoteSums
from fedprune.privacy.exact import ExactCategorical, uniform_subsets
from fedprune.privacy.reports import Report, ReportFormat
from fedprune.randomness import Randomness, Words

MIN_EPSILON, MAX_EPSILON = 1e-6, 64.0
_RATIO_BITS = 128
_CHUNK_WORDS = 1 << 22
_OBSERVED_FROM = 20  # expected reports a block from which counts are conditioned on


class ThresholdResponse:
    """The mechanism for `num_units` mask bits at a client-level `epsilon` (delta = 0).

    Unit of protection: the client. Neighbouring relation: any change of the client's whole data.
    Trust: nobody; each client randomises its own report.

    Attributes:
        epsilon: the stated budget of one report.
        num_units: d, bits of a mask.
        block_units: m, bits that one report speaks about.
        threshold: tau, agreements from which an output is e^epsilon times as likely.
        num_blocks: ceil(d / m); the last block is filled with dummy units.
    """

    def __init__(
        self,
        epsilon: float,
        num_units: int,
        *,
        block_units: int | None = None,
        threshold: int | None = None,
    ) -> None:
        """Choose (m, tau) with the smallest variance, or take the ones given.

        Raises:
            PrivacyError: if a parameter is out of range.
        """
        if isinstance(epsilon, bool) or not MIN_EPSILON <= epsilon <= MAX_EPSILON:
            raise PrivacyError(
                f"epsilon must be in [{MIN_EPSILON:g}, {MAX_EPSILON:g}], got {epsilon!r}"
            )
        if isinstance(num_units, bool) or num_units != int(num_units) or num_units < 1:
            raise PrivacyError(f"num_units must be a whole number of at least 1, got {num_units!r}")
        self.epsilon, self.num_units = float(epsilon), int(num_units)
        if block_units is None:
            if threshold is not None:
                raise PrivacyError("threshold can only be given together with block_units")
            block_units, threshold = best_block(self.epsilon, self.num_units)
        elif threshold is None:
            threshold = _best_threshold(self.epsilon, block_units)[0]
        if not 1 <= block_units <= self.num_units:
            raise PrivacyError(
                f"block_units must be in [1, num_units = {num_units}], got {block_units!r}"
            )
        if not 1 <= threshold <= block_units:
            raise PrivacyError(
                f"threshold must be in [1, block_units = {block_units}], got {threshold!r}"
            )
        self.block_units, self.threshold = int(block_units), int(threshold)
        self.num_blocks = -(-self.num_units // self.block_units)
        self.format = ReportFormat(self.num_blocks, self.block_units)
        self._draw_block = ExactCategorical([1] * self.num_blocks)
        self._draw_agreement = ExactCategorical(self._agreement_weights)

    def __repr__(self) -> str:
        """Name the mechanism with its parameters."""
        return (
            f"ThresholdResponse(epsilon={self.epsilon:g}, num_units={self.num_units}, "
            f"block_units={self.block_units}, threshold={self.threshold})"
        )

    # The probabilities, exactly as the sampler uses them.

    @cached_property
    def likelihood_ratio(self) -> Fraction:
        """e^epsilon rounded down to a multiple of 2^-128: the ratio that is really used."""
        context = Context(prec=120, rounding=ROUND_FLOOR)
        power = context.exp(Decimal(self.epsilon))
        scaled = context.multiply(power, Decimal(2) ** _RATIO_BITS)
        return Fraction(int(scaled) - 1, 2**_RATIO_BITS)

    @cached_property
    def _agreement_weights(self) -> list[int]:
        low, high = self.likelihood_ratio.denominator, self.likelihood_ratio.numerator
        return [
            math.comb(self.block_units, a) * (high if a >= self.threshold else low)
            for a in range(self.block_units + 1)
        ]

    @cached_property
    def agreement_probabilities(self) -> list[Fraction]:
        """P[a report agrees with its block in exactly a places], a = 0..m: [m + 1]."""
        total = sum(self._agreement_weights)
        return [Fraction(weight, total) for weight in self._agreement_weights]

    def block_probability(self, agreements: int) -> Fraction:
        """P[one given pattern z of a given block], where z agrees in `agreements` places."""
        patterns = math.comb(self.block_units, agreements)
        return self.agreement_probabilities[agreements] / patterns

    @cached_property
    def agreement_gain(self) -> Fraction:
        """c: the expectation of a sent +-1 bit times the true one."""
        m = self.block_units
        moments = (p * Fraction(2 * a - m, m) for a, p in enumerate(self.agreement_probabilities))
        return sum(moments, Fraction(0))

    @property
    def kappa(self) -> float:
        """1 / (m c^2): a vote's variance is at most d * kappa / (4 n)."""
        return 1.0 / (self.block_units * float(self.agreement_gain) ** 2)

    def variance_per_vote(self, num_reports: int) -> float:
        """Exact variance of one unit's vote over `num_reports` fixed masks (expected counts)."""
        if num_reports < 1:
            raise PrivacyError(f"num_reports must be at least 1, got {num_reports!r}")
        gain = float(self.agreement_gain)
        return (self.num_blocks / gain**2 - 1.0) / (4.0 * num_reports)

    # The client's side.

    @property
    def report_bytes(self) -> int:
        """Size of every report, in bytes."""
        return self.format.size

    def randomize(self, mask: ArrayLike, rng: Randomness) -> Report:
        """Draw the report of one client's mask, [num_units] bool."""
        return self.randomize_many(np.asarray(mask)[None], [rng])[0]

    def randomize_many(self, masks: ArrayLike, rngs: Sequence[Randomness]) -> list[Report]:
        """Draw the reports of many clients, client i from `rngs[i]` alone.

        Args:
            masks: [num_clients, num_units] bool, True = keep.
            rngs: one source of randomness a client.

        Raises:
            ReportError: if the masks have another length than `num_units` or are not boolean.
        """
        bits = self._checked(masks)
        if len(rngs) != len(bits):
            raise ReportError(f"{len(bits)} masks need as many random sources, got {len(rngs)}")
        chunk = max(1, _CHUNK_WORDS // (self.block_units + 2))
        reports: list[Report] = []
        for start in range(0, len(bits), chunk):
            part = slice(start, start + chunk)
            reports += self._randomize_chunk(bits[part], rngs[part])
        return reports

    def _checked(self, masks: ArrayLike) -> NDArray[np.bool_]:
        array = np.asarray(masks)
        if array.ndim != 2 or array.shape[1] != self.num_units:
            raise ReportError(
                f"a mask must have {self.num_units} units, got an array of shape {array.shape[1:]}"
            )
        if array.dtype != np.bool_:
            raise ReportError(f"a mask must be boolean, got dtype {array.dtype}")
        return array

    def _randomize_chunk(
        self, masks: NDArray[np.bool_], rngs: Sequence[Randomness]
    ) -> list[Report]:
        m = self.block_units
        if not len(rngs):
            return []
        word_bits = rngs[0].word_bits

        def more(client: int) -> int:
            return int(rngs[client].words(1)[0])

        def redraw(client: int) -> Words:
            return rngs[client].words(m)

        words = np.stack([rng.words(m + 2) for rng in rngs])
        blocks = self._draw_block.draw(words[:, 0], word_bits, more)
        agreements = self._draw_agreement.draw(words[:, 1], word_bits, more)
        agree = uniform_subsets(agreements, words[:, 2:], redraw)
        truth = self._block_bits(masks, blocks)
        return self.format.encode(blocks, truth == agree)

    def _block_bits(self, masks: NDArray[np.bool_], blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        columns = blocks[:, None] * self.block_units + np.arange(self.block_units)[None]
        inside = columns < self.num_units
        bits = np.take_along_axis(masks, np.minimum(columns, self.num_units - 1), axis=1)
        return bits & inside  # dummy units carry a constant

    # The server's side.

    def new_sums(self) -> VoteSums:
        """Empty sums to which reports are added as they arrive (memory O(d))."""
        return VoteSums.empty(self.num_units, self.num_blocks, self.block_units)

    def add(self, sums: VoteSums, reports: Sequence[Report]) -> VoteSums:
        """Return the sums with further reports added.

        Raises:
            ReportError: if a report has the wrong length or impossible content.
        """
        if not reports:
            return sums
        return sums.plus(*self.format.decode(reports))

    def estimate_sums(self, sums: VoteSums, *, counts: Counts = "expected") -> VoteEstimate:
        """Turn sums into unbiased votes; see `VoteSums.estimate` for `counts`."""
        return sums.estimate(float(self.agreement_gain), counts=counts)

    def estimate(self, reports: Sequence[Report], *, counts: Counts = "expected") -> VoteEstimate:
        """Estimate, per unit, the share of the reporting clients that keep it.

        Returns:
            mean [num_units] and variance [num_units]; the mean is unbiased.

        Raises:
            ReportError: if there is no report, or one of the wrong length or content.
        """
        if not reports:
            raise ReportError("votes need at least one report, got none")
        return self.estimate_sums(self.add(self.new_sums(), reports), counts=counts)


@lru_cache(maxsize=256)
def best_block(epsilon: float, num_units: int) -> tuple[int, int]:
    """Choose (block_units, threshold) with the smallest variance per vote, ceil(d/m) / c^2."""
    small = range(1, min(num_units, 64) + 1)
    large = {-(-num_units // parts) for parts in range(1, 65)}
    candidates = sorted({*small, *large})
    scored = []
    for block_units in candidates:
        threshold, gain = _best_threshold(epsilon, block_units)
        scored.append((-(-num_units // block_units) / gain**2, block_units, threshold))
    _, block_units, threshold = min(scored)
    return block_units, threshold


def _best_threshold(epsilon: float, block_units: int) -> tuple[int, float]:
    """Choose the threshold with the largest gain c for a block, and that gain."""
    agreements = np.arange(block_units + 1)
    mass = binom.pmf(agreements, block_units, 0.5)
    tail = np.cumsum(mass[::-1])[::-1]
    moment = np.cumsum((mass * (2 * agreements / block_units - 1))[::-1])[::-1]
    gains = np.expm1(epsilon) * moment / (1 + tail * np.expm1(epsilon))
    best = int(np.argmax(gains[1:])) + 1
    return best, float(gains[best])


def counts_for(mechanism: ThresholdResponse, num_reports: int) -> Counts:
    """Choose how votes are debiased: on observed counts where every block surely gets many."""
    many = num_reports >= _OBSERVED_FROM * mechanism.num_blocks
    return "observed" if many else "expected"
