"""Threshold randomised response over blocks of a mask: pure local differential privacy.

A client speaks about one block of m units (which it draws uniformly, or is assigned) and sends z
in {0,1}^m with probability proportional to e^epsilon where z agrees with its bits in at least tau
places, and to 1 elsewhere. m = 1 is Warner's randomised response (1965); tau = m is k-ary
randomised response over the block's 2^m patterns (Kairouz, Bonawitz & Ramage 2016); m odd and
tau = (m+1)/2 is the l-infinity mechanism of Duchi, Jordan & Wainwright (2018). The largest
log-ratio over all outputs is exactly the epsilon that is stated, whatever (m, tau).

With A ~ Bin(m, 1/2) and q = P[A >= tau] the expected agreement is
    c = (e^eps - 1) / (1 + q (e^eps - 1)) * E[(2A/m - 1) 1{A >= tau}],
and z/c (in +-1) is an unbiased estimate of the bits, with kappa = 1 / (m c^2) as the figure of
merit: a vote over n clients has variance at most d * kappa / (4 n).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.block_choice import best_block, best_threshold
from fedprune.privacy.mechanisms.cohort_words import (
    cohort_words,
    key_width,
    split_words,
    words_for_keys,
)
from fedprune.privacy.mechanisms.exact import ExactCategorical, uniform_subsets
from fedprune.privacy.mechanisms.mechanism import Mechanism, check_parameters, counts_for
from fedprune.randomness import Randomness

__all__ = ["ThresholdResponse", "best_block", "counts_for", "likelihood_ratio"]

_RATIO_BITS = 128


class ThresholdResponse(Mechanism):
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

    name: ClassVar[str] = "threshold"

    def __init__(
        self,
        epsilon: float,
        num_units: int,
        *,
        block_units: int | None = None,
        threshold: int | None = None,
        num_reports: int | None = None,
    ) -> None:
        """Choose (m, tau) with the smallest variance, or take the ones given.

        Args:
            epsilon: of one report.
            num_units: d.
            block_units: m; None to choose it.
            threshold: tau; None to choose it.
            num_reports: how many reports are expected, where that is known and m is chosen: few
                reports are better spent on large blocks (see `best_block`).

        Raises:
            PrivacyError: if a parameter is out of range.
        """
        check_parameters(epsilon, num_units)
        if block_units is None:
            if threshold is not None:
                raise PrivacyError("threshold can only be given together with block_units")
            block_units, threshold = best_block(float(epsilon), int(num_units), num_reports)
        _check_whole("block_units", block_units, "num_units", num_units)
        if threshold is None:
            threshold = best_threshold(float(epsilon), int(block_units))[0]
        _check_whole("threshold", threshold, "block_units", block_units)
        super().__init__(epsilon, 0.0, num_units, block_units)
        self.threshold = int(threshold)
        self._draw_block = ExactCategorical([1] * self.num_blocks)
        self._law = _agreement_law(self.epsilon, self.block_units, self.threshold)

    def __repr__(self) -> str:
        """Name the mechanism with its parameters."""
        return (
            f"ThresholdResponse(epsilon={self.epsilon:g}, num_units={self.num_units}, "
            f"block_units={self.block_units}, threshold={self.threshold})"
        )

    # The probabilities, exactly as the sampler uses them.

    @property
    def likelihood_ratio(self) -> Fraction:
        """e^epsilon rounded down to a multiple of 2^-128: the ratio that is really used."""
        return likelihood_ratio(self.epsilon)

    @property
    def pure_epsilon(self) -> float:
        """The stated epsilon."""
        return self.epsilon

    @property
    def agreement_probabilities(self) -> list[Fraction]:
        """P[a report agrees with its block in exactly a places], a = 0..m: [m + 1]."""
        return self._law.probabilities

    @property
    def agreement_gain(self) -> Fraction:
        """c: the expectation of a sent +-1 bit times the true one."""
        return self._law.gain

    def block_probability(self, agreements: int) -> Fraction:
        """P[one given pattern z of a given block], where z agrees in `agreements` places."""
        ratio = self.likelihood_ratio
        weight = ratio.numerator if agreements >= self.threshold else ratio.denominator
        return Fraction(weight, self._law.total)

    # The draws.

    @property
    def _key_width(self) -> int:
        return key_width(self.block_units, 64)

    @property
    def _words_per_client(self) -> int:
        return 2 + words_for_keys(self.block_units, self._key_width, 64)

    def _draw(
        self,
        masks: NDArray[np.bool_],
        rngs: Sequence[Randomness],
        blocks: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Draw the block if it is the client's to draw, the agreement, and where it agrees."""
        word_bits = rngs[0].word_bits
        width = key_width(self.block_units, word_bits)
        in_keys = words_for_keys(self.block_units, width, word_bits)
        drawn = int(blocks is None and self.num_blocks > 1)
        words = cohort_words(rngs, drawn + 1 + in_keys)

        def more(client: int) -> int:
            return int(rngs[client].words(1)[0])

        def keys(key_words: NDArray[np.uint64]) -> NDArray[Any]:
            return split_words(key_words, self.block_units, width, word_bits)

        def redraw(client: int) -> NDArray[Any]:
            return np.asarray(keys(rngs[client].words(in_keys)[None])[0])

        if drawn:
            blocks = self._draw_block.draw(words[:, 0], word_bits, more)
        elif blocks is None:
            blocks = np.zeros(len(rngs), dtype=np.int64)
        agreements = self._law.sampler.draw(words[:, drawn], word_bits, more)
        agree = uniform_subsets(agreements, keys(words[:, drawn + 1 :]), redraw)
        return blocks, self._block_bits(masks, blocks) == agree

    def _block_bits(self, masks: NDArray[np.bool_], blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self.num_blocks == 1:
            return masks
        columns = blocks[:, None] * self.block_units + np.arange(self.block_units)[None]
        inside = columns < self.num_units
        bits = np.take_along_axis(masks, np.minimum(columns, self.num_units - 1), axis=1)
        return np.asarray(bits & inside)  # dummy units carry a constant


class _AgreementLaw:
    """How often a report agrees with its block, in exact integers: made once, then shared."""

    def __init__(self, ratio: Fraction, block_units: int, threshold: int) -> None:
        self._m = block_units
        self._weights = [
            patterns * (ratio.numerator if a >= threshold else ratio.denominator)
            for a, patterns in enumerate(_binomial_row(block_units))
        ]
        self.total = sum(self._weights)
        self.sampler = ExactCategorical(self._weights)

    @cached_property
    def probabilities(self) -> list[Fraction]:
        return [Fraction(weight, self.total) for weight in self._weights]

    @cached_property
    def gain(self) -> Fraction:
        moment = sum((2 * a - self._m) * weight for a, weight in enumerate(self._weights))
        return Fraction(moment, self._m * self.total)


def _check_whole(name: str, value: int, most_name: str, most: int) -> None:
    if isinstance(value, bool) or not 1 <= value <= most or value != int(value):
        raise PrivacyError(f"{name} must be in [1, {most_name} = {most}], got {value!r}")


def _binomial_row(m: int) -> list[int]:
    """C(m, 0), ..., C(m, m), each from the one before: far faster than one by one."""
    row = [1]
    for a in range(m):
        row.append(row[-1] * (m - a) // (a + 1))
    return row


@lru_cache(maxsize=64)
def _agreement_law(epsilon: float, block_units: int, threshold: int) -> _AgreementLaw:
    return _AgreementLaw(likelihood_ratio(epsilon), block_units, threshold)


@lru_cache(maxsize=256)
def likelihood_ratio(epsilon: float) -> Fraction:
    """e^epsilon rounded down to a multiple of 2^-128."""
    context = Context(prec=120, rounding=ROUND_FLOOR)
    scaled = context.multiply(context.exp(Decimal(epsilon)), Decimal(2) ** _RATIO_BITS)
    return Fraction(int(scaled) - 1, 2**_RATIO_BITS)
