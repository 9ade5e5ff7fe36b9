"""The map of clients equals a dictionary, whatever is put one by one or at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprune.privacy.ledgers.int_map import IntMap

keys = st.integers(-5, 300)
steps = st.one_of(
    st.tuples(keys, st.integers(0, 2**62)),
    st.tuples(st.sets(keys, max_size=120), st.integers(0, 2**62)),
)


@given(st.lists(steps, max_size=30), st.lists(keys, max_size=60))
def test_a_map_equals_a_dictionary(puts: list, asked: list[int]) -> None:
    found, wanted = IntMap(-7), {}
    for what, value in puts:
        if isinstance(what, int):
            found.put(what, value)
            wanted[what] = value
            continue
        many = np.array(list(what), dtype=np.int64)
        found.put_many(many, value - many)
        wanted |= {key: value - key for key in what}
    values = [wanted.get(key, -7) for key in asked]
    assert [found.get(key) for key in asked] == values
    assert found.get_many(np.array(asked, dtype=np.int64)).tolist() == values
    everything = np.array(sorted(wanted), dtype=np.int64)
    assert found.items()[0].tolist() == everything.tolist()
    assert found.items()[1].tolist() == [wanted[key] for key in everything.tolist()]
