from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import norm


def by_the_largest_other_weight(n: int, k: int, signal: float) -> float:
    """The same probability by the law of the other weights' maximum, adaptively integrated."""

    def inside(x: float) -> float:
        below = 2 * norm.cdf(x) - 1
        above = norm.sf(x - signal) + norm.cdf(-x - signal)
        return float((n - k) * 2 * norm.pdf(x) * below ** (n - k - 1) * above**k)

    peaks = [signal, math.sqrt(2 * math.log(n)), signal + 2]
    return float(integrate.quad(inside, 0, signal + 15, points=peaks, epsabs=1e-12, limit=500)[0])


@pytest.mark.parametrize(("n", "k"), [(5, 1), (20, 4), (100, 10), (1000, 20), (400, 399)])
@pytest.mark.parametrize("signal", [0.0, 0.7, 3.0, 6.5])
def test_the_probability_of_recovery_is_exact_to_a_hundred_millionth(
    study, n: int, k: int, signal: float
) -> None:
    found = study("support_recovery").recovery_probability(n, k, signal)
    assert found == pytest.approx(by_the_largest_other_weight(n, k, signal), abs=1e-8)


@given(n=st.integers(2, 12), data=st.data())
def test_without_a_signal_recovery_is_a_draw_of_one_support_among_all(
    n: int, data: st.DataObject
) -> None:
    import support_recovery

    k = data.draw(st.integers(1, n))
    found = support_recovery.recovery_probability(n, k, 0.0)
    assert found == pytest.approx(1 / math.comb(n, k), abs=1e-9)
    assert support_recovery.expected_recall(n, k, 0.0) == pytest.approx(k / n, abs=1e-9)


def test_recovery_depends_on_the_signal_in_deviations_alone(study) -> None:
    recovery = study("support_recovery")
    assert recovery.recovery_probability(50, 5, 3.0, 2.0) == pytest.approx(
        recovery.recovery_probability(50, 5, 1.5), abs=1e-10
    )
    assert recovery.expected_recall(50, 5, 3.0, 2.0) == pytest.approx(
        recovery.expected_recall(50, 5, 1.5), abs=1e-10
    )


def test_both_closed_forms_of_recovery_agree_with_simulation_within_its_interval(
    run_small,
) -> None:
    """27 exact 95 % intervals: that 6 or more miss has a chance of 0.2 %."""
    result = run_small("support_recovery")
    assert result["intervals"] == 27
    assert result["inside"] >= 22
    for row in result["rows"]:
        exact, simulated = row["exact_recall"], row["simulated_recall"]
        # A share in [0, 1] of mean p has a variance of at most p (1 - p).
        most = 4 * math.sqrt(exact * (1 - exact) / simulated["repeats"])
        assert abs(exact - simulated["mean"]) <= most


def test_one_planted_weight_is_found_as_often_as_its_share_says(study) -> None:
    """With k = 1 finding the support and finding its only member are one event."""
    recovery = study("support_recovery")
    for signal in (0.0, 1.0, 4.0):
        assert recovery.expected_recall(30, 1, signal) == pytest.approx(
            recovery.recovery_probability(30, 1, signal), abs=1e-10
        )


def test_no_support_beats_magnitude_in_the_frobenius_norm(run_small) -> None:
    result = run_small("magnitude_is_best", draws=4, shape=(3, 4), kept=5)
    assert result["largest_difference_from_the_best"] < 1e-12
    assert result["largest_difference_from_the_best_rows"] < 1e-12
    for row in result["outputs"]:
        assert row["mean"] <= 1 + 1e-12
        if row["correlation"] == 0 and row["input_spread"] == 0:
            assert row["mean"] == pytest.approx(1, abs=1e-12)


