"""Seeded streams: drawn together or alone, at once or bit by bit, they are the same streams."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.privacy.mechanisms.cohort_words import cohort_words
from fedprune.randomness import SimulationRandomness, philox_words


def by_numpy(seed: int, *labels: str | int) -> np.random.Generator:
    """The stream as its docstring defines it, made with numpy's own Philox."""
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def raw(generator: np.random.Generator, count: int) -> list[int]:
    return [int(word) for word in generator.integers(0, 2**64, size=count, dtype=np.uint64)]


@given(
    keys=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=5
    ),
    count=st.integers(0, 19),
)
def test_many_philox_generators_at_once_are_numpys(keys: list[tuple[int, int]], count: int) -> None:
    found = philox_words(np.array(keys, dtype=np.uint64), count)
    assert found.shape == (len(keys), count)
    for row, key in zip(found, keys, strict=True):
        own = np.random.Philox(key=np.array(key, dtype=np.uint64))
        assert row.tolist() == [int(own.random_raw()) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 116])
def test_streams_that_are_drawn_together_go_on_where_each_would(count: int) -> None:
    streams = [SimulationRandomness(7, "report", "r", client) for client in range(9)]
    together = cohort_words(streams, count)
    for client, stream in enumerate(streams):
        alone = by_numpy(7, "report", "r", client)
        assert together[client].tolist() == raw(alone, count)
        assert stream.words(6).tolist() == raw(alone, 6)
        assert stream.torch_seed() == int(alone.integers(0, 2**63))


def test_streams_that_were_drawn_from_before_are_not_begun_again() -> None:
    streams = [SimulationRandomness(7, client) for client in range(4)]
    streams[2].words(3)
    first = cohort_words(streams, 2)
    second = cohort_words(streams, 2)
    for client in range(4):
        alone = by_numpy(7, client)
        if client == 2:
            raw(alone, 3)
        assert [*first[client].tolist(), *second[client].tolist()] == raw(alone, 4)


def test_one_stream_for_all_clients_is_drawn_on() -> None:
    stream = SimulationRandomness(7)
    found = cohort_words([stream, stream, stream], 2)
    assert found.ravel().tolist() == raw(by_numpy(7), 6)


def test_a_stream_shared_by_some_clients_is_drawn_on_by_each() -> None:
    first, second = SimulationRandomness(7, 1), SimulationRandomness(7, 2)
    found = cohort_words([first, second, first], 2)
    one = raw(by_numpy(7, 1), 4)
    assert found.tolist() == [one[:2], raw(by_numpy(7, 2), 2), one[2:]]
