"""Budgets hold whatever they count; widths, scopes, floors and the knapsack keep their word."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, expected_keep_units, select


def dense(*widths: int) -> UnitLayout:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return UnitLayout.of(nn.Sequential(*layers), torch.zeros(1, widths[0]))


def images() -> UnitLayout:
    body = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24),
        nn.Conv2d(24, 20, 1), nn.GroupNorm(10, 20), nn.ReLU(), nn.Conv2d(20, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip
    return UnitLayout.of(body, torch.zeros(1, 3, 8, 8))


SMALL = dense(3, 6, 4, 2, 5)
WIDE = dense(4, 40, 24, 9, 3)
IMAGES = images()  # groups of 24, 10 (of two channels each) and 5 units
LAYOUTS = {"small": SMALL, "wide": WIDE, "images": IMAGES}

names = st.sampled_from(sorted(LAYOUTS))
seeds = st.integers(0, 10**6)


def draw(layout: UnitLayout, seed: int) -> Tensor:
    return torch.randn(len(layout), generator=torch.Generator().manual_seed(seed)).exp()


def kept(layout: UnitLayout, mask: Tensor) -> list[int]:
    return [int(mask[group.units].sum()) for group in layout.groups]


def shares(layout: UnitLayout, mask: Tensor) -> dict[str, float]:
    return {
        "keep_units": float(mask.sum()) / len(layout),
        "keep_macs": layout.macs(mask) / layout.total_macs,
        "keep_params": layout.params(mask) / layout.total_params,
    }


@settings(max_examples=60)
@given(
    name=names, seed=seeds, fill=st.sampled_from(["ranking", "value"]),
    limits=st.dictionaries(st.sampled_from(["keep_units", "keep_macs", "keep_params"]),
                           st.floats(0.45, 1.0), min_size=1),
)  # fmt: skip
def test_several_budgets_hold_at_once_and_nothing_more_fits_into_all(
    name: str, seed: int, fill: str, limits: dict[str, float]
) -> None:
    layout = LAYOUTS[name]
    mask = select(draw(layout, seed), layout, fill=fill, **limits)  # type: ignore[arg-type]
    found = shares(layout, mask)
    assert all(found[key] <= limit * (1 + 1e-9) for key, limit in limits.items())
    for unit in (~mask).nonzero().flatten().tolist():
        more = mask.clone()
        more[unit] = True
        assert any(shares(layout, more)[key] > limit for key, limit in limits.items())


@settings(max_examples=60)
@given(
    name=names, seed=seeds, step=st.sampled_from([2, 4, 8, 16]), keep=st.floats(0.5, 1.0),
    budget=st.sampled_from(["keep_units", "keep_macs", "keep_params"]),
    scope=st.sampled_from(["global", "layer", "isomorphic"]), floor=st.integers(1, 5),
)  # fmt: skip
def test_widths_are_multiples_or_whole_and_the_budget_is_not_overshot(
    name: str, seed: int, step: int, keep: float, budget: str, scope: str, floor: int
) -> None:
    layout = LAYOUTS[name]
    channels = [1, 2, 1] if name == "images" else [1] * len(layout.groups)
    try:
        mask = select(
            draw(layout, seed), layout, round_to=step, scope=scope, floor=floor,
            **{budget: keep},  # type: ignore[arg-type]
        )  # fmt: skip
    except PruningError as refused:
        assert f"widths in multiples of {step} alone costs" in str(refused)  # noqa: PT017
        return
    assert shares(layout, mask)[budget] <= keep * (1 + 1e-9)
    for width, group, each in zip(kept(layout, mask), layout.groups, channels, strict=True):
        assert width == len(group) or (width * each) % step == 0
        assert width >= min(floor, len(group))
        if len(group) * each < step:
            assert width == len(group)


@settings(max_examples=40)
@given(name=names, seed=seeds, step=st.sampled_from([1, 4]), keep=st.floats(0.8, 1.0))
def test_within_a_group_the_best_units_stay(name: str, seed: int, step: int, keep: float) -> None:
    layout, scores = LAYOUTS[name], draw(LAYOUTS[name], seed)
    for fill in ("ranking", "value"):
        mask = select(scores, layout, keep_macs=keep, round_to=step, fill=fill)
        for group in layout.groups:
            own, stays = scores[group.units], mask[group.units]
            if bool(stays.any()) and not bool(stays.all()):
                assert float(own[stays].min()) >= float(own[~stays].max())


@settings(max_examples=40)
@given(name=names, seed=seeds, keep=st.floats(0.1, 1.0))
def test_per_layer_every_group_keeps_the_same_share_to_the_nearest_unit(
    name: str, seed: int, keep: float
) -> None:
    layout = LAYOUTS[name]
    mask = select(draw(layout, seed), layout, keep_units=keep, scope="layer")
    sizes = [len(group) for group in layout.groups]
    floors = sum(min(1, size) for size in sizes)
    assert int(mask.sum()) == max(floors, int(keep * len(layout) + 1e-9))
    for width, size in zip(kept(layout, mask), sizes, strict=True):
        assert width == 1 or abs(width - keep * size) <= 2


@settings(max_examples=30)
@given(seed=seeds, keep=st.floats(0.4, 1.0))
def test_isomorphic_groups_compete_and_others_keep_their_share(seed: int, keep: float) -> None:
    scores = draw(IMAGES, seed)
    scores[:24] *= 1e6  # a group of another kind gains nothing by larger scores
    mask = select(scores, IMAGES, keep_units=keep, scope="isomorphic")
    assert abs(kept(IMAGES, mask)[0] - keep * 24) <= 2


def test_groups_of_one_structure_are_one_class_whatever_their_widths() -> None:
    from fedprune.pruning.structure.likeness import structure_of

    middle = [structure_of(WIDE, group) for group in WIDE.groups]
    assert middle[0] == middle[1] == middle[2]  # linear in, linear out
    first, second, third = (structure_of(IMAGES, group) for group in IMAGES.groups)
    assert len({first, second, third}) == 3
    scores = torch.arange(len(WIDE), dtype=torch.float32)
    assert torch.equal(
        select(scores, WIDE, keep_units=0.5, scope="isomorphic"),
        select(scores, WIDE, keep_units=0.5),
    )


@settings(max_examples=25)
@given(seed=seeds, keep=st.floats(0.4, 0.95), cost=st.sampled_from(["macs", "params"]))
def test_the_knapsack_keeps_at_least_the_rankings_score_and_nearly_the_best(
    seed: int, keep: float, cost: str
) -> None:
    scores = draw(SMALL, seed).double()
    budget: Any = {f"keep_{cost}": keep}
    ranked, valued = (select(scores, SMALL, fill=fill, **budget) for fill in ("ranking", "value"))
    found, before = float(scores[valued].sum()), float(scores[ranked].sum())
    best = exhaustive(scores, keep, cost)
    assert before <= found <= best * (1 + 1e-12)
    assert found >= 0.93 * best


def exhaustive(scores: Tensor, keep: float, cost: str) -> float:
    """The most score of any mask at all that keeps a unit in every group and fits the budget."""
    price = SMALL.macs if cost == "macs" else SMALL.params
    limit = keep * price(torch.ones(12, dtype=torch.bool)) * (1 + 1e-9)
    orders = [group.start + scores[group.units].argsort(descending=True) for group in SMALL.groups]
    best = 0.0
    for widths in itertools.product(range(1, 7), range(1, 5), range(1, 3)):
        mask = torch.zeros(12, dtype=torch.bool)
        for order, width in zip(orders, widths, strict=True):
            mask[order[:width]] = True
        if price(mask) <= limit:
            best = max(best, float(scores[mask].sum()))
    return best


def test_a_fraction_as_floor_counts_in_every_group() -> None:
    mask = select(torch.arange(len(WIDE)).float(), WIDE, keep_units=0.3, floor=0.25)
    assert [width >= 0.25 * len(g) for width, g in zip(kept(WIDE, mask), WIDE.groups, strict=True)]
    assert kept(WIDE, mask)[0] == 10
    for wrong in (0.0, 1.0, 1.5, -0.1, float("nan")):
        with pytest.raises(PruningError, match="floor must be at least 1 unit or a fraction"):
            select(torch.zeros(len(WIDE)), WIDE, keep_units=0.3, floor=wrong)


def test_negative_and_infinite_scores_are_no_obstacle_to_the_knapsack() -> None:
    scores = torch.linspace(-1, 1, len(WIDE))
    scores[3], scores[45] = torch.inf, -torch.inf
    mask = select(scores, WIDE, keep_macs=0.6, fill="value")
    assert mask[3]
    assert not mask[45]


def test_wrong_ways_are_refused_in_one_sentence() -> None:
    scores = torch.zeros(len(WIDE))
    with pytest.raises(PruningError, match=r"scope must be one of global, layer, isomorphic"):
        select(scores, WIDE, keep_units=0.5, scope="each")
    with pytest.raises(PruningError, match=r"fill must be one of ranking, value, got 'best'"):
        select(scores, WIDE, keep_units=0.5, fill="best")
    with pytest.raises(PruningError, match=r"scope must be global, got 'layer'"):
        select(scores, WIDE, keep_macs=0.5, fill="value", scope="layer")
    with pytest.raises(PruningError, match="round_to must be a whole number of at least 1, got 0"):
        select(scores, WIDE, keep_units=0.5, round_to=0)
    with pytest.raises(PruningError, match=r"keep_units = 0.1 .* multiples of 8 alone costs"):
        select(scores, WIDE, keep_units=0.1, round_to=8)


def test_the_expected_fraction_meets_the_tightest_of_several_budgets() -> None:
    one, other = (
        expected_keep_units(WIDE, keep_macs=0.5), expected_keep_units(WIDE, keep_params=0.7)
    )  # fmt: skip
    assert expected_keep_units(WIDE, keep_macs=0.5, keep_params=0.7) == min(one, other)
    assert expected_keep_units(WIDE, keep_units=0.5) == pytest.approx(0.5)
    assert np.isclose(expected_keep_units(WIDE, keep_units=1.0), 1.0)
