"""Predictions for a single vote hold in simulations of the client model they state."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.privacy.votes.planning import (
    aggregate_variance,
    predict_recall,
    recall_interval,
    record_variance,
)


def simulated_recall(rng: np.random.Generator, variance: float, units: int, keep: float) -> float:
    """Recall of one noisy vote of 200 clients, each with its own deviations."""
    kept = round(keep * units)
    scores = rng.normal(size=units) + rng.normal(size=(200, units))
    cut = np.partition(scores, -kept, axis=1)[:, -kept][:, None]
    truth = (scores >= cut).mean(axis=0)
    noisy = truth + np.sqrt(variance) * rng.normal(size=units)
    truth = truth + 1e-6 * rng.normal(size=units)  # breaks ties
    return len({*np.argsort(-noisy)[:kept]} & {*np.argsort(-truth)[:kept]}) / kept


@pytest.mark.parametrize(("variance", "units", "keep"), [(0.1, 60, 0.5), (0.02, 200, 0.3)])
def test_the_interval_holds_the_recall_of_single_votes_as_often_as_it_says(
    variance: float, units: int, keep: float
) -> None:
    rng = np.random.default_rng(5)
    found = np.array([simulated_recall(rng, variance, units, keep) for _ in range(200)])
    interval = recall_interval(variance, units, keep, confidence=0.9)
    inside = ((found >= interval.low - 1e-9) & (found <= interval.high + 1e-9)).mean()
    assert inside > 0.84
    assert interval.high - interval.low < 6 * found.std()


def test_more_units_make_it_narrower_and_more_confidence_wider() -> None:
    widths = []
    for units in (50, 500, 5_000, 500_000):
        interval = recall_interval(0.05, units)
        assert interval.low <= interval.expected <= interval.high
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths, reverse=True)
    narrow, wide = (recall_interval(0.05, 500, confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_clients_who_differ_more_are_harder_to_find_a_mask_for() -> None:
    recalls = [predict_recall(0.05, 0.5, spread) for spread in (0.5, 1.0, 2.0)]
    assert recalls == sorted(recalls, reverse=True)
    interval = recall_interval(0.05, 500)
    assert (interval.model_high, interval.model_low) == (recalls[0], recalls[2])


def test_the_same_question_gets_the_same_interval() -> None:
    assert recall_interval(0.05, 300) == recall_interval(0.05, 300)
    assert recall_interval(0.0, 300).low == 1.0
    assert recall_interval(3.0, 300, 1.0).low == 1.0


def test_the_variance_of_a_secure_sum_is_that_of_the_mechanism() -> None:
    for keep, least, reports in [(392, 100, 100), (392, 100, 250), (None, 40, 50)]:
        mechanism = AggregateMechanism(4.0, 1e-5, 784, least, keep=keep)
        predicted = aggregate_variance(4.0, 1e-5, 784, reports, min_reports=least, keep_count=keep)
        assert predicted == pytest.approx(mechanism.variance_per_vote(reports), rel=1e-3)


@pytest.mark.parametrize(
    ("clients", "epsilon", "published"),
    [(100, 1, 0.60), (100, 4, 0.77), (100, 8, 0.86), (1_000, 1, 0.91), (1_000, 4, 0.97)],
)
def test_secure_sums_reach_the_published_recalls(
    clients: int, epsilon: float, published: float
) -> None:
    variance = aggregate_variance(epsilon, 1e-5, 784, clients, keep_count=392)
    assert predict_recall(variance) == pytest.approx(published, abs=0.02)


def test_the_variance_of_record_scores_is_the_mechanisms_noise_over_the_shared_signal() -> None:
    rng = np.random.default_rng(0)
    units, records, clients = 300, 40, 8
    mechanism = RecordScores(2.0, 1e-5, units)
    shared = rng.normal(size=units)
    shared -= shared.mean()
    shared /= np.linalg.norm(shared)
    own = rng.normal(size=(records * clients, units))
    own -= own.mean(axis=1, keepdims=True)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    agreement = 0.4
    rows = agreement * shared + np.sqrt(1 - agreement**2) * own
    mean = rows.sum(axis=0) / clients
    noise = mechanism.variance_per_client / clients
    signal = (mean @ shared) ** 2 / units
    predicted = record_variance(2.0, 1e-5, units, clients, records, agreement)
    assert predicted == pytest.approx(noise / signal / 12, rel=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: recall_interval(-1.0, 10),
        lambda: recall_interval(0.1, 0),
        lambda: recall_interval(0.1, 10, 0.0),
        lambda: recall_interval(0.1, 10, confidence=1.0),
        lambda: recall_interval(float("nan"), 10),
        lambda: predict_recall(0.1, 0.5, 0.0),
        lambda: aggregate_variance(1.0, 1e-5, 10, 5, min_reports=6),
        lambda: aggregate_variance(1.0, 1e-5, 10, 5, keep_count=10),
        lambda: record_variance(1.0, 1e-5, 10, 5, 100, 0.0),
    ],
)
def test_values_out_of_range_are_refused(call: object) -> None:
    with pytest.raises(PrivacyError, match="must be"):
        call()  # type: ignore[operator]
