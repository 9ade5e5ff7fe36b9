"""Every path of the production samplers, run over all sequences of short words.

A word of 3 or 4 bits instead of 64 leaves the code the same and makes its law enumerable: the
probability of a report is the share of the sequences that lead to it.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.mechanisms import cohort_words, threshold_response
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse
from fedprune.privacy.mechanisms.mechanism import Mechanism


class OutOfWordsError(Exception):
    """Carries how many words are wanted."""


class ScriptedWords:
    """A source of short words that follows a script."""

    is_private = False

    def __init__(self, word_bits: int, script: tuple[int, ...]) -> None:
        self.word_bits, self.script, self.used = word_bits, script, 0

    def words(self, count: int) -> np.ndarray:
        if self.used + count > len(self.script):
            raise OutOfWordsError(self.used + count)
        drawn = self.script[self.used : self.used + count]
        self.used += count
        return np.array(drawn, dtype=np.uint64)


def enumerate_reports(
    mechanism: Mechanism, mask: np.ndarray, word_bits: int, longest: int, block: int | None = None
) -> tuple[dict[bytes, Fraction], Fraction]:
    """Follow every script until it decides or wants more than `longest` words."""
    found: dict[bytes, Fraction] = {}
    undecided, scripts = Fraction(0), [()]
    while scripts:
        longer: list[tuple[int, ...]] = []
        for script in scripts:
            source = ScriptedWords(word_bits, script)
            try:
                report = mechanism.randomize(mask, source, block)
            except OutOfWordsError as wanted:
                if wanted.args[0] > longest:
                    undecided += Fraction(1, 2 ** (word_bits * len(script)))
                    continue
                missing = wanted.args[0] - len(script)
                longer += [script + tail for tail in product(range(2**word_bits), repeat=missing)]
                continue
            assert source.used == len(script), "a decided draw must not want more words"
            share = Fraction(1, 2 ** (word_bits * len(script)))
            found[report.payload] = found.get(report.payload, Fraction(0)) + share
        scripts = longer
    return found, undecided


def threshold_law(
    mechanism: ThresholdResponse, mask: np.ndarray, blocks: range
) -> dict[bytes, Fraction]:
    """Every report's stated probability, `blocks` being equally likely."""
    m = mechanism.block_units
    padded = np.concatenate([mask, np.zeros(m * mechanism.num_blocks - len(mask), dtype=bool)])
    law = {}
    for block in blocks:
        for pattern in product([False, True], repeat=m):
            bits = np.array(pattern)
            agreements = int((bits == padded[block * m : (block + 1) * m]).sum())
            report = mechanism.format.encode(np.array([block]), bits[None])[0]
            law[report.payload] = mechanism.block_probability(agreements) / len(blocks)
    return law


def assert_same_law(
    found: dict[bytes, Fraction], undecided: Fraction, law: dict[bytes, Fraction], most: Fraction
) -> None:
    assert sum(found.values()) + undecided == 1
    assert undecided < most
    assert set(found) == set(law)
    for report, truth in law.items():
        assert found[report] <= truth <= found[report] + undecided


@pytest.mark.parametrize(("units", "block", "threshold"), [(3, 1, 1), (4, 2, 2), (3, 3, 2)])
def test_client_drawn_blocks_have_the_stated_law(units: int, block: int, threshold: int) -> None:
    mechanism = ThresholdResponse(1.3, units, block_units=block, threshold=threshold)
    mask = np.arange(units) % 3 == 0
    found, undecided = enumerate_reports(mechanism, mask, 3, 6)
    law = threshold_law(mechanism, mask, range(mechanism.num_blocks))
    assert_same_law(found, undecided, law, Fraction(1, 5) if block == 3 else Fraction(1, 20))


@pytest.mark.parametrize(("units", "block", "threshold", "asked"), [(3, 1, 1, 2), (5, 2, 1, 2)])
def test_assigned_blocks_have_the_stated_law(
    units: int, block: int, threshold: int, asked: int
) -> None:
    mechanism = ThresholdResponse(2.1, units, block_units=block, threshold=threshold)
    mask = np.arange(units) % 2 == 0
    found, undecided = enumerate_reports(mechanism, mask, 3, 5, asked)
    law = threshold_law(mechanism, mask, range(asked, asked + 1))
    assert_same_law(found, undecided, law, Fraction(1, 20))


