"""Does the audit see implementations that are broken on purpose?

Five faults that look right from outside, each planted here and nowhere in the package, against
the test meant for it; and the honest implementation against all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.empirical import (
    TestOutcome,
    agreement_test,
    audit_retries,
    audit_two_worlds,
    independence_test,
    unbiasedness_test,
)
from fedprune.randomness import Randomness, SimulationRandomness, Words

UNITS = 784
WORLD_DRAWS, RETRY_DRAWS, VOTE_DRAWS, CLIENTS = 100_000, 20_000, 100_000, 3_000
LEVEL = 0.01  # of every test

Masks = NDArray[np.bool_]


def known_mask() -> Masks:
    """A mask that the auditor puts in: every third unit is removed."""
    return np.asarray(np.arange(UNITS) % 3 > 0, dtype=np.bool_)


def known_masks(rng: SimulationRandomness) -> Masks:
    """Masks of many clients that the auditor puts in, each with bits of its own."""
    return np.asarray(rng.generator.random((CLIENTS, UNITS)) < 0.5, dtype=np.bool_)


# Epsilon.


def too_much_epsilon(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Draw with 1.2 epsilon and claim epsilon."""
    claimed = ThresholdResponse(epsilon, UNITS)
    real = with_shape(claimed, 1.2 * epsilon, claimed.threshold)
    counts = audit_two_worlds(claimed, rng, draws=WORLD_DRAWS, randomize=real.randomize_many)
    return counts.test_claim(epsilon)


