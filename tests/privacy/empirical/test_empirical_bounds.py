"""Laws of the lower bounds on epsilon: exact enumeration, coverage, published mathematics."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedprune.errors import PrivacyError
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT, UNPROTECTED
from fedprune.privacy.empirical import (
    CanaryGuesses,
    EmpiricalAudit,
    EventCounts,
    analytic_epsilon,
    audit_retries,
    audit_two_worlds,
    best_threshold,
    count_event,
    guess_at_both_ends,
    guess_by_sign,
    log_ratios,
    lower_limit,
    table,
    two_worlds,
    upper_limit,
)
from fedprune.randomness import SecureRandomness, SimulationRandomness

# Limits of a probability.


@given(st.integers(1, 400), st.data(), st.floats(1e-6, 0.5))
def test_limits_are_those_of_scipy_s_exact_interval(
    trials: int, data: st.DataObject, alpha: float
) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = stats.binomtest(successes, trials).proportion_ci(1 - 2 * alpha, method="exact")
    low, high = lower_limit(successes, trials, alpha), upper_limit(successes, trials, alpha)
    assert low == pytest.approx(exact.low, rel=1e-7, abs=1e-12)
    assert high == pytest.approx(exact.high, rel=1e-7, abs=1e-12)
    assert low <= successes / trials <= high


@pytest.mark.parametrize("chance", [0.003, 0.05, 0.31, 0.5, 0.97])
@pytest.mark.parametrize("trials", [1, 7, 40, 200])
def test_each_limit_is_wrong_in_at_most_a_share_alpha_of_all_outcomes(
    chance: float, trials: int
) -> None:
    outcomes = np.arange(trials + 1)
    mass = stats.binom.pmf(outcomes, trials, chance)
    for alpha in (0.01, 0.025, 0.2):
        low = np.array([lower_limit(int(k), trials, alpha) for k in outcomes])
        high = np.array([upper_limit(int(k), trials, alpha) for k in outcomes])
        assert mass[low > chance].sum() <= alpha
        assert mass[high < chance].sum() <= alpha


# Two worlds.


def exact_error(first: float, second: float, draws: int, claimed: float, alpha: float) -> float:
    """Probability that the bound of a pooled event passes `claimed`, by full enumeration.

    The event has probability `first` and `second` in the world that makes it likely, for itself
    and for its mirror image, and e^-claimed times that in the other one.
    """
    shrunk = [p * math.exp(-claimed) for p in (first, second)]
    one = np.convolve(*(stats.binom.pmf(np.arange(draws + 1), draws, p) for p in (first, second)))
    other = np.convolve(*(stats.binom.pmf(np.arange(draws + 1), draws, p) for p in shrunk))
    total = 2 * draws
    wrong = 0.0
    for hits, false_hits in itertools.product(range(total + 1), repeat=2):
        counts = EventCounts(hits, total, false_hits, total, "")
        if counts.epsilon_lower(alpha=alpha) > claimed:
            wrong += one[hits] * other[false_hits]
    return wrong


@pytest.mark.parametrize(
    ("first", "second"), [(0.9, 0.9), (0.9, 0.05), (0.3, 0.02), (0.01, 0.0), (0.99, 0.5)]
)
@pytest.mark.parametrize("claimed", [0.3, 2.0])
def test_the_bound_of_a_mirrored_event_errs_in_at_most_alpha_of_all_cases(
    first: float, second: float, claimed: float
) -> None:
    assert exact_error(first, second, 12, claimed, 0.1) <= 0.1


def test_delta_is_taken_off_the_likely_world_s_limit() -> None:
    counts = EventCounts(900, 1000, 100, 1000, "")
    true, false = lower_limit(900, 1000, 0.025), upper_limit(100, 1000, 0.025)
    assert counts.epsilon_lower(alpha=0.05) == pytest.approx(math.log(true / false))
    assert counts.epsilon_lower(alpha=0.05, delta=0.3) == pytest.approx(
        math.log((true - 0.3) / false)
    )
    assert counts.epsilon_lower(alpha=0.05, delta=0.95) == 0.0
    assert EventCounts(100, 1000, 900, 1000, "").epsilon_lower() == 0.0


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.01, 6.0), st.sampled_from([0.0, 0.02]))
def test_the_p_value_is_the_level_from_which_the_bound_passes_the_claim(
    hits: int, false_hits: int, claimed: float, delta: float
) -> None:
    counts = EventCounts(hits, 200, false_hits, 200, "")
    outcome = counts.test_claim(claimed, delta=delta)
    for alpha in (1e-6, 0.01, 0.05, 0.5):
        rejects = counts.epsilon_lower(alpha=alpha, delta=delta) > claimed
        if abs(math.log(outcome.p_value / alpha)) > 1e-4:
            assert rejects == (outcome.p_value < alpha)


def test_a_threshold_chosen_on_other_draws_finds_a_gaussian_s_tail_and_errs_seldom() -> None:
    # N(1, 1) against N(0, 1): delta = 0.05 holds from epsilon = 1.83 on, by the exact formula.
    def delta_of(epsilon: float) -> float:
        tail = stats.norm.cdf(0.5 - epsilon)
        return float(tail - math.exp(epsilon) * stats.norm.cdf(-0.5 - epsilon))

    truth = 1.0
    while delta_of(truth) > 0.05:
        truth += 0.001
    below = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        counts = two_worlds(
            lambda n, g=rng: g.normal(1.0, 1.0, n),  # type: ignore[misc]
            lambda n, g=rng: g.normal(0.0, 1.0, n),  # type: ignore[misc]
            draws=20_000,
            delta=0.05,
        )
        assert counts.draws == 16_000
        bound = counts.epsilon_lower(delta=0.05)
        below += bound <= truth
        assert bound > 0.6 * truth
    assert below >= 19


def test_a_mirrored_event_counts_both_directions() -> None:
    ours, theirs = np.array([1.0, 1.0, 0.0, -1.0]), np.array([-1.0, 0.0, -1.0])
    counts = count_event(ours, theirs, 1.0, mirrored=True)
    assert (counts.hits, counts.draws, counts.false_hits, counts.false_draws) == (4, 7, 1, 7)
    assert best_threshold(ours, theirs, mirrored=True) == 1.0


def test_impossible_audits_are_refused() -> None:
    def nothing(count: int) -> np.ndarray:
        return np.zeros(count)

    for bad in (
        lambda: two_worlds(nothing, nothing, draws=0, threshold=1.0),
        lambda: two_worlds(nothing, nothing, draws=10, choosing_share=1.0),
        lambda: EventCounts(1, 2, 1, 2, "").epsilon_lower(alpha=1.0),
        lambda: EventCounts(1, 2, 1, 2, "").epsilon_lower(delta=-0.1),
        lambda: lower_limit(3, 2, 0.1),
        lambda: CanaryGuesses(5, 6, 1),
        lambda: CanaryGuesses(6, 5, 4).p_value(-1.0),
        lambda: guess_by_sign([1.0], [True, False]),
        lambda: guess_at_both_ends([1.0, math.nan], [True, False], most=1, least=1),
        lambda: guess_at_both_ends([1.0], [True], most=1, least=1),
    ):
        with pytest.raises(PrivacyError):
            bad()


# The mechanism's worlds.

SHAPES = [(1.0, 8, 1, 1), (2.0, 7, 3, 3), (0.5, 9, 9, 5), (3.0, 10, 4, 2), (4.0, 11, 11, 8)]


@pytest.mark.parametrize(("epsilon", "units", "block", "threshold"), SHAPES)
def test_log_ratios_are_those_of_enumerated_probabilities(
    epsilon: float, units: int, block: int, threshold: int
) -> None:
    mechanism = ThresholdResponse(epsilon, units, block_units=block, threshold=threshold)
    rng = np.random.default_rng(units)
    mask, other = rng.random(units) < 0.5, rng.random(units) < 0.5
    patterns = np.array(list(itertools.product([False, True], repeat=block)))
    padded = [
        np.concatenate([m, np.zeros(block * mechanism.num_blocks - units, bool)])
        for m in (mask, other)
    ]
    for number in range(mechanism.num_blocks):
        part = slice(number * block, (number + 1) * block)
        reports = mechanism.format.encode(np.full(len(patterns), number), patterns)
        found = log_ratios(mechanism, reports, mask, other)
        for pattern, ratio in zip(patterns, found, strict=True):
            chances = [mechanism.block_probability(int((pattern == m[part]).sum())) for m in padded]
            assert chances[0] / chances[1] == mechanism.likelihood_ratio ** int(ratio)


@given(st.floats(1e-3, 64.0), st.integers(1, 200))
@settings(max_examples=40)
def test_the_analytic_epsilon_is_rounded_up_and_never_above_the_claim(
    epsilon: float, units: int
) -> None:
    mechanism = ThresholdResponse(epsilon, units)
    found = analytic_epsilon(mechanism)
    assert found == pytest.approx(epsilon, rel=1e-12)
    assert found <= mechanism.epsilon
    smaller = ThresholdResponse(math.nextafter(found, 0.0), units)
    assert smaller.likelihood_ratio < mechanism.likelihood_ratio


@pytest.mark.parametrize(("epsilon", "reaches"), [(1.0, 0.9), (4.0, 3.6), (8.0, 5.0)])
def test_two_worlds_come_close_to_the_mechanism_s_epsilon(epsilon: float, reaches: float) -> None:
    mechanism = ThresholdResponse(epsilon, 64)
    for rng in (SimulationRandomness(2, "audit"), SecureRandomness()):
        counts = audit_two_worlds(mechanism, rng, draws=10_000)
        assert reaches < counts.epsilon_lower(alpha=1e-6 if rng.is_private else 0.05) + (
            0.7 if rng.is_private else 0.0
        )
        assert counts.epsilon_lower(alpha=1e-6) <= epsilon


def test_an_epsilon_that_is_a_fifth_too_high_is_seen() -> None:
    claimed, real = ThresholdResponse(1.0, 64), ThresholdResponse(1.2, 64)
    counts = audit_two_worlds(
        claimed, SimulationRandomness(5), draws=20_000, randomize=real.randomize_many
    )
    assert counts.test_claim(1.0).alarms(0.001)
    honest = audit_two_worlds(claimed, SimulationRandomness(5), draws=20_000)
    assert not honest.test_claim(1.0).alarms(0.05)


def test_a_retry_is_one_answer_only_if_its_bytes_are_the_first_ones() -> None:
    mechanism, rng = ThresholdResponse(2.0, 12), SimulationRandomness(6)

    def fresh(masks, rngs):  # type: ignore[no-untyped-def]
        return mechanism.randomize_many(masks, rngs), mechanism.randomize_many(masks, rngs)

    def memoised(masks, rngs):  # type: ignore[no-untyped-def]
        sent = mechanism.randomize_many(masks, rngs)
        return sent, sent

    twice = audit_retries(mechanism, rng, fresh, draws=10_000)
    assert twice.test_claim(2.0).alarms(0.001)
    assert 3.3 < twice.epsilon_lower() <= 4.0
    once = audit_retries(mechanism, rng, memoised, draws=10_000)
    assert not once.test_claim(2.0).alarms(0.05)
    assert once.epsilon_lower() > 1.8


# One run.


def accepted_by_theorem(canaries: int, guesses: int, correct: int, epsilon: float, delta: float):  # type: ignore[no-untyped-def]
    """Theorem 3.1, term by term in exact fractions."""
    ratio = Fraction(math.exp(epsilon))
    right = ratio / (1 + ratio)

    def tail(value: int) -> Fraction:
        return sum(
            (
                math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k)
                for k in range(max(value, 0), guesses + 1)
            ),
            Fraction(0),
        )

    slack = max(
        ((tail(correct - i) - tail(correct)) / i for i in range(1, canaries + 1)),
        default=Fraction(0),
    )
    return min(1.0, float(tail(correct) + 2 * canaries * Fraction(delta) * slack))


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_the_p_value_of_one_run_is_that_of_the_theorem(epsilon: float, delta: float) -> None:
    for canaries, guesses in ((6, 6), (20, 13), (31, 30)):
        for correct in range(guesses + 1):
            found = CanaryGuesses(canaries, guesses, correct).p_value(epsilon, delta)
            wanted = accepted_by_theorem(canaries, guesses, correct, epsilon, delta)
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_the_bound_of_one_run_is_the_last_epsilon_that_is_rejected() -> None:
    guesses = CanaryGuesses(1000, 600, 500)
    for delta in (0.0, 1e-5):
        bound = guesses.epsilon_lower(alpha=0.05, delta=delta)
        assert guesses.p_value(bound, delta) < 0.05
        assert guesses.p_value(bound + 1e-6, delta) >= 0.05
    # Without delta: the epsilon of the exact limit of a binomial share.
    share = lower_limit(500, 600, 0.05)
    assert guesses.epsilon_lower() == pytest.approx(math.log(share / (1 - share)), abs=1e-6)
    assert CanaryGuesses(100, 100, 50).epsilon_lower() == 0.0
    assert CanaryGuesses(100, 0, 0).epsilon_lower() == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_run_errs_in_at_most_alpha_of_all_runs_of_a_mechanism_that_reaches_epsilon(
    epsilon: float,
) -> None:
    right = 1 / (1 + math.exp(-epsilon))  # the best guesser of randomised response, exactly
    for guesses in (1, 10, 60):
        correct = np.arange(guesses + 1)
        mass = stats.binom.pmf(correct, guesses, right)
        bounds = [CanaryGuesses(guesses, guesses, int(v)).epsilon_lower() for v in correct]
        assert mass[np.array(bounds) > epsilon].sum() <= 0.05


def test_one_run_errs_in_at_most_alpha_of_runs_of_a_mechanism_that_fails_with_delta() -> None:
    # With probability delta a canary's coin is published, else epsilon-randomised response.
    epsilon, delta, canaries, wrong = 1.0, 0.02, 100, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        kept = rng.random(canaries) < 1 / (1 + math.exp(-epsilon))
        correct = int((kept | (rng.random(canaries) < delta)).sum())
        bound = CanaryGuesses(canaries, canaries, correct).epsilon_lower(delta=delta)
        wrong += bound > epsilon
    assert wrong <= 20


def test_guesses_abstain_at_zero_and_at_the_middle() -> None:
    scores, coins = [3.0, 0.0, -1.0, 2.0, -5.0], [True, True, True, False, False]
    assert guess_by_sign(scores, coins) == CanaryGuesses(5, 4, 2)
    assert guess_at_both_ends(scores, coins, most=1, least=1) == CanaryGuesses(5, 2, 2)
    assert guess_at_both_ends(scores, coins, most=2, least=0) == CanaryGuesses(5, 2, 1)


def test_local_reports_of_canary_clients_give_a_bound_from_one_run() -> None:
    mechanism, rng = ThresholdResponse(3.0, 40), SimulationRandomness(8)
    coins = rng.stream("coins").generator.random(4000) < 0.5
    mask = np.arange(40) % 3 == 0
    masks = np.where(coins[:, None], mask, ~mask)
    reports = mechanism.randomize_many(masks, [rng.stream("client", i) for i in range(4000)])
    guesses = guess_by_sign(log_ratios(mechanism, reports, mask, ~mask), coins)
    assert 2.6 < guesses.epsilon_lower() <= 3.0
    assert not guesses.test_claim(3.0).alarms(0.05)
    assert guesses.test_claim(2.5).alarms(0.05)


# The report.


def audit(**changes: object) -> EmpiricalAudit:
    values: dict[str, object] = {
        "subject": "mask report",
        "claimed": 4.0,
        "analytic": 4.0,
        "empirical": 3.9,
        "p_value": 1.0,
        "alpha": 0.05,
        "delta": 0.0,
        "draws": 1000,
        "statistic": "two worlds",
        "relation": REPLACEMENT,
        "trust": "local",
    }
    return EmpiricalAudit(**(values | changes))  # type: ignore[arg-type]


def test_a_report_names_unit_relation_and_trust_and_says_if_the_claim_fails() -> None:
    good, bad = audit(), audit(empirical=4.1)
    assert good.holds
    assert not bad.holds
    assert not audit(analytic=4.1).holds
    assert "4 at delta = 0 per client (any change of one client's whole data)" in good.sentence()
    assert "trust = local" in good.sentence()
    assert "CONTRADICTED" in bad.sentence()
    assert "CONTRADICTED" not in good.sentence()
    assert audit(relation=ADD_REMOVE_RECORD).unit == "record"
    assert good.to_json()["unit"] == "client"
    assert table([good, bad]).splitlines()[2].count("contradicted") == 1
    guessed = CanaryGuesses(200, 100, 90)
    made = EmpiricalAudit.of(
        guessed, subject="a run", claimed=1.0, analytic=None, relation=REPLACEMENT, trust="local"
    )
    assert (made.empirical, made.draws) == (guessed.epsilon_lower(), 200)
    assert made.p_value == guessed.p_value(1.0) < 0.05
    assert not made.holds
    assert "90 of 100 guesses right" in made.sentence()
    with pytest.raises(PrivacyError, match="relation must be one of"):
        audit(relation=UNPROTECTED)
