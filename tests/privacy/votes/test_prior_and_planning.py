"""The magnitude prior helps and never misleads; predictions match simulation."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy import (
    magnitude_posterior,
    not_covered,
    predict_recall,
    variance_for_recall,
)


def world(seed: int, variance: float, correlation: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(6), 60)
    line = correlation * rng.normal(size=360)
    truth = 0.5 + 0.1 * rng.normal(size=6)[groups] + 0.2 * line
    truth = truth + 0.2 * np.sqrt(1 - correlation**2) * rng.normal(size=360)
    vote = truth + np.sqrt(variance) * rng.normal(size=360)
    return truth, vote, np.full(360, variance), np.exp(line + 0.3 * groups), groups


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    half = len(truth) // 2
    return len({*np.argsort(-found)[:half]} & {*np.argsort(-truth)[:half]}) / half


@pytest.mark.parametrize("variance", [0.003, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_prior_never_hurts_on_average(variance: float, correlation: float) -> None:
    gains = []
    for seed in range(8):
        truth, vote, spread, magnitude, groups = world(seed, variance, correlation)
        posterior = magnitude_posterior(vote, spread, magnitude, groups)
        gains.append(recall(posterior.mean, truth) - recall(vote, truth))
    assert np.mean(gains) > -0.005
    if variance >= 0.05 and correlation >= 0.5:
        assert np.mean(gains) > 0.03


def test_the_posterior_is_the_exact_gaussian_one_and_its_variance_is_honest() -> None:
    errors, stated = [], []
    for seed in range(20):
        truth, vote, spread, magnitude, groups = world(seed, 0.05, 0.7)
        posterior = magnitude_posterior(vote, spread, magnitude, groups)
        errors.append(((posterior.mean - truth) ** 2).mean())
        stated.append(posterior.variance.mean())
    assert np.mean(errors) == pytest.approx(np.mean(stated), rel=0.1)


def test_votes_without_noise_stay_as_they_are() -> None:
    truth, _, _, magnitude, groups = world(0, 0.1, 0.5)
    posterior = magnitude_posterior(truth, np.full(360, 1e-12), magnitude, groups)
    assert np.abs(posterior.mean - truth).max() < 1e-6


def test_equal_and_zero_magnitudes_are_no_trouble() -> None:
    _, vote, spread, _, groups = world(0, 0.1, 0.5)
    for magnitude in (np.ones(360), np.zeros(360), np.arange(360.0)):
        assert np.isfinite(magnitude_posterior(vote, spread, magnitude, groups).mean).all()
    assert np.isfinite(magnitude_posterior(vote, spread, np.ones(360)).mean).all()


@pytest.mark.parametrize("reliable", [0.0, 0.9])
def test_an_earlier_step_helps_as_far_as_it_knows_something(reliable: float) -> None:
    gains = []
    for seed in range(8):
        truth, vote, spread, magnitude, groups = world(seed, 0.1, 0.3)
        noise = np.random.default_rng(seed + 50).normal(size=360)
        earlier = reliable * (truth - 0.5) / truth.std() + np.sqrt(1 - reliable**2) * noise
        with_it = magnitude_posterior(vote, spread, magnitude, groups, earlier=earlier)
        without = magnitude_posterior(vote, spread, magnitude, groups)
        gains.append(recall(with_it.mean, truth) - recall(without.mean, truth))
        assert (with_it.variance > 0).all()
    if reliable:
        assert np.mean(gains) > 0.05
    else:
        assert abs(np.mean(gains)) < 0.01


def test_two_steps_of_other_clients_know_as_much_as_one_with_both_cohorts() -> None:
    twice, pooled = [], []
    for seed in range(12):
        truth, first, spread, magnitude, groups = world(seed, 0.05, 0.5)
        second = truth + np.sqrt(0.05) * np.random.default_rng(seed + 900).normal(size=360)
        before = magnitude_posterior(first, spread, magnitude, groups).mean
        carried = magnitude_posterior(second, spread, magnitude, groups, earlier=before).mean
        both = magnitude_posterior((first + second) / 2, spread / 2, magnitude, groups).mean
        twice.append(recall(carried, truth))
        pooled.append(recall(both, truth))
    assert np.mean(twice) == pytest.approx(np.mean(pooled), abs=0.01)


def test_an_earlier_step_without_differences_changes_nothing() -> None:
    _, vote, spread, magnitude, groups = world(0, 0.1, 0.5)
    flat = magnitude_posterior(vote, spread, magnitude, groups, earlier=np.full(360, 0.4))
    plain = magnitude_posterior(vote, spread, magnitude, groups)
    assert flat.mean == pytest.approx(plain.mean, abs=1e-3)


def test_what_is_not_finite_or_not_equally_long_is_refused() -> None:
    with pytest.raises(PrivacyError, match="finite"):
        magnitude_posterior(np.array([np.nan]), np.ones(1), np.ones(1))
    with pytest.raises(PrivacyError, match="equally long"):
        magnitude_posterior(np.ones(2), np.ones(1), np.ones(1))
    with pytest.raises(PrivacyError, match="equally long"):
        magnitude_posterior(np.ones(2), np.ones(2), np.ones(2), earlier=np.ones(3))
    with pytest.raises(PrivacyError, match="finite"):
        magnitude_posterior(np.ones(2), np.ones(2), np.ones(2), earlier=np.array([0.0, np.inf]))


@pytest.mark.parametrize(("variance", "published"), [(0.89, 0.6), (0.015, 0.9), (0.0043, 0.95)])
def test_predictions_match_the_published_anchors(variance: float, published: float) -> None:
    assert predict_recall(variance) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_predictions_match_a_simulation_of_the_client_model(keep: float) -> None:
    rng = np.random.default_rng(0)
    importance = rng.normal(size=2000)
    scores = importance + rng.normal(size=(400, 2000))
    kept = round(keep * 2000)
    cut = np.partition(scores, -kept, axis=1)[:, -kept][:, None]
    truth = (scores >= cut).mean(axis=0)
    variance = 0.02
    found = []
    for _ in range(10):
        noisy = truth + np.sqrt(variance) * rng.normal(size=2000)
        found.append(len({*np.argsort(-noisy)[:kept]} & {*np.argsort(-truth)[:kept]}) / kept)
    assert predict_recall(variance, keep) == pytest.approx(np.mean(found), abs=0.02)


def test_recall_falls_with_variance_and_inverts() -> None:
    variances = [0.0, 1e-4, 1e-2, 1.0, 100.0]
    recalls = [predict_recall(v, 0.3) for v in variances]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] == 1.0
    assert recalls[-1] == pytest.approx(0.3, abs=0.03)
    assert predict_recall(variance_for_recall(0.8, 0.3), 0.3) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("keep", [1e-9, 3e-4, 0.01, 0.999])
def test_extreme_fractions_are_predicted_and_inverted(keep: float) -> None:
    assert 0 <= predict_recall(0.1, keep) <= 1
    target = max(0.9, keep + 0.8 * (1 - keep))
    assert predict_recall(variance_for_recall(target, keep), keep) == pytest.approx(
        target, abs=1e-3
    )


def test_what_no_epsilon_covers_is_listed_whole_from_any_iterable() -> None:
    kinds = ["count-table", "model-update", "count-table"]
    assert not_covered(iter(kinds)) == not_covered(kinds)
    assert len(not_covered(kinds)) == 2
