from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, expected_keep_units, select, select_many


def tiny(*widths: int) -> UnitLayout:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return UnitLayout.of(nn.Sequential(*layers), torch.zeros(1, widths[0]))


LAYOUT = tiny(3, 6, 4, 2, 5)  # groups of 6, 4 and 2 units

# Few different values, so that there are many ties.
scores_of = st.lists(st.integers(0, 4), min_size=12, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)
fractions = st.floats(0.01, 1.0)
floors = st.integers(1, 7)


def floor_units(scores: Tensor, layout: UnitLayout, floor: int) -> set[int]:
    kept = set()
    for group in layout.groups:
        ranked = sorted(range(group.start, group.stop), key=lambda u: (-float(scores[u]), u))
        kept |= set(ranked[:floor])
    return kept


def by_hand(scores: Tensor, layout: UnitLayout, keep_units: float, floor: int) -> set[int]:
    kept = floor_units(scores, layout, floor)
    for unit in sorted(range(len(layout)), key=lambda u: (-float(scores[u]), u)):
        if len(kept) < int(keep_units * len(layout) + 1e-9):
            kept.add(unit)
    return kept


def units(mask: Tensor) -> set[int]:
    return set(mask.nonzero().flatten().tolist())


@given(scores=scores_of, keep=fractions, floor=floors)
def test_units_are_kept_by_score_with_ties_to_the_lower_unit(
    scores: Tensor, keep: float, floor: int
) -> None:
    mask = select(scores, LAYOUT, keep_units=keep, floor=floor)
    assert mask.dtype == torch.bool
    assert units(mask) == by_hand(scores, LAYOUT, keep, floor)


@given(rows=st.lists(scores_of, min_size=1, max_size=5), keep=fractions, floor=floors)
def test_many_clients_select_as_each_one_would(rows: list[Tensor], keep: float, floor: int) -> None:
    masks = select_many(torch.stack(rows), LAYOUT, keep, floor)
    for mask, row in zip(masks, rows, strict=True):
        assert torch.equal(mask, select(row, LAYOUT, keep_units=keep, floor=floor))


@settings(max_examples=60)
@given(
    scores=scores_of,
    keep=fractions,
    floor=st.integers(1, 2),
    cost=st.sampled_from(["macs", "params"]),
)
def test_a_cost_budget_is_met_and_filled_in_order_of_score(
    scores: Tensor, keep: float, floor: int, cost: str
) -> None:
    price = LAYOUT.macs if cost == "macs" else LAYOUT.params
    budget = keep * price(torch.ones(12, dtype=torch.bool)) * (1 + 1e-9)
    expected = torch.zeros(12, dtype=torch.bool)
    expected[list(floor_units(scores, LAYOUT, floor))] = True
    if price(expected) > budget:
        with pytest.raises(PruningError, match=f"keep_{cost} = .* floor of {floor}"):
            select(scores, LAYOUT, floor=floor, **{f"keep_{cost}": keep})
        return
    for unit in sorted(range(12), key=lambda u: (-float(scores[u]), u)):
        before = expected.clone()
        expected[unit] = True
        if price(expected) > budget:
            expected = before
    mask = select(scores, LAYOUT, floor=floor, **{f"keep_{cost}": keep})
    assert price(mask) <= budget
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("name", ["residual", "grouped", "concat", "sigmoid", "recurrent"])
@pytest.mark.parametrize("budget", ["keep_macs", "keep_params"])
def test_the_running_cost_is_the_exact_cost(build: Any, name: str, budget: str) -> None:
    layout = UnitLayout.of(*build(name))
    price = layout.macs if budget == "keep_macs" else layout.params
    scores = torch.rand(len(layout), generator=torch.Generator().manual_seed(0))
    total = price(torch.ones(len(layout), dtype=torch.bool))
    mask = select(scores, layout, **{budget: 0.6})
    assert price(mask) <= 0.6 * total
    for unit in (~mask).nonzero().flatten().tolist():
        one_more = mask.clone()
        one_more[unit] = True
        assert price(one_more) > 0.6 * total  # nothing more fits


def test_keeping_all_keeps_all() -> None:
    scores = torch.zeros(12)
    for budget in ("keep_units", "keep_macs", "keep_params"):
        assert select(scores, LAYOUT, **{budget: 1.0}).all()


def test_fractions_are_not_lost_to_binary_rounding() -> None:
    layout = tiny(2, 10, 2)
    for tenths in range(1, 11):
        mask = select(torch.arange(10.0), layout, keep_units=tenths / 10)
        assert int(mask.sum()) == tenths


def test_every_group_keeps_its_floor_or_all_it_has() -> None:
    scores = torch.arange(12.0)
    mask = select(scores, LAYOUT, keep_units=0.01, floor=3)
    assert [int(mask[group.units].sum()) for group in LAYOUT.groups] == [3, 3, 2]


def test_uniform_thinning_at_the_expected_fraction_meets_the_budget() -> None:
    layout = tiny(4, 100, 200, 3)
    for keep in (0.1, 0.5, 0.9, 1.0):
        fraction = expected_keep_units(layout, keep_macs=keep)
        n, m = 100 * fraction, 200 * fraction
        assert 4 * n + n * m + 3 * m == pytest.approx(keep * layout.total_macs, rel=1e-6)
        fraction = expected_keep_units(layout, keep_params=keep)
        n, m = 100 * fraction, 200 * fraction
        params = 5 * n + (n + 1) * m + 3 * (m + 1)
        assert params == pytest.approx(keep * layout.total_params, rel=1e-6)
    assert expected_keep_units(layout, keep_macs=1.0) == 1.0


def test_what_no_unit_owns_cannot_be_thinned_away(build: Any) -> None:
    layout = UnitLayout.of(*build("signal"))
    with pytest.raises(PruningError, match=r"keep_macs = 0\.01 cannot be met"):
        expected_keep_units(layout, keep_macs=0.01)


def test_bad_input_is_one_sentence() -> None:
    scores = torch.rand(12)
    with pytest.raises(
        PruningError, match=r"at least one of keep_units, keep_macs, keep_params, .* none"
    ):
        select(scores, LAYOUT)
    with pytest.raises(PruningError, match=r"keep_latency and latency.* together"):
        select(scores, LAYOUT, keep_latency=0.5)
    for value in (0.0, 1.3, -1.0, float("nan")):
        with pytest.raises(PruningError, match=r"keep_units must be in \(0, 1\], got"):
            select(scores, LAYOUT, keep_units=value)
    with pytest.raises(PruningError, match="floor must be at least 1, got 0"):
        select(scores, LAYOUT, keep_units=0.5, floor=0)
    with pytest.raises(PruningError, match=r"12 numbers for Sequential, got shape \[1, 11\]"):
        select(scores[:11], LAYOUT, keep_units=0.5)
    scores[4] = float("nan")
    with pytest.raises(PruningError, match="NaN for unit 4"):
        select(scores, LAYOUT, keep_macs=0.5)
