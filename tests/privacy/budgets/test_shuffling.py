"""Shuffle bounds against published values, enumeration and an exact small world."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.shuffling import (
    ASSIGNED,
    central_delta,
    central_epsilon,
    local_epsilon_for,
    threshold_probability,
)


def clones_by_summing(local: float, reports: int, epsilon: float) -> float:
    """The pair of Feldman, McMillan & Talwar 2021, Thm 3.1, summed term by term."""
    truth, total = 1 / (1 + math.exp(-local)), 0.0
    for clones in range(reports):
        weight = binom.pmf(clones, reports - 1, math.exp(-local))
        if weight < 1e-30:
            continue
        zeros = np.arange(clones + 2)
        own, other = binom.pmf(zeros - 1, clones, 0.5), binom.pmf(zeros, clones, 0.5)
        first, second = truth * own + (1 - truth) * other, (1 - truth) * own + truth * other
        total += weight * np.maximum(first - math.exp(epsilon) * second, 0).sum()
    return total


@pytest.mark.parametrize(("reports", "local"), [(1_000, 2.72), (10_000, 4.79)])
def test_the_published_local_epsilons_give_central_one(reports: int, local: float) -> None:
    assert central_epsilon(local, reports, 1e-6) <= 1
    found = local_epsilon_for(1.0, reports, 1e-6)
    assert math.floor(found * 100) / 100 == local
    assert central_delta(found, reports, 1.0) <= 1e-6 < central_delta(found + 0.01, reports, 1.0)


@pytest.mark.parametrize(
    ("local", "reports", "epsilon"),
    [(2.72, 1000, 1.0), (1.0, 50, 0.5), (3.0, 3, 1.5), (0.1, 20, 0.02), (4.0, 3000, 0.3)],
)
def test_clones_are_a_tight_upper_bound_of_the_term_by_term_sum(
    local: float, reports: int, epsilon: float
) -> None:
    exact = clones_by_summing(local, reports, epsilon)
    assert exact <= central_delta(local, reports, epsilon) <= exact * 1.01


def exact_shuffled_delta(
    rows: list[dict[tuple[int, ...], float]], others: list[int], pair: tuple[int, int], eps: float
) -> float:
    """Hockey-stick divergence of the multiset of all reports, by convolving every client's law."""

    def law(first: int) -> Counter[tuple[tuple[int, ...], ...]]:
        found: Counter[tuple[tuple[int, ...], ...]] = Counter({(): 1.0})
        for who in (first, *others):
            grown: Counter[tuple[tuple[int, ...], ...]] = Counter()
            for seen, mass in found.items():
                for report, chance in rows[who].items():
                    grown[tuple(sorted((*seen, report)))] += mass * chance
            found = grown
        return found

    one, two = law(pair[0]), law(pair[1])
    return sum(max(0.0, mass - math.exp(eps) * two[seen]) for seen, mass in one.items())


@pytest.mark.parametrize(("local", "block", "threshold", "blocks"), [
    (1.0, 1, 1, 1), (2.0, 2, 2, 1), (1.5, 3, 2, 1), (2.0, 1, 1, 2), (1.2, 2, 1, 1),
])  # fmt: skip
def test_the_blanket_bounds_the_exact_privacy_of_shuffled_threshold_responses(
    local: float, block: int, threshold: int, blocks: int
) -> None:
    patterns = list(product((0, 1), repeat=block))
    inputs = list(product((0, 1), repeat=block * blocks))
    share = threshold_probability(block, threshold)
    low = 1 / (blocks * 2**block * (1 + share * math.expm1(local)))
    rows = []
    for mask in inputs:
        row = {}
        for number, pattern in product(range(blocks), patterns):
            part = mask[number * block : (number + 1) * block]
            agree = sum(a == b for a, b in zip(part, pattern, strict=True))
            row[number, *pattern] = low * (math.exp(local) if agree >= threshold else 1.0)
        assert sum(row.values()) == pytest.approx(1)
        rows.append(row)
    reports = 4
    for epsilon in (0.1, 0.5):
        bound = central_delta(local, reports, epsilon, threshold_probability=share)
        worst = 0.0
        for other in range(len(inputs)):
            for second in range(1, len(inputs)):
                others = [other, other, len(inputs) - 1 - other]
                worst = max(worst, exact_shuffled_delta(rows, others, (0, second), epsilon))
        assert 0 < worst <= bound
        assert bound <= central_delta(local, reports, epsilon)


