"""Selecting for many clients at once marks what sorting each of them by hand marks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.pruning import UnitLayout, select_many

WIDTHS = (3, 6, 4, 2, 5)  # groups of 6, 4 and 2 units
LAYOUT = UnitLayout.of(
    nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS))),
    torch.zeros(1, WIDTHS[0]),
)

# Few values, so that there are ties, also at the ends of what a score can be.
scores_of = st.lists(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1e-45, 2.0, math.inf]), min_size=12, max_size=12
)


def by_hand(scores: list[float], keep_units: float, floor: int) -> set[int]:
    def ranked(units: range) -> list[int]:
        return sorted(units, key=lambda unit: (-scores[unit], unit))

    kept = {
        unit for group in LAYOUT.groups for unit in ranked(range(group.start, group.stop))[:floor]
    }
    for unit in ranked(range(12)):
        if len(kept) < math.floor(keep_units * 12 + 1e-9):
            kept.add(unit)
    return kept


@given(
    rows=st.lists(scores_of, min_size=1, max_size=6),
    keep=st.floats(0.01, 1.0),
    floor=st.integers(1, 7),
)
def test_every_row_keeps_what_sorting_it_by_hand_keeps(
    rows: list[list[float]], keep: float, floor: int
) -> None:
    masks = select_many(torch.tensor(rows), LAYOUT, keep, floor)
    assert masks.dtype == torch.bool
    for scores, mask in zip(torch.tensor(rows).tolist(), masks, strict=True):
        assert set(mask.nonzero().flatten().tolist()) == by_hand(scores, keep, floor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_scores_of_any_type_are_ranked_by_their_values(dtype: torch.dtype) -> None:
    scores = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    wanted = select_many(scores.float()[None], LAYOUT, 0.5)
    assert torch.equal(select_many(scores.to(dtype)[None], LAYOUT, 0.5), wanted)
