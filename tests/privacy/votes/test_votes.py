"""Variances, intervals and decisions of votes hold where they say they hold."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binom

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import ThresholdResponse, VoteEstimate
from fedprune.privacy.mechanisms.assignment import assigned_blocks
from fedprune.privacy.mechanisms.intervals import decided_units, normal_bounds, share_bounds
from fedprune.randomness import SimulationRandomness


def test_assigned_votes_have_the_stated_mean_and_variance_by_enumeration() -> None:
    # Every assignment of 4 clients to 2 blocks, every report: no formula is taken on trust.
    mechanism = ThresholdResponse(1.5, 4, block_units=2, threshold=1)
    masks = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]], dtype=bool)
    first, second = np.zeros(4), np.zeros(4)
    assignments = list(combinations(range(4), 2))
    patterns = list(product([False, True], repeat=2))
    for chosen in assignments:
        blocks = np.array([0 if client in chosen else 1 for client in range(4)])
        for bits in product(patterns, repeat=4):
            sent = np.array(bits)
            truth = np.stack([masks[c, 2 * blocks[c] : 2 * blocks[c] + 2] for c in range(4)])
            agreements = (sent == truth).sum(axis=1)
            share = math.prod(float(mechanism.block_probability(a)) for a in agreements)
            share /= len(assignments)
            rows = mechanism.format.encode_rows(blocks, sent)
            sums = mechanism.add(mechanism.new_sums(), rows, blocks)
            mean = mechanism.estimate_sums(sums, counts="assigned").mean
            first += share * mean
            second += share * (mean - masks.mean(axis=0)) ** 2
    assert first == pytest.approx(masks.mean(axis=0), abs=1e-12)
    for unit, keep in enumerate(masks.mean(axis=0)):
        stated = mechanism.variance_per_vote(4, assigned=True, keep_share=keep)
        assert second[unit] == pytest.approx(stated, rel=1e-9)


def test_estimated_variances_are_unbiased_and_design_variances_bound_them() -> None:
    mechanism = ThresholdResponse(2.0, 4, block_units=2, threshold=2)
    masks = np.zeros((60, 4), dtype=bool)
    masks[:, 0], masks[:30, 1], masks[:54, 2] = True, True, True
    order = np.random.default_rng(0)
    means, stated = [], []
    for repeat in range(1500):
        blocks = assigned_blocks(order.permutation(60), 2)
        rows = mechanism.randomize_rows(masks, [SimulationRandomness(repeat)] * 60, blocks)
        sums = mechanism.add(mechanism.new_sums(), rows, blocks)
        estimate = mechanism.estimate_sums(sums, counts="assigned")
        means.append(estimate.mean)
        stated.append(estimate.variance)
    spread = np.var(means, axis=0)
    exact = [
        mechanism.variance_per_vote(60, assigned=True, keep_share=p) for p in masks.mean(axis=0)
    ]
    assert spread == pytest.approx(exact, rel=0.15)
    # Cut off at the possible range, the estimate leans upwards where all clients agree.
    assert np.mean(stated, axis=0) == pytest.approx(exact, rel=0.1)
    assert (np.array(exact) <= mechanism.variance_per_vote(60, assigned=True)).all()


def test_a_sample_of_a_larger_population_varies_more_and_of_a_smaller_one_is_refused() -> None:
    mechanism = ThresholdResponse(6.0, 8)
    masks = np.random.default_rng(0).random((400, 8)) < 0.5
    sums = mechanism.add(
        mechanism.new_sums(), mechanism.randomize_rows(masks, [SimulationRandomness(0)] * 400)
    )
    for counts in ("expected", "observed", "assigned"):
        sizes = (None, 800, math.inf)
        found = [mechanism.estimate_sums(sums, counts=counts, population=n) for n in sizes]
        assert (found[0].variance < found[1].variance).all()
        assert (found[1].variance < found[2].variance).all()
        assert np.array_equal(found[0].mean, found[2].mean)
        with pytest.raises(PrivacyError, match="cannot come from"):
            mechanism.estimate_sums(sums, counts=counts, population=399)


def test_a_block_that_nobody_spoke_about_has_the_variance_of_a_single_report() -> None:
    mechanism = ThresholdResponse(2.0, 4, block_units=2, threshold=2)
    rows = mechanism.format.encode_rows(np.array([0, 0]), np.ones((2, 2), dtype=bool))
    estimate = mechanism.estimate(rows, counts="observed")
    assert estimate.mean[2:].tolist() == [0.5, 0.5]
    assert estimate.variance[2:] == pytest.approx(1 / (4 * float(mechanism.agreement_gain) ** 2))
    assert (estimate.variance[:2] < estimate.variance[2:]).all()
    low, high = estimate.interval().low, estimate.interval().high
    assert low[2:].tolist() == [0, 0]
    assert high[2:].tolist() == [1, 1]
    with pytest.raises(ReportError, match="at least one report"):
        mechanism.estimate_sums(mechanism.new_sums())


@pytest.mark.parametrize("gain", [0.05, 0.4, 0.95, 0.9999999])
@pytest.mark.parametrize("count", [1, 3, 30, 400])
@pytest.mark.parametrize("alpha", [0.6, 0.05, 1e-4])
def test_share_bounds_miss_no_more_often_than_stated(gain: float, count: int, alpha: float) -> None:
    keeps = np.arange(count + 1)
    low, high = share_bounds(keeps, np.full(count + 1, count), gain, alpha)
    assert (low <= high).all()
    for kept in np.unique(np.linspace(0, count, 12).astype(int)):
        # Fixed masks: the sum of two binomials, narrower than one binomial.
        law = np.convolve(
            binom.pmf(np.arange(kept + 1), kept, (1 + gain) / 2),
            binom.pmf(np.arange(count - kept + 1), count - kept, (1 - gain) / 2),
        )
        share = kept / count
        missed = law[(low > share + 1e-12) | (high < share - 1e-12)].sum()
        assert missed <= alpha + 1e-12
        random_clients = binom.pmf(keeps, count, (1 - gain) / 2 + gain * share)
        assert random_clients[(low > share + 1e-12) | (high < share - 1e-12)].sum() <= alpha + 1e-12


def test_bounds_become_exact_with_many_reports() -> None:
    keeps, received = np.array([430_000]), np.array([1_000_000])
    low, high = share_bounds(keeps, received, 0.5, 0.05)
    mean = 0.5 + (2 * 0.43 - 1) / (2 * 0.5)
    spread = np.sqrt(0.43 * 0.57 / 1e6) / 0.5
    assert low[0] == pytest.approx(mean - 1.96 * spread, abs=1e-5)
    assert high[0] == pytest.approx(mean + 1.96 * spread, abs=1e-5)


def test_simultaneous_intervals_hold_for_all_units_at_once() -> None:
    mechanism = ThresholdResponse(4.0, 60)
    masks = np.random.default_rng(3).random((900, 60)) < np.linspace(0, 1, 60)
    truth, missed, missed_alone = masks.mean(axis=0), 0, 0
    for repeat in range(200):
        rows = mechanism.randomize_rows(masks, [SimulationRandomness(repeat)] * 900)
        estimate = mechanism.estimate(rows, counts="observed")
        bounds = estimate.interval(0.9)
        missed += bool(((truth < bounds.low) | (truth > bounds.high)).any())
        alone = estimate.interval(0.9, simultaneous=False)
        missed_alone += int(((truth < alone.low) | (truth > alone.high)).sum())
        assert (alone.high - alone.low < bounds.high - bounds.low).all()
    assert missed <= 28  # 20 expected at most; 3 % for more than 28
    assert 0 < missed_alone <= 0.11 * 200 * 60


def test_what_is_decided_is_right_and_more_reports_decide_more() -> None:
    rng = np.random.default_rng(1)
    share = np.linspace(0.02, 0.98, 40)
    best = np.zeros(40, dtype=bool)
    best[-10:] = True
    mechanism, counts = ThresholdResponse(4.0, 40), []
    for clients in (300, 3000, 30000):
        masks = rng.random((clients, 40)) < share
        rows = mechanism.randomize_rows(masks, [SimulationRandomness(1)] * clients)
        decided = mechanism.estimate(rows, counts="observed").decided(10)
        assert not (decided[best] == -1).any()
        assert not (decided[~best] == 1).any()
        counts.append(int((decided != 0).sum()))
    assert counts[0] <= counts[1] < counts[2]
    assert counts[2] > 20


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 4])
def test_decisions_agree_with_trying_all_corners(keep: int) -> None:
    rng = np.random.default_rng(keep)
    for _ in range(60):
        low = rng.integers(0, 8, 4).astype(float)
        high = low + rng.integers(0, 4, 4)
        always, never = np.ones(4, dtype=bool), np.ones(4, dtype=bool)
        for corner in product([False, True], repeat=4):
            values = np.where(corner, high, low)
            for unit in range(4):
                others = np.delete(values, unit)
                always[unit] &= (others >= values[unit]).sum() < keep  # even if it loses all ties
                never[unit] &= (others > values[unit]).sum() >= keep  # even if it wins them
        decided = decided_units(low, high, keep)
        assert np.array_equal(decided == 1, always)
        assert np.array_equal(decided == -1, never & ~always)


def test_estimates_without_a_tally_get_normal_intervals() -> None:
    estimate = VoteEstimate(np.array([0.3, 0.6]), np.array([0.01, 0.04]), 10, "a trusted sum")
    alone = estimate.interval(0.95, simultaneous=False)
    assert alone.low == pytest.approx([0.3 - 0.196, 0.6 - 0.392], abs=1e-3)
    both = estimate.interval(0.95)
    assert both.high == pytest.approx(normal_bounds(estimate.mean, estimate.variance, 0.025)[1])


def test_values_out_of_range_are_refused() -> None:
    estimate = VoteEstimate(np.array([0.3]), np.array([0.01]), 10, "")
    for confidence in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(PrivacyError, match="confidence"):
            estimate.interval(confidence)
    for keep in (-1, 2):
        with pytest.raises(PrivacyError, match="keep_count"):
            estimate.decided(keep)
    with pytest.raises(PrivacyError, match="num_reports"):
        ThresholdResponse(1.0, 4).variance_per_vote(0)
