"""Laws of group-aware scores and of the dual variables."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedprune.errors import FairnessError
from fedprune.fairness import dual_step, group_weights, importance_share, worst_group

importances = arrays.arrays(np.float64, (3, 6), elements=st.floats(0.01, 100))
duals = arrays.arrays(np.float64, 4, elements=st.floats(0, 3))
row_counts = arrays.arrays(np.int64, 4, elements=st.integers(1, 1000))


@given(importances)
def test_a_unit_scores_at_least_what_it_is_worth_to_any_group(importance) -> None:
    scores = worst_group(importance)
    assert np.all(scores >= importance)
    assert np.all([score in importance[:, unit] for unit, score in enumerate(scores)])


@given(importances, arrays.arrays(np.float64, 3, elements=st.floats(0.01, 100)))
def test_shares_do_not_see_the_scale_of_a_group(importance, factors) -> None:
    for combine in ("max", "mean"):
        scaled = importance_share(importance * factors[:, None], combine=combine)
        assert scaled == pytest.approx(importance_share(importance, combine=combine), rel=1e-9)


@given(importances)
def test_mean_shares_sum_to_one_and_the_largest_is_no_smaller(importance) -> None:
    mean = importance_share(importance, combine="mean")
    assert mean.sum() == pytest.approx(1)
    assert np.all(importance_share(importance) >= mean - 1e-12)


def test_shares_follow_their_formula() -> None:
    importance = np.array([[1.0, 3.0], [30.0, 10.0]])
    assert importance_share(importance).tolist() == [0.75, 0.75]
    weighted = importance_share(importance, combine="mean", weights=[3, 1])
    assert weighted.tolist() == [0.375, 0.625]


def test_a_group_without_importance_is_left_out() -> None:
    importance = np.array([[1.0, 3.0], [0.0, 0.0]])
    assert importance_share(importance).tolist() == [0.25, 0.75]
    assert importance_share(importance, combine="mean").tolist() == [0.25, 0.75]


def test_a_small_group_keeps_its_unit_only_by_group_aware_scores() -> None:
    importance = np.array([[5.0, 4.0, 0.0], [0.01, 0.0, 0.03]])
    overall = np.array([0.99, 0.01]) @ importance
    assert overall.argmin() == 2
    assert importance_share(importance).argmin() == 1


@given(duals, arrays.arrays(np.float64, 4, elements=st.floats(-1, 1)))
def test_a_dual_variable_rises_exactly_where_the_tolerance_is_exceeded(now, excess) -> None:
    moved = dual_step(now, excess, tolerance=0.02, step=0.5)
    assert np.all(moved >= 0)
    assert np.all(moved[excess > 0.02] > now[excess > 0.02])
    assert np.all(moved[excess < 0.02] <= now[excess < 0.02])
    inside = now + 0.5 * (excess - 0.02) > 0
    assert moved[inside] == pytest.approx((now + 0.5 * (excess - 0.02))[inside])


def test_a_group_without_a_figure_keeps_its_variable_and_caps_hold() -> None:
    moved = dual_step([0.3, 0.9, 0.0], [np.nan, 0.9, -0.1], tolerance=0.0, step=1.0, largest=1.0)
    assert moved.tolist() == [0.3, 1.0, 0.0]


@given(duals, row_counts)
def test_weights_average_to_one_over_rows_and_are_never_negative(now, rows) -> None:
    weights = group_weights(now, rows)
    assert np.all(weights >= 0)
    assert weights @ rows == pytest.approx(rows.sum())


def test_weights_are_the_gradient_of_the_lagrangian() -> None:
    rows, now = np.array([50.0, 30.0, 20.0]), np.array([0.0, 0.1, 0.4])
    losses = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    shares = torch.from_numpy(rows / rows.sum())
    overall = shares @ losses
    lagrangian = overall + torch.from_numpy(now) @ (losses - overall)
    lagrangian.backward()
    assert group_weights(now, rows) == pytest.approx((losses.grad / shares).numpy())


def test_no_duals_change_nothing_and_empty_groups_weigh_one() -> None:
    assert group_weights([0, 0], [10, 30]).tolist() == [1, 1]
    assert group_weights([0.5, 0.5, 0.0], [0, 10, -3]).tolist() == [1, 1, 1]
    assert group_weights([0.0, 5.0], [90, 10]) == pytest.approx([0.0, 10.0])


def test_ascent_finds_weights_that_meet_the_tolerance() -> None:
    # Two groups want different means; the plain fit of the mean favours the large one.
    rows, wanted, fitted = np.array([90.0, 10.0]), np.array([0.0, 1.0]), 0.0
    now, shares = np.zeros(2), np.array([0.9, 0.1])
    for _ in range(500):
        weights = group_weights(now, rows) * shares
        fitted = weights @ wanted / weights.sum()
        losses = (fitted - wanted) ** 2
        now = dual_step(now, losses - shares @ losses, tolerance=0.05, step=0.2)
    assert losses[1] - shares @ losses == pytest.approx(0.05, abs=0.01)


def test_huge_and_tiny_numbers_have_the_shares_of_ordinary_ones() -> None:
    for unit in (1e308, 1.0, 5e-324):
        assert importance_share([[unit, unit]]).tolist() == [0.5, 0.5]
        shares = importance_share([[1, 3], [3, 1]], combine="mean", weights=[unit, unit])
        assert shares.tolist() == [0.5, 0.5]
        assert group_weights([1, 1], [unit, unit]).tolist() == [1, 1]
    left = importance_share([[0, 0], [1, 3]], combine="mean", weights=[1e308, 1e-300])
    assert left.tolist() == [0.25, 0.75]
    assert importance_share([[1e308, 1e308], [1, 3]]).tolist() == [0.5, 0.75]


def test_a_step_is_exact_where_a_difference_on_the_way_is_too_large() -> None:
    largest = np.finfo(np.float64).max
    moved = dual_step([10.0, 10.0], [-largest, largest], tolerance=largest, step=1 / largest)
    assert moved == pytest.approx([8.0, 10.0])
    assert dual_step([1.0], [1e308], tolerance=0, step=1e308, largest=3.0).tolist() == [3.0]
    assert dual_step([1.0], [-1e308], tolerance=0, step=1e308).tolist() == [0.0]


@given(arrays.arrays(np.float64, 4, elements=st.floats(0, 2.0**38)), row_counts)
def test_weights_of_large_duals_are_those_of_exact_fractions(now, rows) -> None:
    shares = [Fraction(int(count), int(rows.sum())) for count in rows]
    exact = [Fraction(float(dual)) for dual in now]
    raw = [max(0, 1 - sum(exact) + dual / pi) for dual, pi in zip(exact, shares, strict=True)]
    mean = sum(pi * weight for pi, weight in zip(shares, raw, strict=True))
    expected = [float(weight / mean) for weight in raw]
    error = 1e-12 * (1 + float(sum(exact)))
    assert group_weights(now, rows) == pytest.approx(expected, rel=1e-9, abs=error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_group([[1], [1, 2]]), "importance must fill an array"),
        (lambda: worst_group([["a", "b"]]), "importance must be numbers"),
        (lambda: dual_step([1e308], [1e308], tolerance=0, step=1e308), "must stay finite"),
        (lambda: group_weights([1e308, 1e308], [1, 1]), "duals must be at most 5.* got 1e.308"),
        (lambda: group_weights([1, 1], [1e308, 1e-300]), "a group with rows must have at least"),
        (lambda: worst_group(np.zeros((0, 3))), "num_groups, num_units"),
        (lambda: worst_group([[1.0, np.nan]]), "finite and at least 0"),
        (lambda: worst_group([[1.0, -1.0]]), "finite and at least 0"),
        (lambda: importance_share([[0.0, 0.0]]), "no group that counts"),
        (lambda: importance_share([[1.0]], combine="sum"), "one of max, mean"),
        (lambda: importance_share([[1.0]], weights=[1.0]), "weights are for"),
        (lambda: importance_share([[1.0]], combine="mean", weights=[0.0]), "not all be 0"),
        (lambda: importance_share([[1.0]], combine="mean", weights=[1, 2]), "1 finite numbers"),
        (lambda: dual_step([0.0], [0.1, 0.2], tolerance=0, step=1), "one for each group"),
        (lambda: dual_step([-1.0], [0.1], tolerance=0, step=1), "at least 0"),
        (lambda: dual_step([0.0], [np.inf], tolerance=0, step=1), "excess losses finite"),
        (lambda: dual_step([0.0], [0.1], tolerance=0, step=0), "step and largest above 0"),
        (lambda: group_weights([0.0], [0.0]), "zero examples"),
        (lambda: group_weights([0.0], [1.0, 2.0]), "one for each group"),
        (lambda: group_weights([np.nan], [1.0]), "finite"),
    ],
)
def test_impossible_questions_are_refused(call, message) -> None:
    with pytest.raises(FairnessError, match=message):
        call()
