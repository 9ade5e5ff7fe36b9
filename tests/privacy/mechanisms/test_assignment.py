"""Public assignment of clients to blocks: anybody can recompute it, every unit is asked evenly."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import chi2

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.mechanisms.assignment import assigned_blocks, public_ranks
from fedprune.randomness import SimulationRandomness


def test_ranks_are_a_permutation_that_the_label_alone_decides() -> None:
    ranks = public_ranks(1000, "run/1")
    assert sorted(ranks.tolist()) == list(range(1000))
    assert np.array_equal(ranks, public_ranks(1000, "run/1"))
    assert not np.array_equal(ranks, public_ranks(1000, "run/2"))
    with pytest.raises(ValueError, match="read-only"):
        ranks[0] = 5


def test_ranks_can_be_recomputed_without_this_library() -> None:
    text = b"fedprune public ranks 1\0" + b"50\0" + b"round 3"
    stream = hashlib.shake_256(text).digest(8 * 50)
    keys = [int.from_bytes(stream[8 * i : 8 * i + 8], "big") for i in range(50)]
    order = sorted(range(50), key=lambda client: keys[client])
    assert [order.index(client) for client in range(50)] == public_ranks(50, "round 3").tolist()


def test_over_labels_every_client_has_every_rank_equally_often() -> None:
    labels, clients = 3000, 6
    table = np.zeros((clients, clients))
    for label in range(labels):
        table[np.arange(clients), public_ranks.__wrapped__(clients, f"label {label}")] += 1
    expected = labels / clients
    statistic = ((table - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-4, (clients - 1) ** 2)


@pytest.mark.parametrize(("first", "last"), [(0, 1000), (13, 700), (250, 261)])
def test_any_range_of_ranks_asks_about_every_block_equally_often(first: int, last: int) -> None:
    ranks = public_ranks(1000, "x")
    cohort = ranks[(ranks >= first) & (ranks < last)]
    counts = np.bincount(assigned_blocks(cohort, 7), minlength=7)
    assert counts.max() - counts.min() <= 1


def test_reports_about_the_assigned_block_are_accepted_and_others_refused_by_name() -> None:
    mechanism = ThresholdResponse(4.0, 50)
    masks = np.random.default_rng(0).random((40, 50)) < 0.5
    blocks = assigned_blocks(public_ranks(40, "x"), mechanism.num_blocks)
    rngs = [SimulationRandomness(1, c) for c in range(40)]
    reports = mechanism.randomize_many(masks, rngs, blocks)
    spoken, _ = mechanism.format.decode(reports)
    assert np.array_equal(spoken, blocks)
    sums = mechanism.add(mechanism.new_sums(), reports, blocks)
    assert sums.num_reports == 40
    wrong = blocks.copy()
    wrong[7] = (wrong[7] + 1) % mechanism.num_blocks
    with pytest.raises(ReportError, match=r"report 7 is about block \d+, but its client was"):
        mechanism.add(mechanism.new_sums(), reports, wrong)
    with pytest.raises(ReportError, match="need as many"):
        mechanism.add(mechanism.new_sums(), reports, blocks[:-1])
    with pytest.raises(ReportError, match="need as many"):
        mechanism.add(mechanism.new_sums(), reports[:-1], blocks)


def test_an_assigned_draw_is_the_same_alone_and_in_a_cohort() -> None:
    mechanism = ThresholdResponse(4.0, 30)
    masks = np.random.default_rng(0).random((20, 30)) < 0.5
    blocks = np.arange(20) % mechanism.num_blocks
    root = SimulationRandomness(3)
    together = mechanism.randomize_many(masks, [root.stream(c) for c in range(20)], blocks)
    alone = [mechanism.randomize(masks[c], root.stream(c), int(blocks[c])) for c in range(20)]
    assert together == alone


def test_what_cannot_be_assigned_is_refused() -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(PrivacyError, match="num_clients"):
            public_ranks(bad, "x")
    with pytest.raises(PrivacyError, match="num_blocks"):
        assigned_blocks(np.arange(3), 0)
    with pytest.raises(PrivacyError, match="ranks"):
        assigned_blocks(np.array([0.5]), 2)
    with pytest.raises(PrivacyError, match="ranks"):
        assigned_blocks(np.array([-1]), 2)
    mechanism = ThresholdResponse(4.0, 10, block_units=4, threshold=4)
    rng = [SimulationRandomness(1)]
    with pytest.raises(ReportError, match=r"must be in \[0, 3\)"):
        mechanism.randomize_many(np.ones((1, 10), bool), rng, [3])
    with pytest.raises(ReportError, match="one a report"):
        mechanism.randomize_many(np.ones((1, 10), bool), rng, [0, 1])
