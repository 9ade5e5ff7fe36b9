"""Composition of fixed schedules against closed forms, enumeration and two libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as google
from dp_accounting.pld.common import DifferentialPrivacyParameters
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.stats import norm

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._lattice import Lattice, chernoff_tilt, tilted_sum
from fedprune.privacy.budgets.composition import delta_of, epsilon_of, noise_multiplier_for
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    REPLACEMENT,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.losses import randomised_response, sampled_gaussian, zero_concentrated

EVENTS = st.one_of(
    st.builds(PureEvent, st.floats(0.01, 3.0)),
    st.builds(ZeroConcentratedEvent, st.floats(1e-4, 0.5)),
    st.builds(
        SubsampledGaussianEvent, st.floats(0.6, 5.0), st.floats(1e-3, 0.5), st.integers(1, 500)
    ),
)


def at_record(*events: tuple[Event, int], delta: float) -> float:
    return epsilon_of(events, delta, ADD_REMOVE_RECORD)


def exact_pure_delta(epsilons: list[float], epsilon: float) -> float:
    total = 0.0
    for signs in itertools.product((1, -1), repeat=len(epsilons)):
        loss = sum(sign * value for sign, value in zip(signs, epsilons, strict=True))
        mass = math.prod(
            1 / (1 + math.exp(-sign * value)) for sign, value in zip(signs, epsilons, strict=True)
        )
        total += mass * max(0.0, -math.expm1(epsilon - loss))
    return total


def googles(events: list[tuple[Event, int]]) -> google.PrivacyLossDistribution:
    total = google.identity(1e-4)
    for event, count in events:
        if isinstance(event, PureEvent):
            one = google.from_privacy_parameters(
                DifferentialPrivacyParameters(event.epsilon, 0), value_discretization_interval=1e-4
            )
            total = total.compose(one.self_compose(count))
        elif isinstance(event, SubsampledGaussianEvent):
            one = google.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sampling_rate,
                value_discretization_interval=1e-4,
            )
            total = total.compose(one.self_compose(event.steps * count))
    return total


def test_fifty_fold_randomised_response_has_the_published_epsilon() -> None:
    ours = epsilon_of([(PureEvent(0.2), 50)], 1e-5, REPLACEMENT)
    assert ours == pytest.approx(6.30778, abs=5e-6)
    theirs = google.from_randomized_response(
        2 / (1 + math.exp(0.2)), 2, value_discretization_interval=1e-5
    )
    assert ours == pytest.approx(theirs.self_compose(50).get_epsilon_for_delta(1e-5), abs=1e-3)
    assert epsilon_of([(PureEvent(0.2), 20), (PureEvent(0.2), 30)], 1e-5, REPLACEMENT) == ours


@settings(max_examples=40)
@given(
    epsilons=st.lists(st.floats(0.05, 2.5), min_size=1, max_size=9),
    log_delta=st.floats(-25.0, -1.5),
)
def test_pure_events_compose_as_enumeration_says(epsilons: list[float], log_delta: float) -> None:
    delta = math.exp(log_delta)
    found = epsilon_of([(PureEvent(value), 1) for value in epsilons], delta, REPLACEMENT)
    assert exact_pure_delta(epsilons, found) <= delta * (1 + 1e-9)
    if found > 0.01:
        assert exact_pure_delta(epsilons, found * 0.999) > delta * 0.999


@pytest.mark.parametrize("rho", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_gaussian_noise_without_sampling_equals_the_analytic_formula(
    rho: float, delta: float
) -> None:
    sigma = 1 / math.sqrt(2 * rho)
    ours = at_record((SubsampledGaussianEvent(2 * sigma, 1.0, 4), 1), delta=delta)

    def exact(epsilon: float) -> float:  # Balle & Wang 2018, Thm 8
        shift = 1 / (2 * sigma)
        return float(
            norm.cdf(shift - epsilon * sigma)
            - math.exp(epsilon + norm.logcdf(-shift - epsilon * sigma))
        )

    assert exact(ours) <= delta * (1 + 1e-6)
    assert exact(ours * 0.9995) > delta
    assert delta_of(
        [(SubsampledGaussianEvent(sigma, 1.0, 1), 1)], ours, ADD_REMOVE_RECORD
    ) == pytest.approx(delta, rel=2e-2)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.0, 0.01, 1000, 1e-5),
        (0.7, 0.05, 200, 1e-5),
        (2.0, 0.1, 500, 1e-6),
        (5.0, 0.5, 100, 1e-5),
        (1.1, 0.004, 5000, 1e-5),
        (0.6, 0.001, 5000, 1e-7),
    ],
)
def test_dp_sgd_is_within_a_percent_of_opacus_and_between_dp_accountings_bounds(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    event = SubsampledGaussianEvent(noise, rate, steps)
    ours = at_record((event, 1), delta=delta)
    opacus = PRVAccountant()
    opacus.history = [(noise, rate, steps)]
    assert ours == pytest.approx(opacus.get_epsilon(delta, eps_error=2e-3), rel=0.01)
    least = google.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-4,
    )
    assert ours >= least.self_compose(steps).get_epsilon_for_delta(delta)
    assert ours == pytest.approx(googles([(event, 1)]).get_epsilon_for_delta(delta), rel=1e-3)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_mixed_events_equal_dp_accountings_composition(delta: float) -> None:
    events = [
        (PureEvent(0.1), 60),
        (PureEvent(1.0), 1),
        (SubsampledGaussianEvent(2.0, 0.1, 300), 1),
        (SubsampledGaussianEvent(1.0, 0.01, 100), 2),
    ]
    ours = epsilon_of(events, delta, ADD_REMOVE_RECORD)
    assert ours == pytest.approx(googles(events).get_epsilon_for_delta(delta), rel=1e-3)
    assert delta_of(events, ours, ADD_REMOVE_RECORD) == pytest.approx(delta, rel=5e-3)


def test_a_zero_concentrated_event_costs_at_least_its_gaussian_and_at_most_its_renyi_curve() -> (
    None
):
    other = (SubsampledGaussianEvent(1.0, 0.01, 1000), 1)
    mixed = at_record((ZeroConcentratedEvent(0.1), 1), other, delta=1e-6)
    gaussian = at_record((SubsampledGaussianEvent(math.sqrt(5), 1.0, 1), 1), other, delta=1e-6)
    assert gaussian < mixed < 1.15 * gaussian
    alone = at_record((ZeroConcentratedEvent(0.1), 1), delta=1e-6)
    assert mixed < alone + at_record(other, delta=1e-6)
    split = at_record((ZeroConcentratedEvent(0.05), 2), other, delta=1e-6)
    assert split == pytest.approx(mixed, rel=1e-6)


@settings(max_examples=30)
@given(
    events=st.lists(EVENTS, min_size=1, max_size=4),
    more=EVENTS,
    log_delta=st.floats(-25.0, -4.0),
    order=st.randoms(use_true_random=False),
)
def test_epsilon_never_falls_when_an_event_is_added_nor_with_their_order(
    events: list[Event], more: Event, log_delta: float, order: object
) -> None:
    delta = math.exp(log_delta)
    counted = [(event, 1) for event in events]
    before = epsilon_of(counted, delta, ADD_REMOVE_RECORD)
    assert epsilon_of([*counted, (more, 1)], delta, ADD_REMOVE_RECORD) >= before * (1 - 2e-4)
    shuffled = list(counted)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert epsilon_of(shuffled, delta, ADD_REMOVE_RECORD) == before
    assert epsilon_of(counted, delta / 10, ADD_REMOVE_RECORD) >= before * (1 - 2e-4)


@settings(max_examples=15)
@given(event=EVENTS, log_delta=st.floats(-20.0, -4.0))
@example(event=SubsampledGaussianEvent(2.0, 0.03125, 1), log_delta=-4.0)  # epsilon is 0
@example(event=ZeroConcentratedEvent(0.0001), log_delta=-18.0)
def test_delta_at_the_epsilon_of_a_delta_is_that_delta_or_less(
    event: Event, log_delta: float
) -> None:
    delta = math.exp(log_delta)
    epsilon = at_record((event, 1), delta=delta)
    assert delta_of([(event, 1)], epsilon * 1.001 + 1e-6, ADD_REMOVE_RECORD) <= delta


@pytest.mark.parametrize(
    "loss",
    [
        randomised_response(0.37, 0.01),
        sampled_gaussian(0.8, 0.02, 0.003, 1e-15, removed=True),
        sampled_gaussian(0.8, 0.02, 0.003, 1e-15, removed=False),
        sampled_gaussian(1.5, 1.0, 0.003, 1e-15, removed=True),
        zero_concentrated(0.08, 0.003, 1e-12),
    ],
)
def test_losses_are_those_of_two_probability_distributions(loss: Lattice) -> None:
    assert (loss.masses >= 0).all()
    assert loss.masses.sum() + loss.at_infinity == pytest.approx(1, abs=1e-9)
    assert (loss.masses * np.exp(-loss.values)).sum() <= 1 + 1e-9


@pytest.mark.parametrize("removed", [True, False])
def test_a_loss_on_a_coarse_lattice_is_never_below_the_true_curve(removed: bool) -> None:
    noise, rate = 0.8, 0.2
    coarse = sampled_gaussian(noise, rate, 0.2, 1e-15, removed=removed)
    x = np.linspace(-30, 30, 600_001)
    q = norm.pdf(x, 0, noise)
    p = (1 - rate) * q + rate * norm.pdf(x, 1, noise)
    p, q = (p, q) if removed else (q, p)
    for epsilon in (0.0, 0.07, 0.2, 0.5, 1.0, 3.0):
        true = np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)
        more = coarse.masses @ np.maximum(-np.expm1(epsilon - coarse.values), 0)
        assert more + coarse.at_infinity >= true - 1e-9
        assert more <= true + 0.02


@given(tilt=st.floats(0.05, 3.0), count=st.integers(1, 40))
def test_a_tilted_sum_is_the_plain_convolution(tilt: float, count: int) -> None:
    one = Lattice(0.5, -2, np.array([0.2, 0.0, 0.3, 0.4, 0.1]))
    total = tilted_sum([(one, count)], tilt, 1e-12)
    plain = np.ones(1)
    for _ in range(count):
        plain = np.convolve(plain, one.masses)
    values = 0.5 * (np.arange(len(plain)) - 2 * count)
    untilt = np.exp(total.log_scale - tilt * total.values)
    middle = total.weights @ total.values
    for cut in middle + np.array([-1.0, 0.0, 2.0, 5.0]):
        seen, true = total.values > cut, plain[values > cut].sum()
        doubt = total.error * np.linalg.norm(untilt[seen]) + total.missing
        ours = (total.weights * untilt)[seen].sum()
        assert true * (1 - 1e-9) <= ours + doubt
        assert ours <= true * (1 + 1e-6) + doubt + 1e-12  # mass below the window wraps to its top
    assert chernoff_tilt([(one, count)], log_tail=-5.0) > 0


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "others"),
    [
        (2.0, 0.01, 1000, ()),
        (8.0, 0.1, 300, ((PureEvent(4.0), 1),)),
        (0.5, 1.0, 3, ()),
        (6.0, 0.05, 100, ((PureEvent(0.1), 10), (ZeroConcentratedEvent(0.1), 1))),
    ],
)
def test_a_noise_multiplier_meets_its_target_and_a_little_less_does_not(
    epsilon: float, rate: float, steps: int, others: tuple[tuple[Event, int], ...]
) -> None:
    noise = noise_multiplier_for(epsilon, 1e-5, rate, steps, others)
    assert (
        at_record((SubsampledGaussianEvent(noise, rate, steps), 1), *others, delta=1e-5) <= epsilon
    )
    less = SubsampledGaussianEvent(noise * 0.998, rate, steps)
    assert at_record((less, 1), *others, delta=1e-5) > epsilon


def test_no_noise_is_promised_where_the_other_events_take_everything() -> None:
    with pytest.raises(PrivacyError, match="other events alone mean"):
        noise_multiplier_for(1.0, 1e-5, 0.1, 10, [(PureEvent(2.0), 1)])
    for epsilon in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PrivacyError, match="no noise can meet"):
            noise_multiplier_for(epsilon, 1e-5, 0.1, 10)


def test_nothing_costs_nothing_and_without_delta_only_pure_events_have_an_epsilon() -> None:
    assert epsilon_of([], 1e-5, REPLACEMENT) == 0
    assert epsilon_of([(PureEvent(1.0), 0)], 0.0, REPLACEMENT) == 0
    assert epsilon_of([(PureEvent(1.0), 3)], 0.0, REPLACEMENT) == pytest.approx(3, abs=1e-12)
    assert epsilon_of([(PureEvent(1.0), 3)], 0.0, REPLACEMENT) >= 3
    assert epsilon_of([(ZeroConcentratedEvent(0.1), 1)], 0.0, REPLACEMENT) == math.inf
    assert delta_of([(PureEvent(1.0), 3)], 3.1, REPLACEMENT) == 0


@pytest.mark.parametrize(
    "event",
    [
        SubsampledGaussianEvent(0.03, 0.5, 1000),
        SubsampledGaussianEvent(0.05, 1e-6, 10**6),
        SubsampledGaussianEvent(1e6, 1e-6, 1),
        SubsampledGaussianEvent(10.0, 0.02, 10**6),
        PureEvent(500.0),
        PureEvent(1e5),
        ZeroConcentratedEvent(1e4),
        ZeroConcentratedEvent(1e-12),
    ],
)
def test_extreme_events_get_a_finite_bound(event: Event) -> None:
    assert 0 <= at_record((event, 1), (PureEvent(1e-3), 2), delta=1e-6) < 1e9
    assert 0 <= at_record((event, 1), delta=1e-30) < 1e9
    assert 0 <= delta_of([(event, 1)], 0.5, ADD_REMOVE_RECORD) <= 1


def test_what_says_nothing_under_a_relation_is_refused() -> None:
    with pytest.raises(PrivacyError, match="says nothing about replacement"):
        epsilon_of([(SubsampledGaussianEvent(1.0, 0.1, 5), 1)], 1e-5, REPLACEMENT)
    with pytest.raises(PrivacyError, match="relation must be one of"):
        epsilon_of([], 1e-5, "unprotected")
    with pytest.raises(PrivacyError, match="count must be"):
        epsilon_of([(PureEvent(1.0), -1)], 1e-5, REPLACEMENT)
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(PrivacyError, match="delta must be"):
            epsilon_of([(PureEvent(1.0), 1)], delta, REPLACEMENT)
    with pytest.raises(PrivacyError, match="epsilon must be"):
        delta_of([(PureEvent(1.0), 1)], -1.0, REPLACEMENT)