def honest_epsilon(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Draw with epsilon and claim it."""
    mechanism = ThresholdResponse(epsilon, UNITS)
    return audit_two_worlds(mechanism, rng, draws=WORLD_DRAWS).test_claim(epsilon)


def with_shape(mechanism: ThresholdResponse, epsilon: float, threshold: int) -> ThresholdResponse:
    """The mechanism on the same blocks with other parameters."""
    return ThresholdResponse(
        epsilon, mechanism.num_units, block_units=mechanism.block_units, threshold=threshold
    )


# Threshold.

# Claimed block and threshold, and the sampler's threshold. Single bits have no other threshold,
# so at epsilon = 1 blocks of nine bits (Duchi's mechanism) are audited.
THRESHOLDS: Mapping[float, tuple[int, int, int]] = {
    1.0: (9, 5, 7),
    4.0: (4, 4, 3),
    8.0: (784, 431, 421),
}


def other_threshold(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Sample with another threshold than the estimator divides by."""
    block, claimed, real = THRESHOLDS[epsilon]
    return votes(epsilon, block, claimed, real, rng)


def honest_votes(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Sample with the threshold that the estimator divides by."""
    block, claimed, _ = THRESHOLDS[epsilon]
    return votes(epsilon, block, claimed, claimed, rng)


def votes(epsilon: float, block: int, claimed: int, real: int, rng: Randomness) -> TestOutcome:
    """Put one known mask in and look at the estimate."""
    mechanism = ThresholdResponse(epsilon, UNITS, block_units=block, threshold=claimed)
    sampler = with_shape(mechanism, epsilon, real)
    masks = np.broadcast_to(known_mask(), (VOTE_DRAWS, UNITS))
    reports = sampler.randomize_many(masks, [rng] * VOTE_DRAWS)
    return unbiasedness_test(mechanism, known_mask(), reports)


def threshold_off_by_one(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Sample with a threshold one lower; where the gain is flat, only the agreements show it."""
    block, claimed, _ = THRESHOLDS[epsilon]
    return agreements(epsilon, block, claimed, claimed - 1, rng)


def honest_agreements(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Sample with the threshold that is claimed."""
    block, claimed, _ = THRESHOLDS[epsilon]
    return agreements(epsilon, block, claimed, claimed, rng)


def agreements(
    epsilon: float, block: int, claimed: int, real: int, rng: SimulationRandomness
) -> TestOutcome:
    """Put known masks in and count how often reports reach the threshold."""
    mechanism = ThresholdResponse(epsilon, UNITS, block_units=block, threshold=claimed)
    masks = known_masks(rng)
    sampler = with_shape(mechanism, epsilon, real)
    return agreement_test(mechanism, masks, sampler.randomize_many(masks, [rng] * CLIENTS))


# Randomness.


class Window:
    """A long sequence of words, read from a place on."""

    word_bits = 64
    is_private = False

    def __init__(self, pool: Words, start: int) -> None:
        """Begin at word `start`."""
        self._pool, self._next = pool, start

    def words(self, count: int) -> Words:
        """Read on."""
        self._next += count
        return self._pool[self._next - count : self._next]


def streams(rng: SimulationRandomness, owner: Callable[[int], int]) -> list[Randomness]:
    """One stream a client, named by its owner: two clients with one owner draw the same."""
    return [rng.stream("client", owner(client)) for client in range(CLIENTS)]


def shifted_streams(rng: SimulationRandomness) -> list[Randomness]:
    """Client i reads the words from place i on."""
    pool = rng.stream("pool").words(CLIENTS + 20_000)
    return [Window(pool, client) for client in range(CLIENTS)]


REUSES: Mapping[str, Callable[[SimulationRandomness], Sequence[Randomness]]] = {
    "neighbours share a stream": lambda rng: streams(rng, lambda i: i // 2),
    "every second client has one stream": lambda rng: streams(rng, lambda i: 0 if i % 2 else i),
    "one in ten repeats its neighbour": lambda rng: streams(rng, lambda i: i - (i % 10 == 1)),
    "clients three apart share a stream": lambda rng: streams(rng, lambda i: i - i // 3 % 2 * 3),
    "streams begin one word later": shifted_streams,
}


def shared_randomness(epsilon: float, rng: SimulationRandomness, reuse: str) -> TestOutcome:
    """Give clients randomness that is not their own."""
    return cohort(epsilon, rng, REUSES[reuse](rng))


def honest_cohort(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Give every client a stream of its own."""
    return cohort(epsilon, rng, streams(rng, lambda i: i))


def cohort(epsilon: float, rng: SimulationRandomness, sources: Sequence[Randomness]) -> TestOutcome:
    """Put known masks in, one a client, and look for pairs that are alike."""
    mechanism, masks = ThresholdResponse(epsilon, UNITS), known_masks(rng)
    return independence_test(mechanism, masks, mechanism.randomize_many(masks, sources))


# Retries.


def fresh_retry(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Answer a repeated question with a new draw."""
    mechanism = ThresholdResponse(epsilon, UNITS)

    def answer(
        masks: Masks, rngs: Sequence[Randomness]
    ) -> tuple[Sequence[Report], Sequence[Report]]:
        return mechanism.randomize_many(masks, rngs), mechanism.randomize_many(masks, rngs)

    return audit_retries(mechanism, rng, answer, draws=RETRY_DRAWS).test_claim(epsilon)


def honest_retry(epsilon: float, rng: SimulationRandomness) -> TestOutcome:
    """Answer a repeated question with the first answer's bytes."""
    mechanism = ThresholdResponse(epsilon, UNITS)

    def answer(
        masks: Masks, rngs: Sequence[Randomness]
    ) -> tuple[Sequence[Report], Sequence[Report]]:
        sent = mechanism.randomize_many(masks, rngs)
        return sent, sent

    return audit_retries(mechanism, rng, answer, draws=RETRY_DRAWS).test_claim(epsilon)


Experiment = Callable[[float, SimulationRandomness], TestOutcome]

# What is broken, and the test meant for it.
FAULTS: Mapping[str, Experiment] = {
    "epsilon 20 % too high (two worlds)": too_much_epsilon,
    "threshold not the estimator's (unbiasedness)": other_threshold,
    "threshold off by one (agreement)": threshold_off_by_one,
    "fresh draw on retry (both draws)": fresh_retry,
    **{f"{reuse} (pairs)": partial(shared_randomness, reuse=reuse) for reuse in REUSES},
}
HONEST: Mapping[str, Experiment] = {
    "two worlds": honest_epsilon,
    "unbiasedness": honest_votes,
    "agreement": honest_agreements,
    "retry": honest_retry,
    "pairs": honest_cohort,
}