def test_the_output_error_of_a_support_is_the_least_over_all_values_on_it(study) -> None:
    best = study("magnitude_is_best")
    draws = np.random.default_rng(0)
    inputs = draws.normal(size=(50, 6)) @ draws.normal(size=(6, 6))
    covariance, vector = inputs.T @ inputs, draws.normal(size=6)
    for support in itertools.combinations(range(6), 3):
        fitted = np.linalg.lstsq(inputs[:, support], inputs @ vector, rcond=None)[0]
        residual = inputs @ vector - inputs[:, support] @ fitted
        found = best.output_error(vector, covariance, support)
        assert found == pytest.approx(float(residual @ residual), rel=1e-9)


@given(seed=st.integers(0, 5000), kept=st.integers(1, 5))
def test_magnitude_is_a_optimal_for_orthogonal_sensors(seed: int, kept: int) -> None:
    import a_optimal

    setting = a_optimal.Setting(sensors=6, kept=kept, clusters=2)
    sensors = a_optimal.design(setting, 0.0, np.random.default_rng(seed))
    assert np.allclose(sensors @ sensors.T, np.diag(np.diag(sensors @ sensors.T)), atol=1e-10)
    best = a_optimal.exhaustive(sensors, setting)
    assert a_optimal.by_magnitude(sensors, setting) == best
    assert a_optimal.greedy(sensors, setting) == best
    lengths = np.linalg.norm(sensors[list(best)], axis=1)
    assert a_optimal.posterior_trace(sensors, best, setting) == pytest.approx(
        a_optimal.orthogonal_trace(lengths, 6, setting), abs=1e-9
    )


def test_overlapping_sensors_make_magnitude_worse_than_greedy(run_small) -> None:
    result = run_small("a_optimal", sensors=8, kept=3, clusters=2, overlaps=(0.0, 0.95), draws=12)
    apart, together = result["rows"]
    assert apart["magnitude_is_best"] == 1
    assert apart["magnitude"]["mean"] == pytest.approx(1, abs=1e-9)
    assert together["magnitude"]["mean"] < together["greedy"]["mean"] <= 1 + 1e-9
    assert together["magnitude_is_best"] < 1


@pytest.mark.parametrize("cut", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("signal", [0.0, 0.3, 2.5, 7.0])
def test_the_risks_of_soft_and_hard_thresholds_agree_with_integration(
    study, cut: float, signal: float
) -> None:
    soft_thresholding = study("soft_thresholding")

    def risk(threshold: object) -> float:
        def inside(seen: float) -> float:
            return float((threshold(seen) - signal) ** 2 * norm.pdf(seen - signal))

        edges = sorted({-cut, cut, signal})
        whole = (signal - 12, signal + 12)
        return float(integrate.quad(inside, *whole, points=edges, limit=400, epsabs=1e-11)[0])

    hard = risk(lambda seen: seen * (abs(seen) > cut))
    soft = risk(lambda seen: math.copysign(max(abs(seen) - cut, 0.0), seen))
    assert soft_thresholding.hard_risk(cut, signal) == pytest.approx(hard, abs=1e-8)
    assert soft_thresholding.soft_risk(cut, signal) == pytest.approx(soft, abs=1e-8)


def test_under_random_labels_every_network_has_chance_accuracy(run_small) -> None:
    result = run_small(
        "random_labels", "--model", "mlp", seeds=2, memorised=200, epochs=60, tune_epochs=5
    )
    assert result["test_rows"] >= 300
    assert result["outside"] == 0
    dense = [row for row in result["networks"] if row["network"] == "dense"]
    assert all(row["train_accuracy"] > 0.35 for row in dense)
    assert len(result["networks"]) == 2 * (1 + 3 * 2 * 2)


def test_the_range_of_chance_hits_holds_what_it_says(study) -> None:
    """By the exact law: outside the range lies at most the error that all tests together have."""
    from scipy.stats import binom

    random_labels = study("random_labels")
    for rows, classes, tests in ((359, 10, 26), (50, 3, 1), (10_000, 10, 500)):
        low, high = random_labels.allowed_hits(rows, classes, tests)
        outside = binom.cdf(low - 1, rows, 1 / classes) + binom.sf(high, rows, 1 / classes)
        assert outside * tests <= random_labels.ERROR + 1e-12
