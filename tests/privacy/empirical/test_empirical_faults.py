"""Planted faults are seen by the test meant for them; what is right raises no alarm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.empirical import (
    Noise,
    agreement_test,
    independence_test,
    unbiasedness_test,
)
from fedprune.privacy.empirical.unbiasedness import law_of_one_report
from fedprune.randomness import SimulationRandomness

MECHANISMS = [
    ThresholdResponse(1.0, 8),
    ThresholdResponse(1.0, 784),
    ThresholdResponse(4.0, 50, block_units=4, threshold=4),
    ThresholdResponse(2.0, 13, block_units=6, threshold=4),
    ThresholdResponse(8.0, 64),
    ThresholdResponse(8.0, 9, block_units=1, threshold=1),
]


def masks_of(mechanism: ThresholdResponse, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, mechanism.num_units)) < 0.5


def honest_reports(mechanism: ThresholdResponse, masks: np.ndarray, seed: int) -> list[Report]:
    return mechanism.randomize_many(masks, [SimulationRandomness(seed)] * len(masks))


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_what_is_right_raises_no_alarm_more_often_than_stated(
    mechanism: ThresholdResponse,
) -> None:
    alarms = {"unbiasedness": 0, "agreement": 0, "independence": 0}
    masks = masks_of(mechanism, 400)
    for seed in range(60):
        reports = honest_reports(mechanism, masks, seed)
        same = honest_reports(mechanism, np.tile(masks[0], (400, 1)), seed)
        for outcome in (
            unbiasedness_test(mechanism, masks[0], same),
            agreement_test(mechanism, masks, reports),
            independence_test(mechanism, masks, reports),
        ):
            alarms[outcome.test] += outcome.alarms(0.05)
    assert max(alarms.values()) <= 8  # 60 runs at 5 %: more than 8 comes once in 400 times


@pytest.mark.parametrize("mechanism", MECHANISMS[2:4], ids=repr)
def test_the_law_of_one_report_s_share_is_the_enumerated_one(
    mechanism: ThresholdResponse,
) -> None:
    mask = masks_of(mechanism, 1)[0]
    truth = np.where(mask, 1.0, -1.0)
    size, last = mechanism.block_units, mechanism.num_blocks - 1
    law = law_of_one_report(mechanism)
    assert law.weights.sum() == pytest.approx(1.0)
    assert law.weights @ law.values == pytest.approx(1.0)
    padded = np.concatenate([mask, np.zeros(size * mechanism.num_blocks - len(mask), bool)])
    found: dict[float, float] = {}
    patterns = np.array(list(itertools.product([False, True], repeat=size)))
    for number in (0, last):
        weight = 1 / mechanism.num_blocks if number == last else 1 - 1 / mechanism.num_blocks
        own = padded[number * size : (number + 1) * size]
        for pattern in patterns:
            report = mechanism.format.encode(np.array([number]), pattern[None])
            vote = mechanism.estimate(report, counts="expected").mean
            share = round(float(np.mean((2 * vote - 1) * truth)), 9)
            chance = float(mechanism.block_probability(int((pattern == own).sum())))
            found[share] = found.get(share, 0.0) + weight * chance
    for value, chance in found.items():
        assert law.weights[np.isclose(law.values, value)].sum() == pytest.approx(chance)


@pytest.mark.parametrize(
    ("claimed", "real"),
    [
        (ThresholdResponse(4.0, 96, block_units=4, threshold=4), (4.0, 4, 3)),
        (ThresholdResponse(8.0, 96, block_units=96, threshold=62), (8.0, 96, 58)),
        (ThresholdResponse(1.0, 9, block_units=9, threshold=5), (1.0, 9, 7)),
        (ThresholdResponse(4.0, 96, block_units=4, threshold=4), (3.5, 4, 4)),
    ],
)
def test_a_sampler_that_is_not_the_estimator_s_is_seen(
    claimed: ThresholdResponse, real: tuple[float, int, int]
) -> None:
    epsilon, block, threshold = real
    other = ThresholdResponse(epsilon, claimed.num_units, block_units=block, threshold=threshold)
    mask = masks_of(claimed, 1)[0]
    reports = other.randomize_many(np.tile(mask, (20_000, 1)), [SimulationRandomness(3)] * 20_000)
    assert unbiasedness_test(claimed, mask, reports).alarms(0.001)
    assert agreement_test(claimed, mask, reports).alarms(0.001)


def test_a_threshold_that_is_off_by_one_is_seen_where_the_gain_hardly_changes() -> None:
    claimed = ThresholdResponse(8.0, 784)
    other = ThresholdResponse(8.0, 784, block_units=784, threshold=claimed.threshold - 1)
    assert float(other.agreement_gain / claimed.agreement_gain) > 0.995
    mask = masks_of(claimed, 1)[0]
    reports = other.randomize_many(np.tile(mask, (2000, 1)), [SimulationRandomness(3)] * 2000)
    assert agreement_test(claimed, mask, reports).alarms(1e-6)


def test_bits_in_another_order_are_seen() -> None:
    mechanism = ThresholdResponse(4.0, 40)
    mask = masks_of(mechanism, 1)[0]
    reports = honest_reports(mechanism, np.tile(mask, (5000, 1)), 1)
    blocks, bits = mechanism.format.decode(reports)
    turned = mechanism.format.encode(blocks, bits[:, ::-1])
    assert unbiasedness_test(mechanism, mask, turned).alarms(1e-4)


Plan = Callable[[int], Sequence[int]]

REUSE: dict[str, Plan] = {
    "neighbours share a stream": lambda n: [i // 2 for i in range(n)],
    "neighbours share a stream, shifted": lambda n: [(i + 1) // 2 for i in range(n)],
    "every second client has one stream": lambda n: [0 if i % 2 else i for i in range(n)],
    "one client in ten repeats its neighbour": lambda n: [i - (i % 10 == 1) for i in range(n)],
    "clients three apart share a stream": lambda n: [i - 3 * ((i // 3) % 2) for i in range(n)],
    "all clients have one stream": lambda n: [0] * n,
}


@pytest.mark.parametrize("plan", REUSE)
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_streams_that_clients_share_are_seen(mechanism: ThresholdResponse, plan: str) -> None:
    count = 2000
    masks = masks_of(mechanism, count)
    root = SimulationRandomness(4)
    reports = mechanism.randomize_many(masks, [root.stream(i) for i in REUSE[plan](count)])
    assert independence_test(mechanism, masks, reports).alarms(0.001)


class Window:
    """One long sequence of words, read from a place."""

    word_bits = 64
    is_private = False

    def __init__(self, words: np.ndarray, start: int) -> None:
        self._words, self._at = words, start

    def words(self, count: int) -> np.ndarray:
        self._at += count
        return self._words[self._at - count : self._at]


@pytest.mark.parametrize("mechanism", MECHANISMS[:5], ids=repr)
def test_streams_that_begin_one_word_later_are_seen(mechanism: ThresholdResponse) -> None:
    count = 4000
    masks = masks_of(mechanism, count)
    pool = SimulationRandomness(5).words(count + 10_000)
    reports = mechanism.randomize_many(masks, [Window(pool, i) for i in range(count)])
    assert independence_test(mechanism, masks, reports).alarms(0.001)


def test_strangers_that_share_a_stream_are_seen_where_equal_noise_is_rare() -> None:
    mechanism, count = ThresholdResponse(4.0, 784), 4000
    rng = np.random.default_rng(0)
    partner = np.arange(count)
    partner[rng.choice(count, count // 2, replace=False)] = rng.integers(0, count, count // 2)
    masks = masks_of(mechanism, count)
    reports = mechanism.randomize_many(masks, [SimulationRandomness(6, int(p)) for p in partner])
    outcome = independence_test(mechanism, masks, reports)
    assert outcome.alarms(0.01)
    assert "of all pairs" in outcome.detail


def test_a_stream_used_again_in_the_next_round_is_seen_in_interleaved_reports() -> None:
    mechanism, count = ThresholdResponse(4.0, 40), 1000
    masks = np.repeat(masks_of(mechanism, count), 2, axis=0)
    for again, alarms in ((True, True), (False, False)):
        labels = [(i // 2, 0 if again else i % 2) for i in range(2 * count)]
        rngs = [SimulationRandomness(7, *label) for label in labels]
        reports = mechanism.randomize_many(masks, rngs)
        assert independence_test(mechanism, masks, reports).alarms(0.01) is alarms


def test_assigned_blocks_are_no_evidence_of_shared_randomness() -> None:
    mechanism, count = ThresholdResponse(4.0, 40), 2000
    masks = masks_of(mechanism, count)
    blocks = np.arange(count) % 2  # so that neighbours at an even distance share theirs
    rngs = [SimulationRandomness(8, i) for i in range(count)]
    reports = mechanism.randomize_many(masks, rngs, blocks)
    assert independence_test(mechanism, masks, reports).alarms(0.001)
    assert not independence_test(mechanism, masks, reports, drawn_blocks=False).alarms(0.05)
    same = [SimulationRandomness(8, i // 2) for i in range(count)]
    reports = mechanism.randomize_many(masks, same, blocks)
    assert independence_test(mechanism, masks, reports, drawn_blocks=False).alarms(0.001)


@given(st.sampled_from(MECHANISMS), st.integers(0, 10_000))
@settings(max_examples=25)
def test_noise_does_not_depend_on_the_mask(mechanism: ThresholdResponse, seed: int) -> None:
    masks = masks_of(mechanism, 20, seed)
    noise = Noise.of(mechanism, masks, honest_reports(mechanism, masks, seed))
    other = Noise.of(mechanism, ~masks, honest_reports(mechanism, ~masks, seed))
    assert np.array_equal(noise.blocks, other.blocks)
    real = noise.blocks[:, None] * mechanism.block_units + np.arange(mechanism.block_units)
    inside = real < mechanism.num_units
    assert np.array_equal(noise.agree & inside, other.agree & inside)


@pytest.mark.parametrize("mechanism", MECHANISMS[2:4], ids=repr)
def test_power_sums_are_those_of_all_outcomes(mechanism: ThresholdResponse) -> None:
    masks = masks_of(mechanism, 1)
    noise = Noise.of(mechanism, masks, honest_reports(mechanism, masks, 1))
    chances = [
        mechanism.block_probability(sum(pattern)) / mechanism.num_blocks
        for pattern in itertools.product([0, 1], repeat=mechanism.block_units)
        for _ in range(mechanism.num_blocks)
    ]
    assert noise.power_sum(1) == 1
    for order in (2, 3, 4):
        assert noise.power_sum(order) == sum(chance**order for chance in chances)


def test_reports_and_masks_that_do_not_fit_are_refused() -> None:
    mechanism = ThresholdResponse(4.0, 10)
    masks = masks_of(mechanism, 5)
    reports = honest_reports(mechanism, masks, 1)
    with pytest.raises(PrivacyError, match="at least 4 reports"):
        independence_test(mechanism, masks[:3], reports[:3])
    with pytest.raises(PrivacyError, match="at least one"):
        agreement_test(mechanism, masks, [])
    with pytest.raises(PrivacyError, match="boolean and of 10 units"):
        agreement_test(mechanism, masks[:4], reports)
    with pytest.raises(PrivacyError, match="boolean and of 10 units"):
        agreement_test(mechanism, masks.astype(float), reports)
    with pytest.raises(ReportError):
        agreement_test(mechanism, masks, [Report(b"x" * 9)] * 5)


def test_an_outcome_says_what_was_claimed_and_found() -> None:
    mechanism = ThresholdResponse(4.0, 10)
    masks = masks_of(mechanism, 50)
    outcome = agreement_test(mechanism, masks, honest_reports(mechanism, masks, 1))
    assert f"claimed {outcome.claimed:.4g}, found {outcome.found:.4g}" in outcome.sentence()
    assert math.isclose(outcome.to_json()["p_value"], outcome.p_value)
