"""Record-level score sums: bounded exactly, noised exactly, unbiased, and useful for ranking."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.gaussian_noise import SIGMA
from fedprune.privacy.mechanisms.record_scores import RecordScores, ScoreEstimate
from fedprune.privacy.mechanisms.reports import Report
from fedprune.randomness import SecureRandomness, SimulationRandomness

ANY = npst.arrays(
    np.float64,
    st.tuples(st.integers(0, 4), st.just(7)),
    elements=st.floats(allow_nan=True, allow_infinity=True, width=64),
)


def length_squared(row: NDArray[np.int64]) -> int:
    return sum(int(part) ** 2 for part in row)


def lognormal_scores(records: int, units: int, seed: int = 1) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return np.exp(2 * generator.normal(size=(records, units)) + generator.normal(size=units))


@given(ANY, st.sampled_from([0.01, 1.0, 8.0, 60.0]))
def test_no_record_contributes_more_than_the_length_that_is_accounted(
    scores: NDArray[np.float64], epsilon: float
) -> None:
    mechanism = RecordScores(epsilon, 1e-5, 7)
    rows = mechanism.contributions(scores)
    assert all(length_squared(row) <= mechanism.length_units**2 for row in rows)


@given(ANY, st.integers(0, 3))
@settings(max_examples=50)
def test_one_record_more_changes_the_sum_by_its_own_contribution_and_nothing_else(
    scores: NDArray[np.float64], place: int
) -> None:
    mechanism = RecordScores(4.0, 1e-5, 7)
    if place >= len(scores):
        return
    with_it = mechanism.contributions(scores).sum(axis=0)
    without = mechanism.contributions(np.delete(scores, place, axis=0)).sum(axis=0)
    assert length_squared(with_it - without) <= mechanism.length_units**2


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 8.0])
def test_the_event_means_no_more_than_epsilon_and_uses_nearly_all_of_it(epsilon: float) -> None:
    mechanism = RecordScores(epsilon, 1e-5, 100)
    assert Fraction(mechanism.event.rho) >= mechanism.rho
    allowed = filter_of(Budget.zcdp(epsilon, 1e-5, ADD_REMOVE_RECORD))
    assert allowed.charge(mechanism.event) <= allowed.capacity
    accountant = RdpAccountant().compose(GaussianDpEvent(SIGMA / mechanism.length_units))
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, rel=0.02)


def test_rho_is_sensitivity_squared_over_twice_the_noise_variance() -> None:
    mechanism = RecordScores(2.0, 1e-6, 10)
    assert mechanism.rho == Fraction(mechanism.length_units) ** 2 / (2 * Fraction(SIGMA) ** 2)


def test_the_estimate_is_unbiased_and_its_variance_the_stated_one() -> None:
    mechanism = RecordScores(3.0, 1e-5, 400)
    scores = lognormal_scores(6, 400)
    truth = mechanism.contributions(scores).sum(axis=0) / mechanism.length_units
    errors = []
    for seed in range(60):
        reports = [mechanism.randomize(scores, SimulationRandomness(seed, i)) for i in range(3)]
        found = mechanism.estimate(reports)
        errors.append((found.mean - truth) / np.sqrt(found.variance))
    standard = np.concatenate(errors)
    assert abs(standard.mean()) < 5 / math.sqrt(standard.size)
    assert abs(standard.std() - 1) < 5 / math.sqrt(2 * standard.size)


def test_reports_of_any_data_have_one_size_and_differ_from_draw_to_draw() -> None:
    mechanism = RecordScores(1.0, 1e-5, 5)
    nothing, much = np.zeros((0, 5)), np.full((1000, 5), 1e30)
    for scores in (nothing, much):
        drawn = {bytes(mechanism.randomize(scores, SecureRandomness())) for _ in range(3)}
        assert len(drawn) == 3
        assert {len(report) for report in drawn} == {mechanism.report_bytes}


def test_a_record_that_is_not_finite_is_negative_or_is_flat_says_nothing() -> None:
    mechanism = RecordScores(1.0, 1e-5, 3)
    rows = [[np.nan, 1, 2], [np.inf, 0, 0], [-1, 2, 3], [0, 0, 0], [5.0, 5.0, 5.0], [0, 0, 1e-320]]
    found = mechanism.contributions(rows)
    assert not found[:5].any()
    assert found[5].any()


def test_scores_scaled_by_a_constant_say_the_same() -> None:
    mechanism, scores = RecordScores(4.0, 1e-5, 50), lognormal_scores(20, 50)
    one, other = mechanism.contributions(scores), mechanism.contributions(scores * 2.0**40)
    assert np.array_equal(one, other)


def test_votes_keep_the_ranking_and_the_ratio_of_signal_to_noise() -> None:
    estimate = ScoreEstimate(np.array([-3.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]), 9)
    votes = estimate.votes()
    assert votes.mean.tolist() == sorted(votes.mean.tolist())
    assert np.sqrt(np.mean((votes.mean - 0.5) ** 2)) == pytest.approx(0.25)
    assert (votes.mean - 0.5) ** 2 / votes.variance == pytest.approx(estimate.mean**2 / 0.5)
    assert ScoreEstimate(np.zeros(2), np.ones(2), 1).votes().mean.tolist() == [0.5, 0.5]


def test_the_ranking_of_few_clients_is_found_at_a_moderate_epsilon() -> None:
    generator = np.random.default_rng(4)
    importance = generator.normal(size=60)
    mechanism = RecordScores(4.0, 1e-5, 60)
    reports = [
        mechanism.randomize(
            np.exp(importance + generator.normal(size=(100, 60))), SimulationRandomness(1, client)
        )
        for client in range(5)
    ]
    found = mechanism.estimate(reports).mean
    top = set(np.argsort(-importance)[:30])
    assert len(top & set(np.argsort(-found)[:30])) / 30 > 0.9


@pytest.mark.parametrize(
    ("epsilon", "delta", "units"),
    [(0.0, 1e-5, 3), (-1.0, 1e-5, 3), (math.nan, 1e-5, 3), (math.inf, 1e-5, 3), (1.0, 0.0, 3),
     (1.0, 1.0, 3), (1.0, 1e-5, 0), (1.0, 1e-5, 2.5), (1e-300, 1e-5, 3)],
)  # fmt: skip
def test_parameters_that_promise_nothing_are_refused(
    epsilon: float, delta: float, units: int
) -> None:
    with pytest.raises(PrivacyError):
        RecordScores(epsilon, delta, units)


def test_forged_reports_and_scores_of_another_width_are_refused_by_name() -> None:
    mechanism = RecordScores(1.0, 1e-5, 3)
    with pytest.raises(ReportError, match="report 0 must have 24 bytes, got 23"):
        mechanism.estimate([Report(b"x" * 23)])
    with pytest.raises(ReportError, match="at least one report"):
        mechanism.estimate([])
    with pytest.raises(ReportError, match="3 scores"):
        mechanism.randomize(np.ones((2, 4)), SecureRandomness())
    extreme = Report(np.array([2**63 - 1] * 3, dtype="<i8").tobytes())
    assert np.isfinite(mechanism.estimate([extreme] * 4).mean).all()  # no wrapping around
