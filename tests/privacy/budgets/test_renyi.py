"""Renyi bounds against integration, closed forms and two libraries."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import rdp as google
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus
from scipy.integrate import quad
from scipy.stats import norm

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._rounding import above, below, float_up, grid_down, grid_up
from fedprune.privacy.budgets.events import (
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.renyi import (
    ORDERS,
    epsilon_from_renyi,
    epsilon_from_rho,
    pure_rho,
    renyi_capacity,
    renyi_of,
    rho_capacity,
)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("order", [2, 3, 8, 32])
def test_a_sampled_gaussian_equals_opacus_and_dp_accounting(
    noise: float, rate: float, order: int
) -> None:
    ours = renyi_of(SubsampledGaussianEvent(noise, rate, 7), order)
    theirs = opacus.compute_rdp(q=rate, noise_multiplier=noise, steps=7, orders=float(order))
    assert ours == pytest.approx(float(theirs), rel=1e-6, abs=1e-13)
    accountant = google.RdpAccountant([order])
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), 7)
    assert ours == pytest.approx(accountant._rdp[0], rel=1e-6, abs=1e-13)


@pytest.mark.parametrize(("noise", "rate", "order"), [(1.0, 0.1, 2), (0.8, 0.3, 5), (2.0, 0.5, 3)])
def test_a_sampled_gaussian_is_the_integral_and_the_other_direction_is_less(
    noise: float, rate: float, order: int
) -> None:
    def moment(flip: bool) -> float:
        def density(x: float) -> float:
            q = norm.pdf(x, 0, noise)
            p = (1 - rate) * q + rate * norm.pdf(x, 1, noise)
            first, second = (q, p) if flip else (p, q)
            return float(first * (first / second) ** (order - 1))

        return math.log(quad(density, -15 * noise, 25 * noise, epsabs=0, limit=400)[0]) / (
            order - 1
        )

    ours = renyi_of(SubsampledGaussianEvent(noise, rate, 1), order)
    assert moment(False) == pytest.approx(ours, rel=1e-8)
    assert moment(True) <= ours


@given(
    noise=st.floats(0.5, 10.0),
    rate=st.floats(1e-4, 0.99),
    order=st.floats(1.05, 40.0).filter(lambda order: order % 1 > 1e-3),
)
def test_between_whole_orders_the_bound_lies_above_the_exact_divergence(
    noise: float, rate: float, order: float
) -> None:
    x = np.linspace(-20 * noise, 20 * noise + order, 40_001)
    log_noise = norm.logpdf(x, 0, noise)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + norm.logpdf(x, 1, noise) - log_noise)
    terms = log_noise + order * ratio
    exact = terms.max() + math.log(np.trapezoid(np.exp(terms - terms.max()), x))
    exact = exact / (order - 1)
    assert renyi_of(SubsampledGaussianEvent(noise, rate, 1), order) >= exact * (1 - 1e-7) - 1e-10


@given(epsilon=st.floats(1e-4, 60.0), order=st.sampled_from(ORDERS))
def test_a_pure_event_has_the_divergence_of_randomised_response(
    epsilon: float, order: float
) -> None:
    log_p, log_q = -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(epsilon))
    moment = np.logaddexp(order * log_p + (1 - order) * log_q, order * log_q + (1 - order) * log_p)
    exact = float(moment) / (order - 1)
    ours = renyi_of(PureEvent(epsilon), order)
    assert ours == pytest.approx(exact, rel=1e-9, abs=1e-13 / (order - 1))
    assert ours <= min(epsilon, order * pure_rho(epsilon))


@given(epsilon=st.floats(1e-3, 60.0))
def test_the_rho_of_a_pure_event_is_its_divergence_near_order_one_and_never_above_half_its_square(
    epsilon: float,
) -> None:
    keep = 1 / (1 + math.exp(-epsilon))
    assert pure_rho(epsilon) == pytest.approx(epsilon * (2 * keep - 1), rel=1e-9)
    assert pure_rho(epsilon) <= epsilon**2 / 2 * (1 + 1e-9)


@given(rho=st.floats(1e-6, 20.0), log_delta=st.floats(-30.0, -1.0), more=st.floats(1.0, 3.0))
def test_conversions_are_monotone_and_never_better_than_the_exact_gaussian(
    rho: float, log_delta: float, more: float
) -> None:
    delta = math.exp(log_delta)
    epsilon = epsilon_from_rho(rho, delta)
    assert epsilon <= epsilon_from_rho(rho * more, delta) * (1 + 1e-9)
    assert epsilon >= epsilon_from_rho(rho, min(0.9, delta * more)) * (1 - 1e-9)
    sigma = 1 / math.sqrt(2 * rho)  # Balle & Wang 2018, Thm 8
    shift = 1 / (2 * sigma)
    exact = norm.cdf(shift - epsilon * sigma) - math.exp(
        epsilon + norm.logcdf(-shift - epsilon * sigma)
    )
    assert exact <= delta * (1 + 1e-6)


def test_conversions_equal_dp_accountings() -> None:
    for order in (1.5, 2.0, 8.0, 60.0):
        theirs, _ = google.compute_epsilon([order], [0.7], 1e-6)
        assert epsilon_from_renyi(0.7, order, 1e-6) == pytest.approx(float(theirs), rel=1e-9)


@given(epsilon=st.floats(0.1, 30.0), log_delta=st.floats(-30.0, -1.0))
def test_a_capacity_is_the_inverse_of_the_conversion_rounded_down(
    epsilon: float, log_delta: float
) -> None:
    delta = math.exp(log_delta)
    rho = rho_capacity(epsilon, delta)
    assert epsilon_from_rho(rho, delta) <= epsilon * (1 + 1e-9)
    assert epsilon_from_rho(rho * 1.001, delta) > epsilon
    for order in (1.5, 4.0, 64.0):
        divergence = renyi_capacity(epsilon, delta, order)
        if divergence > 0:
            assert epsilon_from_renyi(divergence, order, delta) == pytest.approx(epsilon, rel=1e-9)


def test_a_gaussian_costs_rho_times_the_order() -> None:
    assert renyi_of(ZeroConcentratedEvent(0.25), 8.0) == pytest.approx(2.0, rel=1e-12)
    assert renyi_of(SubsampledGaussianEvent(2.0, 1.0, 4), 8.0) == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("order", [1.0, 0.5, math.nan, math.inf, 5000.0, True])
def test_orders_at_which_nothing_is_computed_are_refused(order: float) -> None:
    with pytest.raises(PrivacyError, match="order"):
        renyi_of(PureEvent(1.0), order)


def test_what_underflows_is_still_charged() -> None:
    assert renyi_of(SubsampledGaussianEvent(1e200, 1e-9, 1), 2.0) > 0
    assert grid_up(renyi_of(SubsampledGaussianEvent(1e200, 1e-9, 1), 2.0)) == Fraction(1, 2**40)


@given(st.floats(-1e9, 1e9))
def test_rounding_errs_on_the_stated_side(value: float) -> None:
    assert below(value) < value < above(value)
    assert grid_down(value) <= Fraction(value) <= grid_up(value)
    assert grid_up(value) - grid_down(value) <= Fraction(1, 2**40)
    assert Fraction(float_up(Fraction(value) / 3)) >= Fraction(value) / 3


def test_a_cost_that_is_not_finite_is_refused() -> None:
    with pytest.raises(PrivacyError, match="finite"):
        grid_up(math.inf)
    assert float_up(Fraction(10) ** 400) == math.inf
