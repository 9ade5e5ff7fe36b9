"""Random words for a whole cohort at once, without mixing one client's stream with another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.randomness import Randomness, SecureRandomness, SimulationRandomness, Words

_SAFE_BITS = 4  # keys are at least this many bits wider than needed to number a row's coordinates


def cohort_words(rngs: Sequence[Randomness], count: int) -> Words:
    """Draw `count` words for every client: [len(rngs), count] uint64.

    Client i's words come from `rngs[i]`, exactly as if it had asked alone. Where all sources are
    one object, or all are the operating system's CSPRNG (which has no streams to keep apart), one
    call draws for all.

    Raises:
        ValueError: if their words are not all of one size.
    """
    first = rngs[0]
    if type(first) is SecureRandomness:
        shared = all(type(rng) is SecureRandomness for rng in rngs)
    else:
        shared = all(rng is first for rng in rngs)
    if shared:
        return first.words(len(rngs) * count).reshape(len(rngs), count)
    streams = [rng for rng in rngs if type(rng) is SimulationRandomness]
    if len(set(map(id, streams))) == len(rngs):
        return SimulationRandomness.words_of_each(streams, count)
    if any(rng.word_bits != first.word_bits for rng in rngs):
        raise ValueError("the sources of one cohort must have words of the same size")
    return np.stack([rng.words(count) for rng in rngs])


def key_width(num_keys: int, word_bits: int) -> int:
    """Choose the bits of a sorting key: few, yet so many that a row of keys seldom has ties.

    Any width gives exactly uniform subsets, since ties across the cut are drawn again.
    """
    fitting = (w for w in (16, 32) if num_keys <= 1 << (w - _SAFE_BITS) and word_bits % w == 0)
    return next(fitting, word_bits)


def words_for_keys(num_keys: int, width: int, word_bits: int) -> int:
    """How many words `num_keys` keys of `width` bits are cut from."""
    return -(-num_keys // (word_bits // width))


def split_words(words: Words, num_keys: int, width: int, word_bits: int) -> NDArray[Any]:
    """Cut words into independent uniform keys, lowest bits first.

    Args:
        words: [count, words_for_keys(...)] uint64, uniform on [0, 2**word_bits).
        num_keys: keys wanted in every row; what is left of the last word is not used.
        width: bits of a key; divides `word_bits`.
        word_bits: random bits of a word.

    Returns:
        [count, num_keys] unsigned integers, uniform on [0, 2**width).
    """
    if word_bits == 64:
        keys = np.ascontiguousarray(words, dtype="<u8").view(f"<u{width // 8}")
        return keys[:, :num_keys]
    shifts = np.arange(0, word_bits, width, dtype=np.uint64)
    parts = (words[:, :, None] >> shifts) & np.uint64((1 << width) - 1)
    return parts.reshape(len(words), -1)[:, :num_keys]
