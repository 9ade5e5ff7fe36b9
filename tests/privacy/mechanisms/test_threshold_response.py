"""Laws of the mechanism, checked by enumeration of all outputs."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.mechanisms.block_choice import best_block
from fedprune.randomness import SecureRandomness, SimulationRandomness

# Special cases and settings of their own: (num_units, block_units, threshold).
SHAPES = [(8, 1, 1), (8, 3, 3), (9, 9, 5), (10, 4, 2), (11, 11, 8), (12, 6, 5), (12, 12, 12)]


def output_probabilities(mechanism: ThresholdResponse, mask: np.ndarray) -> dict[bytes, Fraction]:
    """Every report's probability, from the very probabilities that the sampler uses."""
    found: dict[bytes, Fraction] = {}
    m = mechanism.block_units
    padded = np.concatenate([mask, np.zeros(m * mechanism.num_blocks - len(mask), dtype=bool)])
    for block in range(mechanism.num_blocks):
        truth = padded[block * m : (block + 1) * m]
        for pattern in product([False, True], repeat=m):
            bits = np.array(pattern)
            report = mechanism.format.encode(np.array([block]), bits[None])[0]
            share = mechanism.block_probability(int((bits == truth).sum()))
            found[report.payload] = share / mechanism.num_blocks
    return found


def masks_to_compare(num_units: int) -> list[np.ndarray]:
    rng = np.random.default_rng(num_units)
    random = [rng.random(num_units) < 0.5 for _ in range(4)]
    return [np.zeros(num_units, bool), np.ones(num_units, bool), *random, ~random[0]]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_log_ratio_is_epsilon(shape: tuple[int, int, int], epsilon: float) -> None:
    units, block, threshold = shape
    mechanism = ThresholdResponse(epsilon, units, block_units=block, threshold=threshold)
    tables = [output_probabilities(mechanism, mask) for mask in masks_to_compare(units)]
    for table in tables:
        assert sum(table.values()) == 1
    largest = max(
        first[report] / second[report] for first in tables for second in tables for report in first
    )
    assert largest == mechanism.likelihood_ratio
    assert math.log(largest) == pytest.approx(epsilon, abs=1e-12)
    assert mechanism.likelihood_ratio < Fraction(math.e) ** 64  # finite: no output is impossible


def test_the_ratio_in_use_never_exceeds_e_to_the_epsilon() -> None:
    # e as an exact enclosure from its own series, independent of the decimal module.
    below = sum((Fraction(1, math.factorial(k)) for k in range(60)), Fraction(0))
    for epsilon in (1, 2, 5, 16, 64):
        assert ThresholdResponse(float(epsilon), 8).likelihood_ratio <= below**epsilon + Fraction(
            1, 10**20
        )
        assert (
            ThresholdResponse(float(epsilon), 8).likelihood_ratio
            < (below + Fraction(1, 10**60)) ** epsilon
        )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_unbiased_with_the_stated_variance(
    shape: tuple[int, int, int], epsilon: float
) -> None:
    units, block, threshold = shape
    mechanism = ThresholdResponse(epsilon, units, block_units=block, threshold=threshold)
    mask = masks_to_compare(units)[2]
    mean, square = np.zeros(units), np.zeros(units)
    for payload, probability in output_probabilities(mechanism, mask).items():
        estimate = mechanism.estimate([Report(payload)])
        mean += float(probability) * estimate.mean
        square += float(probability) * (estimate.mean - mask) ** 2
    scale = mechanism.num_blocks / float(mechanism.agreement_gain)
    assert np.abs(mean - mask).max() < 1e-12 * max(1.0, scale)
    assert square == pytest.approx(mechanism.variance_per_vote(1), rel=1e-9)
    assert mechanism.variance_per_vote(1) <= units * mechanism.kappa / 4 * (
        mechanism.num_blocks * block / units
    )


def test_observed_counts_give_an_unbiased_vote_given_the_counts() -> None:
    mechanism = ThresholdResponse(2.0, 4, block_units=2, threshold=2)
    masks = [np.array([1, 0, 1, 1], bool), np.array([0, 0, 1, 0], bool)]
    tables = [output_probabilities(mechanism, mask) for mask in masks]
    mean, mass = np.zeros(2), Fraction(0)
    for first, second in product(*tables):
        reports = [Report(first), Report(second)]
        blocks, _ = mechanism.format.decode(reports)
        if blocks.tolist() != [0, 0]:  # condition: both speak about block 0
            continue
        probability = tables[0][first] * tables[1][second]
        mean += float(probability) * mechanism.estimate(reports, counts="observed").mean[:2]
        mass += probability
    assert mean / float(mass) == pytest.approx([0.5, 0.0], abs=1e-12)


def test_sampled_reports_follow_the_stated_probabilities() -> None:
    mechanism = ThresholdResponse(1.5, 4, block_units=4, threshold=3)
    mask = np.array([True, False, True, True])
    draws = 40_000
    rng = SimulationRandomness(5)
    drawn = Counter(
        r.payload for r in mechanism.randomize_many(np.tile(mask, (draws, 1)), [rng] * draws)
    )
    statistic = 0.0
    for payload, probability in output_probabilities(mechanism, mask).items():
        expected = float(probability) * draws
        statistic += (drawn[payload] - expected) ** 2 / expected
    assert statistic < 37.7  # chi-squared with 15 degrees of freedom: 0.1 %


