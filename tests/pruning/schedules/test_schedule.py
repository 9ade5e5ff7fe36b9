from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import PruningError
from fedprune.pruning import SCHEDULES, keep_fractions


@given(
    schedule=st.sampled_from(["geometric", "cubic", "continuous"]),
    steps=st.integers(1, 30),
    final=st.floats(0.01, 1.0),
)
def test_less_is_kept_after_every_step_and_the_end_is_exact(
    schedule: str, steps: int, final: float
) -> None:
    keep = keep_fractions(schedule, steps, final)
    assert len(keep) == steps
    assert keep[-1] == final
    for earlier, later in zip((1.0, *keep), keep, strict=False):
        assert earlier + 1e-12 >= later >= final - 1e-12


def test_geometric_keeps_the_same_share_of_what_is_left() -> None:
    keep = (1.0, *keep_fractions("geometric", 4, 0.2))
    shares = [later / earlier for earlier, later in itertools.pairwise(keep)]
    assert shares == pytest.approx([0.2**0.25] * 4)


def test_cubic_follows_the_published_formula() -> None:
    final_sparsity = 0.8
    expected = [1 - (final_sparsity - final_sparsity * (1 - t / 5) ** 3) for t in range(1, 6)]
    assert keep_fractions("cubic", 5, 0.2) == pytest.approx(expected)


def test_one_shot_is_one_step() -> None:
    assert keep_fractions("one-shot", 1, 0.5) == (0.5,)
    assert set(SCHEDULES) == {"one-shot", "geometric", "cubic", "continuous"}


def test_continuous_removes_the_same_number_at_every_step() -> None:
    keep = (1.0, *keep_fractions("continuous", 7, 0.3))
    gone = [earlier - later for earlier, later in itertools.pairwise(keep)]
    assert gone == pytest.approx([0.1] * 7)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(PruningError, match="steps must be 1 for a one-shot schedule, got 3"):
        keep_fractions("one-shot", 3, 0.5)
    with pytest.raises(PruningError, match=r"schedule must be one of one-shot, .* 'linear'"):
        keep_fractions("linear", 3, 0.5)
    with pytest.raises(PruningError, match="steps must be at least 1, got 0"):
        keep_fractions("cubic", 0, 0.5)
    with pytest.raises(PruningError, match=r"in \(0, 1\], got 0"):
        keep_fractions("cubic", 2, 0.0)
