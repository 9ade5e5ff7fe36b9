"""What liars can do is bounded, and the bounds are reached by the attacks they are named after."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.mechanisms.assignment import assigned_blocks, public_ranks
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse
from fedprune.privacy.mechanisms.mechanism import Mechanism
from fedprune.privacy.votes.influence import influence, tolerated_share
from fedprune.randomness import SimulationRandomness

MECHANISMS = [
    ThresholdResponse(4.0, 24, block_units=4, threshold=4),
    ThresholdResponse(8.0, 24, block_units=24, threshold=15),
    ThresholdResponse(1.0, 8),
    BitwiseResponse(8.0, 24),
]


def rows_about(mechanism: Mechanism, block: int, bit: bool, count: int) -> np.ndarray:
    bits = np.full((count, mechanism.block_units), bit)
    return mechanism.format.encode_rows(np.full(count, block), bits)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
@pytest.mark.parametrize("counts", ["expected", "assigned"])
def test_no_single_report_moves_a_vote_by_more_than_stated(
    mechanism: Mechanism, counts: str
) -> None:
    n = 6 * mechanism.num_blocks
    masks = np.random.default_rng(0).random((n, mechanism.num_units)) < 0.5
    blocks = np.arange(n) % mechanism.num_blocks
    rows = mechanism.randomize_rows(masks, [SimulationRandomness(0)] * n, blocks)
    bound, largest = influence(mechanism, n, counts=counts).one_client, 0.0
    targets = [blocks[0]] if counts == "assigned" else range(mechanism.num_blocks)
    results = []
    for block in targets:
        for bit in (False, True):
            rows[:1] = rows_about(mechanism, int(block), bit, 1)
            sums = mechanism.add(mechanism.new_sums(), rows)
            results.append(mechanism.estimate_sums(sums, counts=counts).mean)
    for first in results:
        for second in results:
            largest = max(largest, float(np.abs(first - second).max()))
    assert largest <= bound * (1 + 1e-9)
    assert largest == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
@pytest.mark.parametrize("counts", ["expected", "observed"])
def test_liars_who_claim_one_block_reach_the_bound_where_blocks_are_drawn(
    mechanism: Mechanism, counts: str
) -> None:
    n, gamma = 300 * mechanism.num_blocks, 0.1
    liars = round(gamma * n)
    found = influence(mechanism, n, gamma, counts=counts)
    masks = np.ones((n, mechanism.num_units), dtype=bool)  # all honest masks keep everything
    rows = mechanism.randomize_rows(masks, [SimulationRandomness(1)] * n)
    rows[:liars] = rows_about(mechanism, 0, False, liars)
    sums = mechanism.add(mechanism.new_sums(), rows)
    vote = mechanism.estimate_sums(sums, counts=counts).mean[0]
    noise = np.sqrt(mechanism.variance_per_vote(n))
    assert 1 - vote == pytest.approx(found.vote_shift, abs=4.5 * noise)
    assert found.margin_shift == 2 * found.vote_shift


def test_a_public_assignment_spreads_the_liars_over_all_blocks() -> None:
    mechanism = ThresholdResponse(4.0, 200)
    n, gamma = 5000, 0.05
    found = influence(mechanism, n, gamma, counts="assigned", confidence=0.99)
    held = []
    for label in range(300):
        blocks = assigned_blocks(public_ranks.__wrapped__(n, f"{label}"), mechanism.num_blocks)
        liars = np.bincount(blocks[: round(gamma * n)], minlength=mechanism.num_blocks)
        held.append((liars / np.bincount(blocks)).max())
    assert np.mean(np.array(held) > found.block_share) <= 0.03
    assert np.max(held) >= 0.6 * found.block_share  # and it is not idle
    drawn = influence(mechanism, n, gamma, counts="observed")
    after = influence(mechanism, n, gamma, counts="assigned", corruption="after")
    assert found.vote_shift < drawn.vote_shift < after.vote_shift
    assert found.units_at_once == 200
    assert drawn.units_at_once == after.units_at_once == mechanism.block_units
    assert "with probability 0.99" in found.sentence


def test_nobody_lying_shifts_nothing_and_all_lying_decide_everything() -> None:
    mechanism = ThresholdResponse(4.0, 40)
    for counts in ("expected", "observed", "assigned"):
        assert influence(mechanism, 1000, 0.0, counts=counts).vote_shift == 0
        assert influence(mechanism, 1000, 1.0, counts=counts).vote_shift >= 1
        shifts = [influence(mechanism, 1000, g, counts=counts).vote_shift for g in (0.01, 0.1, 0.5)]
        assert shifts == sorted(shifts)


def test_units_beyond_reach_stay_whatever_the_liars_do_to_the_votes() -> None:
    mechanism = ThresholdResponse(8.0, 30)
    found = influence(mechanism, 10_000, 0.02)
    votes = np.linspace(0, 1, 30)
    reach = found.beyond_reach(votes, 10)
    assert (reach == 1).any()
    assert (reach == -1).any()
    assert (reach == 0).any()
    rng = np.random.default_rng(0)
    for _ in range(200):
        moved = votes + found.vote_shift * rng.choice([-1.0, 1.0], 30)
        kept = np.zeros(30, dtype=bool)
        kept[np.argsort(-moved)[:10]] = True
        assert kept[reach == 1].all()
        assert not kept[reach == -1].any()


def test_the_tolerated_share_is_where_the_margin_is_used_up() -> None:
    mechanism = ThresholdResponse(4.0, 100)
    share = tolerated_share(mechanism, 10_000, 0.5)
    assert influence(mechanism, 10_000, share).margin_shift < 0.5
    assert influence(mechanism, 10_000, share + 1e-3).margin_shift >= 0.5
    assert tolerated_share(mechanism, 10_000, 1e-9) == pytest.approx(0, abs=2e-4)
    with pytest.raises(PrivacyError, match="margin"):
        tolerated_share(mechanism, 10, 0.0)


@pytest.mark.parametrize(("n", "share", "confidence"), [(0, 0.1, 0.9), (5, 1.1, 0.9), (5, 0.1, 1)])
def test_values_out_of_range_are_refused(n: int, share: float, confidence: float) -> None:
    with pytest.raises(PrivacyError, match="liar_share in"):
        influence(MECHANISMS[0], n, share, confidence=confidence)
