from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, propose_regrowth


@pytest.fixture(scope="module")
def layout(build) -> UnitLayout:
    return UnitLayout.of(*build("plain"))  # groups of 6, 5 and 7 units


def half(layout: UnitLayout, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    while True:
        mask = torch.rand(len(layout), generator=generator) < 0.5
        if all(bool(mask[group.units].any()) for group in layout.groups):
            return mask


def test_noise_alone_brings_a_unit_back_no_more_often_than_the_significance(
    layout: UnitLayout,
) -> None:
    """All units deserve the same: every exchange is wrong."""
    draws = np.random.default_rng(0)
    variances = torch.from_numpy(draws.uniform(0.2, 3.0, len(layout)))
    repeats, wrong = 1500, {"given": 0, "the worst of all": 0}
    for _ in range(repeats):
        votes = torch.from_numpy(draws.normal(0.5, variances.sqrt().numpy()))
        lowest = torch.zeros(len(layout), dtype=torch.bool)
        lowest[votes.argsort()[: len(layout) // 2]] = True  # a mask chosen by these very votes
        for name, mask in (("given", half(layout, 1)), ("the worst of all", lowest)):
            found = propose_regrowth(mask, votes, variances, layout, significance=0.2)
            wrong[name] += bool(found.returned)
    for times in wrong.values():
        assert times <= 0.2 * repeats + 4 * np.sqrt(0.2 * 0.8 * repeats)
        assert times > 0  # the bound is not met by never moving


def test_votes_of_any_dependence_are_within_the_significance_where_it_is_allowed_for(
    layout: UnitLayout,
) -> None:
    """Kept and removed units err in opposite directions: the worst dependence."""
    draws = np.random.default_rng(0)
    mask, repeats, wrong = half(layout, 1), 1000, {True: 0, False: 0}
    variances = torch.ones(len(layout), dtype=torch.float64)
    signs = torch.where(mask, -1.0, 1.0).double()
    for _ in range(repeats):
        votes = signs * float(draws.normal())
        for independent in wrong:
            found = propose_regrowth(
                mask, votes, variances, layout, significance=0.05, independent=independent
            )
            wrong[independent] += bool(found.returned)
    assert wrong[False] <= 0.05 * repeats + 4 * np.sqrt(0.05 * 0.95 * repeats)


def test_units_that_were_removed_by_mistake_come_back_once_clients_are_many(
    layout: UnitLayout,
) -> None:
    """Votes are means of clients' masks; the truth is what infinitely many clients would say."""
    draws = np.random.default_rng(2)
    truth = draws.permutation(np.linspace(0.1, 0.9, len(layout)))
    wanted = torch.from_numpy(truth >= np.median(truth))
    wrong = wanted.clone()
    lost, kept_too_long = int(np.argmax(truth)), int(np.argmin(truth))
    wrong[lost], wrong[kept_too_long] = False, True
    recovered = []
    for clients in (3, 20_000):
        noise = draws.normal(size=len(layout)) / np.sqrt(clients)  # what a mechanism adds
        votes = draws.binomial(clients, truth) / clients + noise
        variances = (truth * (1 - truth) + 1) / clients
        found = propose_regrowth(
            wrong, torch.from_numpy(votes), torch.from_numpy(variances), layout
        )
        recovered.append(bool((found.mask == wanted).all()))
    assert recovered == [False, True]


@given(seed=st.integers(0, 10_000), floor=st.integers(1, 4), within=st.booleans())
def test_the_number_kept_floors_and_costs_stay_and_every_exchange_is_significant(
    layout: UnitLayout, seed: int, floor: int, within: bool
) -> None:
    draws = np.random.default_rng(seed)
    mask = half(layout, seed)
    votes = torch.from_numpy(draws.normal(size=len(layout)))
    variances = torch.from_numpy(draws.choice([0.0, 0.001, 0.01, 0.1], size=len(layout)))
    found = propose_regrowth(mask, votes, variances, layout, floor=floor, within_groups=within)
    assert int(found.mask.sum()) == int(mask.sum())
    moved = [*found.returned, *found.removed]
    assert len(set(moved)) == len(moved)
    assert set(found.returned) == set((found.mask & ~mask).nonzero().flatten().tolist())
    assert set(found.removed) == set((mask & ~found.mask).nonzero().flatten().tolist())
    for back, gone in zip(found.returned, found.removed, strict=True):
        deviation = float((variances[back] + variances[gone]).sqrt())
        assert votes[back] - votes[gone] > found.critical * deviation
    for group in layout.groups:
        before, after = int(mask[group.units].sum()), int(found.mask[group.units].sum())
        assert after >= min(before, floor)
        assert not within or before == after
    if within:
        assert layout.macs(found.mask) == layout.macs(mask)
        assert layout.params(found.mask) == layout.params(mask)


def test_without_noise_the_best_units_are_kept_whatever_was_kept_before(
    layout: UnitLayout,
) -> None:
    votes = torch.linspace(1, 0, len(layout), dtype=torch.float64)
    votes = votes[torch.randperm(len(layout), generator=torch.Generator().manual_seed(0))]
    mask = half(layout, 5)
    found = propose_regrowth(mask, votes, torch.zeros(len(layout)), layout)
    best = votes.argsort(descending=True)[: int(mask.sum())]
    if all(bool(found.mask[group.units].sum() > 1) for group in layout.groups):
        assert set(found.mask.nonzero().flatten().tolist()) == set(best.tolist())
    # What is left to exchange is held by a floor alone.
    for back, gone in itertools.product(
        (~found.mask).nonzero().flatten().tolist(), found.mask.nonzero().flatten().tolist()
    ):
        group = layout.groups[int(layout.group_of[gone])]
        assert votes[back] <= votes[gone] or int(found.mask[group.units].sum()) == 1


def test_the_critical_value_is_the_normal_quantile_over_all_ordered_pairs(
    layout: UnitLayout,
) -> None:
    mask = half(layout, 5)
    pairs = len(layout) * (len(layout) - 1)
    found = propose_regrowth(
        mask, torch.zeros(len(layout)), torch.ones(len(layout)), layout, significance=0.01
    )
    assert norm.sf(found.critical) * pairs == pytest.approx(0.01)


def test_equal_votes_move_nothing_and_ties_go_to_the_lower_unit(layout: UnitLayout) -> None:
    mask = torch.zeros(len(layout), dtype=torch.bool)
    mask[[0, 1, 6, 7, 11, 12]] = True
    same = torch.full((len(layout),), 0.5)
    none = torch.zeros(len(layout))
    assert propose_regrowth(mask, same, none, layout).returned == ()
    votes = same.clone()
    votes[[3, 4]] = 1.0
    votes[mask] = 0.0
    found = propose_regrowth(mask, votes, none, layout)
    assert found.returned[:2] == (3, 4)  # the highest votes, the lower unit first
    assert found.removed[:2] == (12, 7)  # the higher unit goes first; each group keeps one


def test_a_full_or_settled_mask_is_left_alone(layout: UnitLayout) -> None:
    everything = torch.ones(len(layout), dtype=torch.bool)
    found = propose_regrowth(everything, torch.rand(len(layout)), torch.zeros(len(layout)), layout)
    assert bool(found.mask.all())
    assert found.returned == found.removed == ()


def test_the_callers_tensors_are_left_as_they_were(layout: UnitLayout) -> None:
    mask, votes = half(layout, 0), torch.rand(len(layout))
    before = mask.clone(), votes.clone()
    propose_regrowth(mask, votes, torch.zeros(len(layout)), layout)
    assert bool((mask == before[0]).all())
    assert bool((votes == before[1]).all())


def test_bad_input_is_one_sentence(layout: UnitLayout) -> None:
    mask, zeros = half(layout, 0), torch.zeros(len(layout))
    with pytest.raises(PruningError, match="votes must be 18 numbers for PlainCnn, got shape"):
        propose_regrowth(mask, zeros[1:], zeros, layout)
    with pytest.raises(PruningError, match=r"variances must be at least 0, got -1\.0 for unit 0"):
        propose_regrowth(mask, zeros, zeros - 1, layout)
    with pytest.raises(PruningError, match="votes must be finite, got nan for unit 0"):
        propose_regrowth(mask, zeros * torch.nan, zeros, layout)
    with pytest.raises(PruningError, match=r"significance must be in \(0, 1\), got 1"):
        propose_regrowth(mask, zeros, zeros, layout, significance=1.0)
    with pytest.raises(PruningError, match="floor must be at least 1, got 0"):
        propose_regrowth(mask, zeros, zeros, layout, floor=0)
