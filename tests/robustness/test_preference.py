"""Among equal masks the one with the smaller bound, as good as trying all where one can."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedprune.errors import RobustnessError
from fedprune.robustness import equally_good, lipschitz, prefer_smaller_bound

Mask = NDArray[np.bool_]


def hidden_units() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def bound_of(mask: Mask) -> float:
    model = hidden_units()
    model[0].weight.data *= torch.from_numpy(mask)[:, None]
    model[0].bias.data *= torch.from_numpy(mask)
    return lipschitz(model, torch.zeros(1, 6), samples=0).upper


KINDS = np.zeros(8, dtype=np.int64)
GIVEN = np.array([True] * 4 + [False] * 4)


def test_with_all_votes_tied_it_is_nearly_as_good_as_trying_every_mask() -> None:
    found = prefer_smaller_bound(GIVEN, np.ones(8), bound_of, kinds=KINDS)
    every = [
        bound_of(np.isin(np.arange(8), chosen)) for chosen in itertools.combinations(range(8), 4)
    ]
    assert min(every) <= found.bound <= np.quantile(every, 0.1)
    assert found.bound < found.bound_before == bound_of(GIVEN)
    assert found.bound == bound_of(found.mask)
    assert found.value_lost == 0
    assert found.mask.sum() == 4


def test_untied_votes_are_not_touched() -> None:
    values = np.linspace(1, 0, 8)
    found = prefer_smaller_bound(GIVEN, values, bound_of, kinds=KINDS)
    assert (found.mask == GIVEN).all()
    assert (found.exchanges, found.value_lost) == (0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_no_unit_is_replaced_by_one_beyond_the_tolerance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, kinds = generator.random(8), generator.integers(0, 2, 8)
    mask = np.zeros(8, dtype=bool)
    for kind in (0, 1):
        units = np.flatnonzero(kinds == kind)
        mask[units[np.argsort(-values[units])[: len(units) // 2]]] = True
    found = prefer_smaller_bound(
        mask, values, bound_of, kinds=kinds, tolerance=0.3, total_loss=0.5, evaluations=40
    )
    assert found.bound <= found.bound_before
    assert found.evaluations <= 40
    assert found.value_lost <= 0.5 * (1 + 1e-9)
    for kind in (0, 1):
        same = kinds == kind
        assert found.mask[same].sum() == mask[same].sum()
        left = np.sort(values[mask & ~found.mask & same])
        entered = np.sort(values[found.mask & ~mask & same])
        assert (left - entered <= 0.3).all()


def test_a_guess_at_the_influence_saves_evaluations() -> None:
    model = hidden_units()
    influence = (model[0].weight.norm(dim=1) * model[2].weight.norm(dim=0)).detach().numpy()
    guided = prefer_smaller_bound(
        GIVEN, np.ones(8), bound_of, kinds=KINDS, influence=influence.astype(float), evaluations=2
    )
    assert guided.bound < guided.bound_before
    assert guided.evaluations == 2
    blind = prefer_smaller_bound(GIVEN, np.ones(8), bound_of, kinds=KINDS, evaluations=1)
    assert blind.evaluations == 1
    assert (blind.mask == GIVEN).all()


def test_the_given_mask_is_not_changed() -> None:
    mask = GIVEN.copy()

    def overwriting(candidate: Mask) -> float:
        value = bound_of(candidate)
        candidate[:] = False
        return value

    found = prefer_smaller_bound(mask, np.ones(8), overwriting, kinds=KINDS, evaluations=30)
    assert (mask == GIVEN).all()
    assert found.mask.sum() == 4


def test_bad_questions_are_refused() -> None:
    ones = np.ones(8)
    with pytest.raises(RobustnessError, match="one shape"):
        prefer_smaller_bound(GIVEN, np.ones(7), bound_of, kinds=KINDS)
    with pytest.raises(RobustnessError, match="one shape"):
        prefer_smaller_bound(GIVEN.astype(int), ones, bound_of, kinds=KINDS)
    with pytest.raises(RobustnessError, match="finite"):
        prefer_smaller_bound(GIVEN, ones * math.nan, bound_of, kinds=KINDS)
    with pytest.raises(RobustnessError, match="tolerance"):
        prefer_smaller_bound(GIVEN, ones, bound_of, kinds=KINDS, tolerance=-1.0)
    with pytest.raises(RobustnessError, match="NaN"):
        prefer_smaller_bound(GIVEN, ones, lambda _: math.nan, kinds=KINDS)


def test_what_the_search_may_give_is_what_it_gives_and_no_more() -> None:
    values = np.array([1.0, 0.9, 0.8, 0.52, 0.5, 0.2, 0.1, 0.0])
    found = prefer_smaller_bound(GIVEN, values, bound_of, kinds=KINDS, tolerance=0.35)
    assert found.exchanges > 0

    def good(mask: Mask, tolerance: float = 0.35, total_loss: float = math.inf) -> bool:
        return equally_good(
            GIVEN, mask, values, kinds=KINDS, tolerance=tolerance, total_loss=total_loss
        )

    assert good(GIVEN)
    assert good(found.mask)
    assert not good(found.mask, tolerance=0.0)
    assert not good(found.mask, total_loss=found.value_lost / 2)
    assert not good(np.ones(8, dtype=bool))  # more units
    assert not good(GIVEN & (values > 0.6))  # fewer
    assert not good(~GIVEN)  # beyond the tolerance
    assert not good(GIVEN[:4])


def test_units_of_another_kind_are_no_replacement() -> None:
    kinds = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    other = np.array([True] * 3 + [False] * 3 + [True] + [False])
    assert not equally_good(GIVEN, other, np.ones(8), kinds=kinds)
    assert equally_good(GIVEN, other, np.ones(8), kinds=KINDS)