def test_kappa_reproduces_the_published_table() -> None:
    published = {1: 4.68, 2: 1.32, 4: 0.422, 8: 0.133, 16: 0.048}
    for epsilon, kappa in published.items():
        assert ThresholdResponse(float(epsilon), 784).kappa == pytest.approx(kappa, rel=6e-3)
    assert best_block(8.0, 784) == (784, 431)
    assert best_block(1.0, 784) == (1, 1)


def test_there_are_no_more_blocks_than_reports_where_those_are_few() -> None:
    assert best_block(4.0, 784) == best_block(4.0, 784, 10**6) == best_block(4.0, 784, 196)
    for reports in (1, 2, 10, 100, 195):
        few = ThresholdResponse(4.0, 784, num_reports=reports)
        assert few.num_blocks <= reports
        assert few.kappa <= 1.1 * ThresholdResponse(4.0, 784).kappa


def test_special_cases_have_their_known_gains() -> None:
    e = math.exp(1.0)
    warner = ThresholdResponse(1.0, 8, block_units=1, threshold=1)
    assert float(warner.agreement_gain) == pytest.approx((e - 1) / (e + 1), rel=1e-12)
    k_ary = ThresholdResponse(1.0, 8, block_units=3, threshold=3)
    p, q = e / (e + 7), 1 / (e + 7)
    assert float(k_ary.agreement_gain) == pytest.approx(p - q, rel=1e-12)
    m = 9
    duchi = ThresholdResponse(1.0, m, block_units=m, threshold=5)
    centre = math.comb(m - 1, (m - 1) // 2) / 2 ** (m - 1)
    assert float(duchi.agreement_gain) == pytest.approx((e - 1) / (e + 1) * centre, rel=1e-12)


def test_a_cohort_gets_the_reports_that_each_client_would_draw_alone() -> None:
    mechanism = ThresholdResponse(4.0, 30)
    masks = np.random.default_rng(0).random((20, 30)) < 0.5
    root = SimulationRandomness(3)
    together = mechanism.randomize_many(masks, [root.stream("report", c) for c in range(20)])
    alone = [mechanism.randomize(masks[c], root.stream("report", c)) for c in range(20)]
    assert together == alone
    others = mechanism.randomize_many(
        masks, [SimulationRandomness(4, "report", c) for c in range(20)]
    )
    assert together != others


def test_all_reports_have_one_size_and_secure_draws_differ() -> None:
    mechanism = ThresholdResponse(8.0, 448)
    mask = np.arange(448) % 2 == 0
    reports = mechanism.randomize_many(np.tile(mask, (50, 1)), [SecureRandomness()] * 50)
    assert {len(r.payload) for r in reports} == {mechanism.report_bytes}
    assert len(set(reports)) == 50


def test_streamed_sums_equal_one_estimate_and_add_up() -> None:
    mechanism = ThresholdResponse(4.0, 50)
    masks = np.random.default_rng(1).random((300, 50)) < 0.3
    reports = mechanism.randomize_many(masks, [SimulationRandomness(0, c) for c in range(300)])
    first = mechanism.add(mechanism.new_sums(), reports[:100])
    second = mechanism.add(mechanism.new_sums(), reports[100:])
    for counts in ("expected", "observed"):
        whole = mechanism.estimate(reports, counts=counts)
        merged = mechanism.estimate_sums(first + second, counts=counts)
        assert np.array_equal(whole.mean, merged.mean)
        assert np.array_equal(whole.variance, merged.variance)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan, 65.0, True])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon must be in"):
        ThresholdResponse(epsilon, 10)


def test_bad_parameters_masks_and_reports_are_refused() -> None:
    with pytest.raises(PrivacyError, match="num_units"):
        ThresholdResponse(1.0, 0)
    with pytest.raises(PrivacyError, match="threshold must be in"):
        ThresholdResponse(1.0, 8, block_units=2, threshold=3)
    with pytest.raises(PrivacyError, match="block_units must be in"):
        ThresholdResponse(1.0, 8, block_units=9, threshold=3)
    for wrong in (0, 2.5, True, math.nan):
        with pytest.raises(PrivacyError, match="block_units must be in"):
            ThresholdResponse(1.0, 8, block_units=wrong, threshold=1)
        with pytest.raises(PrivacyError, match="threshold must be in"):
            ThresholdResponse(1.0, 8, block_units=4, threshold=wrong)
    mechanism = ThresholdResponse(4.0, 10, block_units=4, threshold=4)
    rng = SimulationRandomness(1)
    with pytest.raises(ReportError, match="must have 10 units"):
        mechanism.randomize(np.ones(9, bool), rng)
    with pytest.raises(ReportError, match="boolean"):
        mechanism.randomize(np.ones(10), rng)
    good = mechanism.randomize(np.ones(10, bool), rng)
    with pytest.raises(ReportError, match="must have 2 bytes, got 3"):
        mechanism.estimate([good, Report(good.payload + b"\0")])
    with pytest.raises(ReportError, match="block 3 of 3"):
        mechanism.estimate([Report(b"\x03" + good.payload[1:])])
    with pytest.raises(ReportError, match="padding"):
        mechanism.estimate([Report(good.payload[:1] + b"\xff")])
    with pytest.raises(ReportError, match="at least one report"):
        mechanism.estimate([])


def test_one_unit_alone_can_be_asked_about() -> None:
    mechanism = ThresholdResponse(1.0, 1)
    assert mechanism.report_bytes == 1
    reports = [mechanism.randomize(np.array([True]), SimulationRandomness(c)) for c in range(2000)]
    assert mechanism.estimate(reports).mean[0] == pytest.approx(1.0, abs=0.12)
