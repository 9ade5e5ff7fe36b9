"""Exact sampling from integer weights, given uniform words.

A floating-point or 64-bit-rounded cumulative distribution gives wrong probabilities far in the
tails, and a tail outcome with probability zero breaks pure differential privacy. Here a draw is
an infinite binary expansion that is read one word at a time and compared with the exact rational
boundaries: almost always the first word decides; when it does not, more words are drawn until
they do. The probabilities are exactly the integer weights over their sum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.randomness import Words

MoreWords = Callable[[int], int]


class ExactCategorical:
    """Draws category k with probability exactly `weights[k] / sum(weights)`."""

    def __init__(self, weights: Sequence[int]) -> None:
        """Take positive integer weights of any size, one a category."""
        if not weights or any(weight <= 0 for weight in weights):
            raise ValueError("weights must be positive integers")
        self._bounds = list(accumulate(weights))
        self._first_word = lru_cache(maxsize=4)(self._first_word_tables)

    def draw(self, words: Words, word_bits: int, more: MoreWords) -> NDArray[np.int64]:
        """Turn one first word a draw into categories: [count] words -> [count] int64.

        `more(i)` gives one further word for draw i, in the rare case that its words so far do
        not decide.
        """
        last_words, splits = self._first_word(word_bits)
        categories = np.searchsorted(last_words[:-1], words, side="left")
        # The first boundary at or above a word is one inside that word, if there is any.
        undecided = splits[categories] & (last_words[categories] == words)
        for index in np.flatnonzero(undecided):
            categories[index] = self._read_on(int(words[index]), word_bits, more, int(index))
        return categories

    def _first_word_tables(self, word_bits: int) -> tuple[Words, NDArray[np.bool_]]:
        """Compute per category its last word, whole or in part, and whether it is only a part."""
        total, last_words, splits = self._bounds[-1], [], []
        for bound in self._bounds:
            quotient, remainder = divmod(bound << word_bits, total)
            last_words.append(quotient if remainder else quotient - 1)
            splits.append(bool(remainder))
        return np.array(last_words, dtype=np.uint64), np.array(splits)

    def _read_on(self, prefix: int, word_bits: int, more: MoreWords, index: int) -> int:
        """Read words until the interval of expansions with this prefix lies in one category."""
        total, bits = self._bounds[-1], word_bits
        while True:
            prefix, bits = (prefix << word_bits) | more(index), bits + word_bits
            low = bisect_right(self._bounds, (prefix * total) >> bits)
            if (prefix + 1) * total <= self._bounds[low] << bits:
                return low


def uniform_subsets(
    sizes: NDArray[np.int64], keys: NDArray[Any], redraw: Callable[[int], NDArray[Any]]
) -> NDArray[np.bool_]:
    """Choose, in every row, `sizes[i]` of its coordinates, every subset equally likely.

    The coordinates with the smallest keys are chosen. Keys are exchangeable, so conditional on no
    tie across the cut every subset has the same probability; a row with such a tie is redrawn.

    Args:
        sizes: [count] how many coordinates to choose.
        keys: [count, m] independent uniform unsigned integers of any width.
        redraw: gives m fresh ones for row i.

    Returns:
        [count, m] bool, True where chosen.
    """
    chosen, tied = _smallest(sizes, keys)
    for row in np.flatnonzero(tied):
        while tied[row]:  # each time from this row's own source
            chosen[row], tied[row] = _smallest(sizes[row : row + 1], redraw(int(row))[None])
    return chosen


def _smallest(
    sizes: NDArray[np.int64], keys: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Choose the smallest keys of every row, and say which rows have a tie across the cut."""
    count, width = keys.shape
    # A stable sort of 16-bit integers is a radix sort: as fast on every machine.
    ordered = np.sort(keys, axis=1, kind="stable" if keys.dtype.itemsize == 2 else None)
    rows = np.arange(count)
    last = ordered[rows, np.clip(sizes - 1, 0, width - 1)]
    following = ordered[rows, np.clip(sizes, 0, width - 1)]
    chosen = (keys <= last[:, None]) & (sizes > 0)[:, None]
    tied = (last == following) & (sizes > 0) & (sizes < width)
    return chosen, tied
