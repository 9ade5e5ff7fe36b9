"""Poisson sampling: the coin's probability is the accounted one, exactly, at every word width."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.poisson import PoissonSampling
from fedprune.randomness import SecureRandomness, SimulationRandomness


class Scripted:
    """Gives the words it was made with, one after another."""

    is_private = False

    def __init__(self, word_bits: int, words: tuple[int, ...]) -> None:
        self.word_bits, self._words = word_bits, list(words)

    def words(self, count: int) -> NDArray[np.uint64]:
        given, self._words = self._words[:count], self._words[count:]
        assert len(given) == count, "the coin reads more words than it may"
        return np.array(given, dtype=np.uint64)


@pytest.mark.parametrize("word_bits", [1, 2, 3])
@pytest.mark.parametrize("eighths", range(1, 8))
def test_every_word_sequence_together_gives_exactly_the_rate(word_bits: int, eighths: int) -> None:
    sampling, length = PoissonSampling(eighths / 8), -(-3 // word_bits)
    sequences = list(product(range(2**word_bits), repeat=length))
    taken = sum(int(sampling.draw(1, Scripted(word_bits, words))[0]) for words in sequences)
    assert Fraction(taken, len(sequences)) == Fraction(eighths, 8) == sampling.exact_rate


@given(st.floats(min_value=1e-300, max_value=1.0, exclude_min=True))
def test_the_accounted_rate_is_never_below_the_one_used_nor_that_below_the_wanted(
    rate: float,
) -> None:
    sampling = PoissonSampling(rate)
    wanted, used = Fraction(rate), sampling.exact_rate
    assert wanted <= used < wanted + Fraction(1, 2**64)
    assert used <= Fraction(sampling.accounted_rate)
    assert 0 < sampling.accounted_rate <= 1
    if rate >= 2.0**-11:  # then its 53 bits fit into the threshold
        assert sampling.accounted_rate == rate


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_64_bit_word_is_compared_with_the_threshold_as_a_whole(number: int, word: int) -> None:
    sampling = PoissonSampling(number / 2**64 if number < 2**53 else 0.3)
    drawn = sampling.draw(1, Scripted(64, (word,)))[0]
    assert drawn == (word < sampling.threshold)


@given(st.integers(0, 2**64 - 1))
def test_narrow_words_decide_as_one_wide_word_of_the_same_bits(number: int) -> None:
    sampling = PoissonSampling(0.3)
    bits = tuple(number >> (60 - 4 * i) & 15 for i in range(16))
    narrow = sampling.draw(1, Scripted(4, bits))[0]
    assert narrow == sampling.draw(1, Scripted(64, (number,)))[0]


def test_a_rate_of_one_takes_every_record_and_tosses_no_coin() -> None:
    assert PoissonSampling(1.0).draw(5, Scripted(64, ())).all()


def test_records_are_drawn_independently_of_each_other() -> None:
    drawn = np.stack(
        [PoissonSampling(0.3).draw(6, SimulationRandomness(seed)) for seed in range(4000)]
    )
    correlation = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 5 * np.sqrt(0.21 / 4000)


def test_no_record_is_a_batch_too() -> None:
    assert PoissonSampling(0.5).draw(0, SecureRandomness()).shape == (0,)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, float("nan"), float("inf"), True, "0.1"])
def test_what_is_no_probability_is_refused_by_its_value(rate: object) -> None:
    with pytest.raises(PrivacyError, match="sampling rate must be in"):
        PoissonSampling(rate)  # type: ignore[arg-type]
