"""Intervals and tests against libraries and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness import clopper_pearson, exact_mcnemar, holm, paired_difference, wilson
from fedprune.fairness.intervals import expanded_tail, unseen_share

proportions = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(proportions, st.sampled_from([0.8, 0.95, 0.99]))
def test_proportion_intervals_agree_with_scipy(proportion, confidence) -> None:
    successes, rows = proportion
    test = stats.binomtest(successes, rows)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method=method)
        assert ours(successes, rows, confidence) == pytest.approx(tuple(theirs), abs=1e-12)


@given(proportions)
def test_a_proportion_lies_inside_its_interval(proportion) -> None:
    successes, rows = proportion
    for interval in (wilson(successes, rows), clopper_pearson(successes, rows)):
        assert 0 <= interval.low <= successes / rows <= interval.high <= 1


def test_the_exact_interval_covers_at_least_its_confidence() -> None:
    rows = 25
    for truth in np.linspace(0.02, 0.98, 25):
        chances = stats.binom.pmf(np.arange(rows + 1), rows, truth)
        covers = [
            clopper_pearson(k, rows).low <= truth <= clopper_pearson(k, rows).high
            for k in range(rows + 1)
        ]
        assert chances @ covers >= 0.95


def test_mcnemar_enumerates_every_way_the_disagreements_could_fall() -> None:
    for disagreements in range(1, 11):
        falls = [sum(way) for way in itertools.product((0, 1), repeat=disagreements)]
        for lost in range(disagreements + 1):
            farther = abs(lost - disagreements / 2)
            share = np.mean([abs(fall - disagreements / 2) >= farther for fall in falls])
            assert exact_mcnemar(lost, disagreements - lost) == pytest.approx(share, abs=1e-12)
    assert exact_mcnemar(0, 0) == 1.0


def test_holm_steps_down_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(p_values) -> None:
    adjusted = holm(p_values)
    raw = np.asarray(p_values)
    assert np.all(adjusted >= raw)
    assert np.all(adjusted <= np.minimum(1, raw * len(raw)) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)


def test_the_interval_over_seeds_is_scipys_paired_t_interval() -> None:
    a, b = [0.91, 0.9, 0.93, 0.88], [0.9, 0.87, 0.93, 0.86]
    theirs = stats.ttest_rel(a, b).confidence_interval(0.9)
    mean, low, high, seeds = paired_difference(a, b, 0.9)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert mean == pytest.approx(np.mean(a) - np.mean(b))
    assert seeds == 4


def test_one_seed_gives_a_difference_and_no_interval() -> None:
    assert paired_difference([0.75], [0.5]) == (0.25, None, None, 1)


def test_the_expanded_percentile_tail_is_that_of_students_t() -> None:
    # For a mean of normal draws the bootstrap is normal with the biased standard deviation; read
    # at the expanded tail it must give back the exact t interval.
    draws = np.array([1.0, 2.5, 0.3, 4.1, 2.2, 3.3, 0.9])
    n = len(draws)
    bootstrap = stats.norm(draws.mean(), draws.std(ddof=0) / math.sqrt(n))
    exact = stats.ttest_1samp(draws, 0).confidence_interval(0.95)
    assert bootstrap.ppf(expanded_tail(n, 0.95)) == pytest.approx(exact.low, abs=1e-12)
    assert expanded_tail(10**9, 0.95) == pytest.approx(0.025, rel=1e-6)


def test_what_no_draw_showed_is_the_exact_limit_at_zero_successes() -> None:
    for n in (1, 30, 1000):
        assert unseen_share(n, 0.975) == pytest.approx(clopper_pearson(0, n, 0.95).high)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "got 3 of 2"),
        (lambda: wilson(0, 0), "got 0 of 0"),
        (lambda: clopper_pearson(1, 2, 1.0), "confidence must be in"),
        (lambda: exact_mcnemar(-1, 2), "at least 0, got -1"),
        (lambda: exact_mcnemar(1.5, 2), "whole numbers"),
        (lambda: exact_mcnemar(float("nan"), 2), "whole numbers"),
        (lambda: exact_mcnemar("x", 2), "whole numbers, got x and 2"),
        (lambda: clopper_pearson(1.5, 3), "whole numbers, got 1.5 and 3"),
        (lambda: clopper_pearson(1, float("nan")), "whole numbers, got 1 and nan"),
        (lambda: holm([[0.01, 0.5], [0.2, 0.3]]), r"must be \[tests\], got the shape \[2, 2\]"),
        (lambda: holm(0.5), r"must be \[tests\], got the shape \[\]"),
        (lambda: holm(["x"]), "p-values must be numbers"),
        (lambda: holm([0.5, float("nan")]), "p-values must be in"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "same seeds"),
        (lambda: paired_difference([], []), "same seeds"),
        (lambda: paired_difference([float("nan")], [1.0]), "finite"),
        (lambda: paired_difference([1.0, 2.0], [1.0, 2.0], 0.0), "confidence must be in"),
    ],
)
def test_impossible_questions_are_refused(call, message) -> None:
    with pytest.raises(FairnessError, match=message):
        call()