@settings(max_examples=12)
@given(
    local=st.floats(0.05, 10.0),
    reports=st.integers(2, 100_000),
    log_delta=st.floats(-25.0, -3.0),
    share=st.one_of(st.none(), st.floats(1e-3, 0.9)),
)
def test_shuffling_never_hurts_and_more_reports_never_hurt(
    local: float, reports: int, log_delta: float, share: float | None
) -> None:
    delta = math.exp(log_delta)
    few = central_epsilon(local, reports, delta, threshold_probability=share)
    many = central_epsilon(local, 2 * reports, delta, threshold_probability=share)
    assert many <= few * 1.005 + 2e-6 <= local * 1.01 + 3e-6
    assert few <= central_epsilon(local, reports, delta) * 1.005 + 2e-6
    if few < local:
        at = central_delta(local, reports, few, threshold_probability=share)
        assert at <= delta * (1 + 1e-9)


@settings(max_examples=10)
@given(
    central=st.floats(0.05, 5.0), reports=st.integers(2, 50_000), log_delta=st.floats(-25.0, -3.0)
)
def test_a_local_epsilon_gives_back_its_central_one(
    central: float, reports: int, log_delta: float
) -> None:
    delta = math.exp(log_delta)
    local = local_epsilon_for(central, reports, delta)
    assert local >= central
    assert central_epsilon(local, reports, delta) <= central + 1e-5
    known = local_epsilon_for(central, reports, delta, threshold_probability=lambda _: 1 / 16)
    assert known >= local - 1e-5


def test_knowing_the_mechanism_helps_much() -> None:
    plain = local_epsilon_for(1.0, 10_000, 1e-6)
    known = local_epsilon_for(1.0, 10_000, 1e-6, threshold_probability=lambda _: 1 / 16)
    assert known > plain + 0.7


def test_assigned_blocks_are_refused() -> None:
    for call in (central_epsilon, local_epsilon_for):
        with pytest.raises(PrivacyError, match="client-drawn"):
            call(1.0, 100, 1e-6, blocks=ASSIGNED)
    with pytest.raises(PrivacyError, match="client-drawn"):
        central_delta(1.0, 100, 0.1, blocks=ASSIGNED)


@pytest.mark.parametrize(
    ("local", "reports", "delta", "share"),
    [
        (0.0, 10, 1e-6, None),
        (math.nan, 10, 1e-6, None),
        (65.0, 10, 1e-6, None),
        (1.0, 0, 1e-6, None),
        (1.0, 2.5, 1e-6, None),
        (1.0, 10, 0.0, None),
        (1.0, 10, 1.0, None),
        (1.0, 10, 1e-6, 0.0),
        (1.0, 10, 1e-6, 1.0),
    ],
)
def test_values_out_of_range_are_refused(
    local: float, reports: int, delta: float, share: float | None
) -> None:
    with pytest.raises(PrivacyError, match="must be"):
        central_epsilon(local, reports, delta, threshold_probability=share)


def test_a_lone_report_and_an_enormous_epsilon_are_no_trouble() -> None:
    assert central_epsilon(2.0, 1, 1e-6) == pytest.approx(2.0, abs=1e-4)
    assert central_epsilon(64.0, 100, 1e-6) == pytest.approx(64.0, abs=1e-4)
    assert central_delta(2.0, 100, 2.0) == 0.0
