"""The production samplers enumerated over all words, with words cut to 3 bits."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from fedprune.privacy.mechanisms.exact import ExactCategorical, uniform_subsets

WORD_BITS = 3
WORDS = 2**WORD_BITS


class _OutOfWordsError(Exception):
    pass


def enumerate_categorical(weights: list[int], depth: int) -> tuple[dict[int, Fraction], Fraction]:
    """Run the sampler on every sequence of words; give the decided mass and the undecided rest."""
    sampler = ExactCategorical(weights)
    decided: dict[int, Fraction] = defaultdict(Fraction)
    undecided = Fraction(0)
    open_prefixes: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        following = []
        for prefix in open_prefixes:
            for word in range(WORDS):
                words = (*prefix, word)
                rest = iter(words[1:])

                def more(_: int, rest: object = rest) -> int:
                    try:
                        return next(rest)  # type: ignore[call-overload]
                    except StopIteration:
                        raise _OutOfWordsError from None

                try:
                    first = np.array(words[:1], dtype=np.uint64)
                    category = int(sampler.draw(first, WORD_BITS, more)[0])
                except _OutOfWordsError:
                    following.append(words)
                    continue
                assert next(rest, None) is None, "a decided draw must not want more words"
                decided[category] += Fraction(1, WORDS ** len(words))
        open_prefixes = following
    for prefix in open_prefixes:
        undecided += Fraction(1, WORDS ** len(prefix))
    return decided, undecided


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [1, 7], [3, 5], [1, 2, 3], [5, 1, 1, 9, 2], [1, 10**6], [10**40, 1, 10**40]],
)
def test_every_category_has_exactly_its_weight_over_all_words(weights: list[int]) -> None:
    depth = 15
    decided, undecided = enumerate_categorical(weights, depth)
    assert undecided <= Fraction(len(weights), WORDS**depth)
    for category, weight in enumerate(weights):
        truth = Fraction(weight, sum(weights))
        assert decided[category] <= truth <= decided[category] + undecided


def test_a_tail_far_below_64_bits_keeps_its_exact_probability() -> None:
    weights = [1, 2**200 - 1]
    sampler = ExactCategorical(weights)
    # u in [0, 2^-200) is category 0: three zero words do not decide, the fourth one does.
    for last, expected in ((0, 0), (2**56 - 1, 0), (2**56, 1)):
        rest = iter([0, 0, last])
        drawn = sampler.draw(np.zeros(1, dtype=np.uint64), 64, lambda _, rest=rest: next(rest))
        assert drawn[0] == expected


@pytest.mark.parametrize(("width", "size"), [(1, 0), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2)])
def test_every_subset_is_equally_likely_over_all_keys(width: int, size: int) -> None:
    counts: dict[tuple[int, ...], int] = defaultdict(int)
    redrawn = 0

    class _RedrawError(Exception):
        pass

    def redraw(_: int) -> np.ndarray:
        raise _RedrawError

    for keys in product(range(WORDS), repeat=width):
        try:
            row = uniform_subsets(np.array([size]), np.array([keys], dtype=np.uint64), redraw)[0]
        except _RedrawError:
            redrawn += 1  # a fresh, independent row: it changes nothing in the conditional law
            continue
        assert row.sum() == size
        counts[tuple(np.flatnonzero(row))] += 1
    assert set(counts) == set(combinations(range(width), size))
    assert len(set(counts.values())) == 1
    assert redrawn < WORDS**width


def test_a_tied_row_is_redrawn_until_it_has_no_tie() -> None:
    fresh = iter([np.array([5, 5], dtype=np.uint64), np.array([6, 1], dtype=np.uint64)])
    keys = np.array([[3, 3], [1, 2]], dtype=np.uint64)
    chosen = uniform_subsets(np.array([1, 1]), keys, lambda _: next(fresh))
    assert chosen.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("weights", [[], [0, 1], [-1, 2]])
def test_weights_that_are_not_positive_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        ExactCategorical(weights)
