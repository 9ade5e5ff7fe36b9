"""Distributed noise: its accounting against exact divergences, its votes against the truth."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism, sum_rho
from fedprune.privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from fedprune.randomness import SimulationRandomness

ORDERS = (1.01, 1.5, 2.0, 4.0, 16.0, 64.0)


def law_of_the_sum(variance: float, num_terms: int) -> np.ndarray:
    """P of a sum of discrete Gaussians on -reach..reach, by convolution."""
    k = np.arange(-60, 61)
    one = np.exp(-(k**2) / (2 * variance))
    one /= one.sum()
    total = one
    for _ in range(num_terms - 1):
        total = np.convolve(total, one)
    return total


def divergence(law: np.ndarray, shift: int, order: float) -> float:
    """Renyi divergence between a law and itself shifted, where both have mass."""
    p, q = law[shift:], law[: len(law) - shift]
    both = (p > 1e-250) & (q > 1e-250)
    logs = order * np.log(p[both]) + (1 - order) * np.log(q[both])
    peak = logs.max()
    return float((peak + math.log(np.exp(logs - peak).sum())) / (order - 1))


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2)])
@pytest.mark.parametrize("num_terms", [1, 2, 3, 5])
def test_the_sum_of_discrete_gaussians_is_as_private_as_stated(
    variance: Fraction, num_terms: int
) -> None:
    law = law_of_the_sum(float(variance), num_terms)
    for shift in (1, 2):
        rho = sum_rho(shift**2, variance, num_terms, 1)
        worst = max(divergence(law, shift, order) / order for order in ORDERS)
        assert worst <= rho * (1 + 1e-12)  # the divergence is a float's
        if variance >= 1:
            assert worst > 0.97 * rho


def test_a_sum_of_narrow_discrete_gaussians_is_less_private_than_one_wide_one() -> None:
    law = law_of_the_sum(0.25, 4)
    naive = 1 / (2 * 4 * 0.25)
    assert max(divergence(law, 1, order) / order for order in ORDERS) > 1.02 * naive


@pytest.mark.parametrize("keep", [None, 1, 2, 4])
def test_the_sensitivity_is_the_largest_distance_of_two_masks(keep: int | None) -> None:
    d = 5
    masks = [np.array(m) for m in product((0, 1), repeat=d) if keep in (None, sum(m))]
    largest = max(int(((a - b) ** 2).sum()) for a in masks for b in masks)
    assert AggregateMechanism(1.0, 1e-6, d, 10, keep).squared_sensitivity == largest


@settings(max_examples=40)
@given(
    epsilon=st.floats(0.05, 40),
    delta=st.floats(1e-10, 1e-3),
    num_units=st.integers(2, 2000),
    min_reports=st.integers(4, 20_000),
    colluding=st.integers(0, 3),
    share=st.none() | st.floats(0, 1),
)
def test_the_noise_keeps_the_budget_and_wastes_next_to_nothing(
    epsilon: float,
    delta: float,
    num_units: int,
    min_reports: int,
    colluding: int,
    share: float | None,
) -> None:
    keep = None if share is None else 1 + int(share * (num_units - 2))
    mechanism = AggregateMechanism(epsilon, delta, num_units, min_reports, keep, colluding)
    allowed = filter_of(Budget.zcdp(epsilon, delta))
    assert allowed.charge(mechanism.event) <= allowed.capacity
    honest = min_reports - colluding
    sensitivity = mechanism.scale**2 * mechanism.squared_sensitivity
    assert mechanism.rho >= sensitivity / (2 * honest * float(mechanism.noise_variance))
    assert mechanism.rho == sum_rho(sensitivity, mechanism.noise_variance, honest, num_units)
    gaussian = mechanism.squared_sensitivity / (2 * float(allowed.capacity))
    sum_noise = honest * float(mechanism.noise_variance) / mechanism.scale**2
    assert sum_noise <= gaussian * (1 + 1e-4)
    assert mechanism.wrap_probability(1_000_000) < 1e-15


def test_colluders_cost_the_noise_that_they_know() -> None:
    plain = AggregateMechanism(1.0, 1e-6, 100, 8)
    wary = AggregateMechanism(1.0, 1e-6, 100, 10, colluding=2)
    assert plain.noise_variance == wary.noise_variance
    assert plain.rho == wary.rho


def test_a_sum_of_vectors_is_the_masks_plus_the_noise_modulo_the_range() -> None:
    mechanism = AggregateMechanism(2.0, 1e-6, 20, 5)
    masks = np.random.default_rng(1).random((6, 20)) < 0.5
    vectors = mechanism.randomize_many(masks, [SimulationRandomness(1, i) for i in range(6)])
    noise = DiscreteGaussian(mechanism.noise_variance).sample(
        [SimulationRandomness(1, i) for i in range(6)], 20
    )
    expected = (mechanism.scale * masks + noise).sum(axis=0)
    found = mechanism.estimate(vectors.sum(axis=0, dtype=vectors.dtype), 6)
    assert np.allclose(found.mean * mechanism.scale * 6, expected, atol=1e-9)
    assert (vectors > 2**31).any(), "negative noise must wrap around"
    assert np.array_equal(vectors[2], mechanism.randomize(masks[2], SimulationRandomness(1, 2)))


@pytest.mark.parametrize(("epsilon", "min_reports"), [(0.5, 50), (8.0, 2000)])
def test_votes_are_unbiased_with_the_stated_variance(epsilon: float, min_reports: int) -> None:
    mechanism = AggregateMechanism(epsilon, 1e-6, 40, min_reports, keep=20)
    masks = np.tile(mechanism.blank(), (min_reports, 1))
    errors = []
    for trial in range(30):
        rng = SimulationRandomness(3, trial)
        total = mechanism.randomize_many(masks, [rng] * min_reports).sum(axis=0)
        estimate = mechanism.estimate(total.astype(mechanism.dtype), min_reports)
        errors.append((estimate.mean - masks[0]) / np.sqrt(estimate.variance))
        assert estimate.variance[0] == mechanism.variance_per_vote(min_reports)
    scaled = np.concatenate(errors)
    assert abs(scaled.mean()) < 4 / math.sqrt(scaled.size)
    assert abs((scaled**2).mean() - 1) < 4 * math.sqrt(2 / scaled.size)


def test_more_clients_than_the_least_number_make_the_votes_sharper() -> None:
    mechanism = AggregateMechanism(1.0, 1e-6, 40, 50)
    assert mechanism.variance_per_vote(100) == mechanism.variance_per_vote(50) / 2


def test_what_the_noise_was_not_made_for_is_refused() -> None:
    mechanism = AggregateMechanism(1.0, 1e-6, 6, 10, keep=3)
    rng = SimulationRandomness(1)
    with pytest.raises(ReportError, match="exactly 3 units"):
        mechanism.randomize(np.array([True] * 4 + [False] * 2), rng)
    with pytest.raises(ReportError, match="6 units"):
        mechanism.randomize(np.ones(5, dtype=bool), rng)
    with pytest.raises(ReportError, match="boolean"):
        mechanism.randomize(np.array([1, 1, 1, 0, 0, 0]), rng)
    with pytest.raises(ReportError, match="as many random sources"):
        mechanism.randomize_many(mechanism.blank()[None], [])
    total = np.zeros(6, dtype=mechanism.dtype)
    with pytest.raises(ReportError, match=r"over 9 clients.*min_reports = 10"):
        mechanism.estimate(total, 9)
    with pytest.raises(ReportError, match="may pass"):
        mechanism.estimate(total, 2**32)
    with pytest.raises(ReportError, match="the sum must be"):
        mechanism.estimate(total[:-1], 10)
    with pytest.raises(ReportError, match="the sum must be"):
        mechanism.estimate(total.astype(np.int64), 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": float("nan")}, "epsilon must be above 0"),
        ({"epsilon": float("inf")}, "epsilon must be above 0"),
        ({"epsilon": 1e-7}, "leaves nothing to spend"),
        ({"epsilon": 0.05, "num_units": 10**9}, "deviation above"),
        ({"delta": 0.0}, "delta in"),
        ({"num_units": 0}, "num_units"),
        ({"min_reports": 1}, "min_reports"),
        ({"min_reports": True}, "min_reports"),
        ({"keep": 0}, "keep"),
        ({"keep": 10}, "keep"),
        ({"colluding": 8}, "colluding"),
        ({"colluding": -1}, "colluding"),
    ],
)
def test_parameters_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    good = {"epsilon": 1.0, "delta": 1e-6, "num_units": 10, "min_reports": 8}
    with pytest.raises(PrivacyError, match=message):
        AggregateMechanism(**(good | values))  # type: ignore[arg-type]


def test_the_bound_is_refused_where_its_proof_does_not_hold() -> None:
    with pytest.raises(PrivacyError, match="at least 1/4"):
        sum_rho(1, Fraction(1, 5), 2, 1)
