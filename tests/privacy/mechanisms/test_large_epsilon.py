"""With a large epsilon and few units a report is all but the truth: its variance stays above 0."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.privacy import PhaseVotes, assigned_blocks, combine, magnitude_posterior
from fedprune.privacy.mechanisms.estimation import bit_noise
from fedprune.privacy.mechanisms.mechanism import Mechanism
from fedprune.privacy.mechanisms.special_cases import MECHANISMS, make_mechanism
from fedprune.privacy.votes.phases import choose_undecided, phase_plan
from fedprune.randomness import SimulationRandomness

CASES = [
    pytest.param(make_mechanism(name, epsilon, units), id=f"{name}-{epsilon:g}-{units}")
    for name, epsilon, units in product(MECHANISMS, (30.0, 40.0, 64.0), (1, 2, 8))
]
CLIENTS = 24


def exact_variance(mechanism: Mechanism, clients: int) -> Fraction:
    c = mechanism.agreement_gain
    return (mechanism.num_blocks / c**2 - 1) / (4 * clients)


@given(
    st.fractions(0, 1).filter(lambda c: 0 < c < 1)
    | st.integers(1, 2**200).map(lambda n: 1 - Fraction(1, n + 1))
)
def test_the_noise_of_a_bit_is_exact_and_above_0(gain: Fraction) -> None:
    assert bit_noise(gain) == float(1 - gain**2) > 0


def test_a_gain_of_1_has_no_noise() -> None:
    assert bit_noise(1.0) == bit_noise(Fraction(1)) == 0.0


@pytest.mark.parametrize("mechanism", CASES)
def test_a_votes_variance_is_the_exact_one(mechanism: Mechanism) -> None:
    drawn = mechanism.variance_per_vote(CLIENTS)
    assert drawn == pytest.approx(float(exact_variance(mechanism, CLIENTS)), rel=1e-12, abs=0)
    assert drawn > 0
    assert mechanism.variance_per_vote(CLIENTS, assigned=True) > 0
    for phases in (1, 2, 4):
        variance = mechanism.variance_per_vote(CLIENTS, assigned=True)
        plan = phase_plan(phases, mechanism.num_units, variance=variance)
        assert sum(share for share, _ in plan) == pytest.approx(1)


def estimates(mechanism: Mechanism) -> Iterator[tuple[str, PhaseVotes]]:
    units = mechanism.num_units
    masks = np.arange(CLIENTS * units).reshape(CLIENTS, units) % 3 == 0
    rngs = [SimulationRandomness(3, "client", i) for i in range(CLIENTS)]
    blocks = assigned_blocks(np.arange(CLIENTS), mechanism.num_blocks)
    drawn = mechanism.randomize_many(masks, rngs)
    asked = mechanism.randomize_many(masks, rngs, blocks)
    for counts, reports in (("expected", drawn), ("observed", drawn), ("assigned", asked)):
        yield counts, PhaseVotes(np.arange(units), mechanism.estimate(reports, counts=counts))


@pytest.mark.parametrize("mechanism", CASES)
def test_votes_can_be_weighed_shrunk_and_pooled(mechanism: Mechanism) -> None:
    units = mechanism.num_units
    magnitude = np.linspace(1.0, 2.0, units)
    for counts, votes in estimates(mechanism):
        found = votes.estimate
        assert (found.variance > 0).all(), counts
        bounds, share = found.interval(), np.clip(found.mean, 0, 1)
        assert counts == "expected" or (bounds.low <= share + 1e-12).all()
        assert counts == "expected" or (share <= bounds.high + 1e-12).all()
        posterior = magnitude_posterior(found.mean, found.variance, magnitude)
        assert np.isfinite(posterior.mean).all()
        assert (posterior.variance > 0).all()
        assert len(choose_undecided(posterior.mean, posterior.variance, units // 2, 1)) == 1
        both = combine([votes, votes], units)
        assert (both.variance > 0).all()


@pytest.mark.parametrize("epsilon", [20.0, 30.0, 36.0])
def test_the_variance_falls_with_e_to_the_minus_epsilon(epsilon: float) -> None:
    mechanism = make_mechanism("warner", epsilon, 1)
    (_, votes) = next(pair for pair in estimates(mechanism) if pair[0] == "assigned")
    tail = 4 * math.exp(-epsilon)  # 1 - c^2 = 4 e^eps / (1 + e^eps)^2
    assert votes.estimate.variance[0] == pytest.approx(tail / (4 * CLIENTS), rel=1e-6, abs=0)