def test_keys_cut_from_shared_words_have_the_stated_law(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two keys of 2 bits from a word of 4, as four keys of 16 bits are cut from one of 64.
    monkeypatch.setattr(threshold_response, "key_width", lambda *_: 2)
    mechanism = ThresholdResponse(1.0, 2, block_units=2, threshold=2)
    mask = np.array([True, False])
    found, undecided = enumerate_reports(mechanism, mask, 4, 4)
    assert_same_law(found, undecided, threshold_law(mechanism, mask, range(1)), Fraction(1, 20))


@pytest.mark.parametrize(("units", "longest"), [(1, 6), (2, 6), (3, 6)])
def test_bitwise_response_flips_every_bit_on_its_own(units: int, longest: int) -> None:
    mechanism = BitwiseResponse(1.7, units)
    mask = np.arange(units) % 2 == 0
    found, undecided = enumerate_reports(mechanism, mask, 3, longest)
    law, flip = {}, mechanism.flip_probability
    for pattern in product([False, True], repeat=units):
        bits = np.array(pattern)
        flips = int((bits != mask).sum())
        report = mechanism.format.encode(np.zeros(1, dtype=np.int64), bits[None])[0]
        law[report.payload] = flip**flips * (1 - flip) ** (units - flips)
    assert_same_law(found, undecided, law, Fraction(1, 50))


@pytest.mark.parametrize("width", [16, 32])
def test_keys_of_64_bit_words_are_their_parts_lowest_first(width: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, size=(5, 3), dtype=np.uint64)
    parts = 64 // width
    keys = cohort_words.split_words(words, 3 * parts - 1, width, 64)
    for row in range(5):
        for place in range(3 * parts - 1):
            word = int(words[row, place // parts])
            assert int(keys[row, place]) == (word >> (width * (place % parts))) % 2**width
    slow = cohort_words.split_words(words[:, :1] % 2**32, 4, 8, 32)
    assert slow.tolist() == [
        [(int(w) >> s) & 255 for s in (0, 8, 16, 24)] for w in words[:, 0] % 2**32
    ]


@pytest.mark.parametrize("keys", [1, 4096, 4097, 10**6, 2**29])
def test_a_key_is_wide_enough_for_its_row_and_cut_evenly_from_words(keys: int) -> None:
    for word_bits in (64, 48, 3):
        width = cohort_words.key_width(keys, word_bits)
        assert word_bits % width == 0
        assert width == word_bits or keys <= 2 ** (width - 4)
        assert cohort_words.words_for_keys(keys, width, word_bits) * (word_bits // width) >= keys


def test_one_source_for_all_gives_the_words_that_it_would_give_one_by_one() -> None:
    script = tuple(range(8)) * 3
    source = ScriptedWords(3, script)
    assert cohort_words.cohort_words([source] * 4, 6).ravel().tolist() == list(script)
    apart = [ScriptedWords(3, script[6 * i :]) for i in range(4)]
    assert cohort_words.cohort_words(apart, 6).ravel().tolist() == list(script)


def test_a_cohort_on_the_system_generator_draws_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Counted(cohort_words.SecureRandomness):
        def words(self, count: int) -> np.ndarray:
            asked.append(count)
            return super().words(count)

    monkeypatch.setattr(cohort_words, "SecureRandomness", Counted)
    mechanism = ThresholdResponse(4.0, 40, block_units=4, threshold=4)
    masks = np.zeros((50, 40), dtype=bool)
    reports = mechanism.randomize_many(masks, [Counted() for _ in range(50)])
    assert asked[0] == 50 * 3
    assert sum(asked) < 60 * 3  # what follows are single words and redrawn rows
    assert len(set(reports)) > 5


def test_sources_of_unlike_word_sizes_are_refused() -> None:
    mixed = [ScriptedWords(3, (0,) * 9), ScriptedWords(4, (0,) * 9)]
    with pytest.raises(ValueError, match="same size"):
        cohort_words.cohort_words(mixed, 3)


def test_undecided_words_in_a_large_cohort_are_read_on_from_the_clients_own_stream() -> None:
    # With 3-bit words one draw in four reads on; each client alone must get the same report.
    mechanism = ThresholdResponse(1.3, 6, block_units=2, threshold=2)
    rng = np.random.default_rng(5)
    scripts = [tuple(rng.integers(0, 8, size=200).tolist()) for _ in range(300)]
    masks = rng.random((300, 6)) < 0.5
    together = mechanism.randomize_many(masks, [ScriptedWords(3, s) for s in scripts])
    alone = [mechanism.randomize(masks[i], ScriptedWords(3, s)) for i, s in enumerate(scripts)]
    assert together == alone
    assert isinstance(together[0], Report)
