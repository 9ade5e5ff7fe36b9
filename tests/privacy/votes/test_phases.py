"""Asking in phases finds more of the right units, and says honestly what it knows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedprune.errors import PrivacyError
from fedprune.privacy import ThresholdResponse, VoteEstimate, magnitude_posterior
from fedprune.privacy.mechanisms.assignment import assigned_blocks
from fedprune.privacy.votes.phases import (
    PhaseVotes,
    choose_undecided,
    combine,
    phase_cohorts,
    phase_plan,
    units_to_ask,
)
from fedprune.randomness import SimulationRandomness


def ask(masks: np.ndarray, units: np.ndarray, epsilon: float, seed: int) -> PhaseVotes:
    mechanism = ThresholdResponse(epsilon, len(units))
    blocks = assigned_blocks(np.arange(len(masks)), mechanism.num_blocks)
    rngs = [SimulationRandomness(seed, len(units))] * len(masks)
    rows = mechanism.randomize_rows(masks[:, units], rngs, blocks)
    sums = mechanism.add(mechanism.new_sums(), rows, blocks)
    return PhaseVotes(units, mechanism.estimate_sums(sums, counts="assigned", population=math.inf))


def in_phases(masks: np.ndarray, keep: int, phases: int, seed: int) -> tuple[VoteEstimate, list]:
    units, asked = masks.shape[1], []
    one = ThresholdResponse(4.0, units).variance_per_vote(len(masks))
    plan = phase_plan(phases, units, variance=one)
    for cohort, (_, share) in zip(phase_cohorts(len(masks), plan), plan, strict=True):
        who = np.arange(units)
        if asked:
            sofar = combine(asked, units)
            who = choose_undecided(sofar.mean, sofar.variance, keep, units_to_ask(share, units))
        asked.append(ask(masks[cohort.start : cohort.stop], who, 4.0, seed))
    return combine(asked, units), asked


def population(seed: int, clients: int, units: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    importance = rng.normal(size=units)
    scores = importance + rng.normal(size=(clients, units))
    return scores >= np.median(scores, axis=1, keepdims=True), importance


def recall(score: np.ndarray, importance: np.ndarray, keep: int) -> float:
    return len({*np.argsort(-score)[:keep]} & {*np.argsort(-importance)[:keep]}) / keep


def test_phases_find_more_units_than_one_question_at_the_same_budget() -> None:
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for seed in range(25):
        masks, importance = population(seed, 1500)
        for phases, recalls in found.items():
            estimate, _ = in_phases(masks, 75, phases, seed)
            recalls.append(recall(estimate.mean, importance, 75))
    gains = {t: np.array(found[t]) - np.array(found[1]) for t in (2, 4)}
    for gain in gains.values():
        assert gain.mean() > 3 * gain.std(ddof=1) / 5 > 0
    assert gains[4].mean() > gains[2].mean()


def test_every_client_is_in_exactly_one_cohort() -> None:
    for clients, phases in ((10, 1), (10, 10), (1000, 3), (7, 5), (100_001, 8)):
        cohorts = phase_cohorts(clients, phase_plan(phases, 50))
        assert [rank for cohort in cohorts for rank in cohort] == list(range(clients))
        assert min(len(cohort) for cohort in cohorts) >= 1
    with pytest.raises(PrivacyError, match="need as many clients"):
        phase_cohorts(2, phase_plan(3, 50))
    with pytest.raises(PrivacyError, match="add up to 1"):
        phase_cohorts(20, [(0.5, 1.0), (0.4, 0.5)])


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("variance", [None, 1e-5, 0.1, 50.0])
def test_plans_begin_with_all_units_and_ask_about_ever_fewer(
    phases: int, variance: float | None
) -> None:
    plan = phase_plan(phases, 300, variance=variance)
    assert plan[0][1] == 1.0
    assert sum(share for share, _ in plan) == pytest.approx(1.0)
    units = [share for _, share in plan]
    assert units == sorted(units, reverse=True)
    assert all(2 / 300 <= share <= 1 for share in units)
    assert len(plan) == phases


def test_the_undecided_are_those_nearest_to_the_cut_for_their_uncertainty() -> None:
    mean = np.array([0.9, 0.1, 0.55, 0.45, 0.7, 0.3])
    level = np.full(6, 0.01)
    assert choose_undecided(mean, level, 3, 2).tolist() == [2, 3]
    assert choose_undecided(mean, level, 1, 2).tolist() == [0, 4]
    unsure = level.copy()
    unsure[1] = 10.0
    assert choose_undecided(mean, unsure, 3, 1).tolist() == [1]
    # Equally certain units: as many from either side of the cut.
    assert choose_undecided(np.zeros(8), np.ones(8), 4, 4).tolist() == [2, 3, 4, 5]
    levels = np.repeat([0.8, 0.6, 0.4, 0.2], 10)
    level = np.full(40, 0.01)
    assert choose_undecided(levels, level, 20, 10).tolist() == list(range(15, 25))
    nearest = [*range(10, 15), *range(25, 30)]  # the first of those below, the last of those above
    assert choose_undecided(levels[::-1], level, 20, 10).tolist() == nearest
    level = np.full(6, 0.01)
    for keep in (0, 6):
        assert len(choose_undecided(mean, level, keep, 4)) == 4


def test_pooling_is_the_inverse_variance_mean_and_unbiased_for_fixed_questions() -> None:
    masks, _ = population(0, 600, 20)
    truth, chosen = masks.mean(axis=0), np.arange(5, 12)
    means = []
    for seed in range(400):
        parts = [
            ask(masks, np.arange(20), 6.0, 2 * seed),
            ask(masks[::2], chosen, 6.0, 2 * seed + 1),
        ]
        pooled = combine(parts, 20)
        means.append(pooled.mean)
    first, second = (part.estimate for part in parts)
    weights = [part.estimate.tally.received * 4 * part.estimate.tally.gain**2 for part in parts]
    expected = first.mean.copy()
    both = weights[0][chosen] + weights[1]
    expected[chosen] = (first.mean[chosen] * weights[0][chosen] + second.mean * weights[1]) / both
    assert pooled.mean == pytest.approx(expected, rel=1e-12)
    assert pooled.variance[chosen] == pytest.approx(1 / both, rel=1e-12)
    assert pooled.num_reports == 900
    error = (np.mean(means, axis=0) - truth) / np.sqrt(pooled.variance / 400)
    # Every other client is asked in the second part: its mean may differ a little.
    assert np.abs(np.delete(error, chosen)).max() < 4
    assert (np.var(means, axis=0) <= pooled.variance * 1.3).all()


def test_intervals_hold_although_earlier_votes_chose_the_units() -> None:
    missed = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        share = norm.cdf(rng.normal(size=60))
        masks = rng.random((900, 60)) < share
        pooled, parts = in_phases(masks, 30, 3, seed)
        bounds = pooled.interval(0.9)
        wrong = bool(((share < bounds.low) | (share > bounds.high)).any())
        missed += wrong
        decided = pooled.decided(30, 0.9)
        best = np.argsort(-share)[:30]
        assert wrong or not (decided[best] == -1).any()
        assert "one of the phases" in bounds.method
    assert missed <= 15
    assert len(parts) == 3


def test_estimates_without_bits_are_pooled_by_their_own_variance() -> None:
    trusted = [
        PhaseVotes(np.arange(2), VoteEstimate(np.array([0.2, 0.8]), np.full(2, 0.01), 50, "sum")),
        PhaseVotes(np.array([1]), VoteEstimate(np.array([0.5]), np.array([0.01]), 50, "sum")),
    ]
    pooled = combine(trusted, 2)
    assert pooled.mean == pytest.approx([0.2, 0.65])
    assert pooled.variance == pytest.approx([0.01, 0.005])


def test_the_prior_works_on_pooled_votes() -> None:
    gains = []
    for seed in range(20):
        masks, importance = population(seed, 100)
        pooled, _ = in_phases(masks, 75, 2, seed)
        line = 0.7 * importance + 0.7 * np.random.default_rng(seed + 99).normal(size=150)
        posterior = magnitude_posterior(pooled.mean, pooled.variance, np.exp(line))
        gains.append(recall(posterior.mean, importance, 75) - recall(pooled.mean, importance, 75))
    assert np.mean(gains) > 0.01


def test_what_does_not_fit_together_is_refused() -> None:
    votes = VoteEstimate(np.array([0.2, 0.8]), np.full(2, 0.01), 50, "sum")
    with pytest.raises(PrivacyError, match="no phase asked about unit 2 and 1 others"):
        combine([PhaseVotes(np.arange(2), votes)], 4)
    with pytest.raises(PrivacyError, match="must be 2 indices"):
        combine([PhaseVotes(np.arange(3), votes)], 3)
    for wrong in ([0, 0], [0, 5], [-1, 0]):
        with pytest.raises(PrivacyError, match="distinct"):
            combine([PhaseVotes(np.array(wrong), votes)], 2)
    for phases in (0, -1, 1.5, True):
        with pytest.raises(PrivacyError, match="num_phases"):
            phase_plan(phases, 10)
    for variance in (0.0, -1.0, math.nan):
        with pytest.raises(PrivacyError, match="variance must be above 0"):
            phase_plan(2, 10, variance=variance)
    with pytest.raises(PrivacyError, match="num_units"):
        phase_plan(2, 0)
    with pytest.raises(PrivacyError, match="keep_count"):
        choose_undecided(np.zeros(3), np.ones(3), 4, 1)
    with pytest.raises(PrivacyError, match="ask_count"):
        choose_undecided(np.zeros(3), np.ones(3), 1, 0)
    with pytest.raises(PrivacyError, match="equally long"):
        choose_undecided(np.zeros(3), np.zeros(3), 1, 1)
    with pytest.raises(PrivacyError, match="unit share"):
        units_to_ask(0.0, 10)
    assert units_to_ask(1e-9, 10) == 1
