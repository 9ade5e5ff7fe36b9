"""Filters never let through more than a budget means, in whatever order events come."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.composition import epsilon_of
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    RECORD,
    REPLACEMENT,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.filters import filter_of

PURE = st.builds(PureEvent, st.floats(1e-3, 8.0))
GAUSSIAN = st.builds(ZeroConcentratedEvent, st.floats(1e-5, 1.0))
SAMPLED = st.builds(
    SubsampledGaussianEvent, st.floats(0.5, 20.0), st.floats(1e-3, 0.9), st.integers(1, 2000)
)
BUDGETS = [
    Budget(4.0, relation=ADD_REMOVE_RECORD),
    Budget.zcdp(4.0, 1e-5, ADD_REMOVE_RECORD),
    Budget.renyi(4.0, 1e-5, ADD_REMOVE_RECORD),
    Budget.renyi(20.0, 1e-5, ADD_REMOVE_RECORD, [SubsampledGaussianEvent(1.0, 0.05, 500)]),
]
EXPRESSIBLE = [PURE, PURE | GAUSSIAN, PURE | GAUSSIAN | SAMPLED, PURE | GAUSSIAN | SAMPLED]


def let_through(budget: Budget, events: list[Event]) -> tuple[list[Event], Fraction]:
    kept, spent, passed = filter_of(budget), Fraction(0), []
    for event in events:
        if spent + kept.charge(event) <= kept.capacity:
            spent += kept.charge(event)
            passed.append(event)
    return passed, spent


@pytest.mark.parametrize("number", range(len(BUDGETS)))
@settings(max_examples=30)
@given(data=st.data())
def test_what_a_filter_lets_through_means_no_more_than_its_budget(
    number: int, data: st.DataObject
) -> None:
    budget = BUDGETS[number]
    events = data.draw(st.lists(EXPRESSIBLE[number], max_size=8))
    passed, spent = let_through(budget, events)
    tight = epsilon_of([(event, 1) for event in passed], budget.delta, budget.relation)
    assert tight <= budget.epsilon * (1 + 2e-4)
    assert filter_of(budget).epsilon_of(spent) <= budget.epsilon


@pytest.mark.parametrize("number", range(len(BUDGETS)))
@settings(max_examples=50)
@given(data=st.data())
def test_the_order_of_events_does_not_matter_and_an_event_never_lowers_what_is_spent(
    number: int, data: st.DataObject
) -> None:
    kept = filter_of(BUDGETS[number])
    events = data.draw(st.lists(EXPRESSIBLE[number], min_size=1, max_size=6))
    charges = [kept.charge(event) for event in events]
    assert all(charge > 0 for charge in charges)
    assert sum(charges) == sum(reversed(charges))
    shown = [kept.epsilon_of(sum(charges[:k], Fraction(0))) for k in range(len(charges) + 1)]
    assert shown[0] == 0
    assert all(a <= b * (1 + 1e-6) for a, b in pairwise(shown))


@given(
    epsilon=st.floats(0.05, 20.0),
    log_delta=st.floats(-30.0, -2.0),
    order=st.sampled_from([2.0, 9.5]),
)
def test_the_whole_capacity_means_the_budget_and_a_grain_more_does_not_fit(
    epsilon: float, log_delta: float, order: float
) -> None:
    delta = math.exp(log_delta)
    for make in (
        lambda: filter_of(Budget.zcdp(epsilon, delta)),
        lambda: filter_of(Budget(epsilon, delta, composition="renyi", order=order)),
    ):
        try:
            kept = make()
        except PrivacyError as error:
            assert "leaves nothing" in str(error)  # noqa: PT017
            continue
        assert kept.epsilon_of(kept.capacity) <= epsilon
        assert kept.epsilon_of(kept.capacity * 2) > epsilon
        assert kept.capacity.denominator <= 2**40


def test_a_pure_budget_is_spent_to_the_last_digit() -> None:
    kept = filter_of(Budget(0.3))
    assert kept.charge(PureEvent(0.1)) == Fraction(0.1)
    assert 3 * Fraction(0.1) > kept.capacity  # 0.1 is a little more than a tenth


def test_more_budget_means_more_capacity() -> None:
    for make in (
        lambda e, d: Budget.zcdp(e, d),
        lambda e, d: Budget(e, d, composition="renyi", order=12.0),
    ):
        capacities = [filter_of(make(e, 1e-5)).capacity for e in (1.5, 2.0, 4.0, 8.0)]
        assert capacities == sorted(capacities)
        capacities = [filter_of(make(2.0, d)).capacity for d in (1e-7, 1e-6, 1e-5, 1e-3)]
        assert capacities == sorted(capacities)


def test_an_order_made_for_dp_sgd_leaves_more_of_it() -> None:
    event = SubsampledGaussianEvent(0.7, 0.001, 2000)
    plain = filter_of(Budget.renyi(4.0, 1e-5, ADD_REMOVE_RECORD))
    made = filter_of(Budget.renyi(4.0, 1e-5, ADD_REMOVE_RECORD, [event]))
    assert made.charge(event) / made.capacity < plain.charge(event) / plain.capacity


@pytest.mark.parametrize(
    ("budget", "event", "named"),
    [
        (Budget(4.0), ZeroConcentratedEvent(0.1), "pure events only"),
        (Budget(4.0), SubsampledGaussianEvent(1.0, 0.1, 5), "pure events only"),
        (Budget.zcdp(4.0, 1e-5), SubsampledGaussianEvent(1.0, 0.1, 5), "needs 'renyi'"),
    ],
)
def test_what_a_currency_cannot_express_is_refused_by_name(
    budget: Budget, event: Event, named: str
) -> None:
    with pytest.raises(PrivacyError, match=named):
        filter_of(budget).charge(event)


def test_gaussian_noise_without_sampling_counts_as_zero_concentrated() -> None:
    kept = filter_of(Budget.zcdp(4.0, 1e-5, ADD_REMOVE_RECORD))
    whole = kept.charge(SubsampledGaussianEvent(2.0, 1.0, 3))
    assert float(whole) == pytest.approx(3 / (2 * 2.0**2), abs=1e-11)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_is_read_back_exactly(budget: Budget) -> None:
    assert Budget.from_text(budget.to_text()) == budget
    assert hash(Budget.from_text(budget.to_text())) == hash(budget)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        Budget(4.0).to_text() + " ",
        Budget(4.0).to_text().replace("pure", "magic"),
        Budget(4.0).to_text().replace("0x1.0000000000000p+2", "nan"),
        Budget(4.0).to_text()[:-1] + ',"more":"1"}',
        "[" * 100_000,
    ],
)
def test_what_is_not_a_budget_is_refused(text: str) -> None:
    with pytest.raises(PrivacyError):
        Budget.from_text(text)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"epsilon": 1.0, "delta": 1e-5}, "delta must be 0"),
        ({"epsilon": 1.0, "composition": "zcdp"}, "delta in"),
        ({"epsilon": 1.0, "delta": math.nan, "composition": "zcdp"}, "delta in"),
        ({"epsilon": 1.0, "delta": 1.0, "composition": "zcdp"}, "delta in"),
        ({"epsilon": 1.0, "delta": 1e-5, "composition": "renyi"}, "order"),
        ({"epsilon": 1.0, "delta": 1e-5, "composition": "renyi", "order": 1.0}, "order"),
        ({"epsilon": 1.0, "delta": 1e-5, "composition": "zcdp", "order": 3.0}, "order"),
        ({"epsilon": 1.0, "composition": "advanced"}, "one of pure"),
        ({"epsilon": 1.0, "relation": "unprotected"}, "relation"),
        ({"epsilon": 1.0, "unit": RECORD}, "unit"),
    ],
)
def test_budgets_that_promise_nothing_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(PrivacyError, match=named):
        Budget(**values)  # type: ignore[arg-type]


def test_the_unit_follows_from_the_relation() -> None:
    assert Budget(1.0).unit == "client"
    assert Budget(1.0, relation=ADD_REMOVE_RECORD).unit == "record"
    assert Budget(1.0, unit="client", relation=REPLACEMENT) == Budget(1.0)


def test_a_budget_too_small_for_its_currency_is_refused() -> None:
    with pytest.raises(PrivacyError, match="leaves nothing"):
        filter_of(Budget(0.1, 1e-9, composition="renyi", order=1.5))
    with pytest.raises(PrivacyError, match="no Renyi order"):
        Budget.renyi(1e-6, 1e-9)
