"""Honest clients of any kind are not accused; liars are found by the test meant for them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse
from fedprune.privacy.mechanisms.mechanism import Mechanism
from fedprune.privacy.votes.honesty import (
    check_blocks,
    check_pairs,
    check_patterns,
    check_reports,
    check_votes,
    check_weights,
    pattern_counts,
    weight_law,
)
from fedprune.randomness import SimulationRandomness

BLOCKS = ThresholdResponse(4.0, 24, block_units=4, threshold=4)
WHOLE = ThresholdResponse(8.0, 60, block_units=60, threshold=38)
ALPHA = 0.01


def honest(mechanism: Mechanism, masks: np.ndarray, seed: int) -> np.ndarray:
    return mechanism.randomize_rows(masks, [SimulationRandomness(seed)] * len(masks))


def populations(units: int, clients: int) -> list[np.ndarray]:
    """Clients that agree entirely, that are all alike or opposite, and that are all different."""
    rng = np.random.default_rng(units)
    same = np.tile(np.arange(units) % 2 == 0, (clients, 1))
    opposite = same ^ (np.arange(clients)[:, None] % 2 == 0)
    half = rng.random((clients, units)).argsort(axis=1) < units // 2
    return [same, opposite, half, np.ones((clients, units), dtype=bool)]


@pytest.mark.parametrize("mechanism", [BLOCKS, WHOLE, BitwiseResponse(8.0, 30)], ids=repr)
def test_honest_clients_are_seldom_suspected_whatever_they_keep(mechanism: Mechanism) -> None:
    accused = 0
    for seed in range(25):
        for masks in populations(mechanism.num_units, 400):
            tests = check_reports(mechanism, honest(mechanism, masks, seed), assigned=False)
            accused += sum(test.suspicious(ALPHA) for test in tests)
    assert accused <= 9  # of 100 populations and five tests, each at most 1 %


def test_the_pattern_test_finds_a_pattern_that_nobody_sends() -> None:
    masks = populations(24, 20_000)[2]
    rows = honest(BLOCKS, masks, 1)
    assert not check_patterns(BLOCKS, pattern_counts(BLOCKS, rows)).suspicious(ALPHA)
    blocks, bits = BLOCKS.format.decode(rows)
    kept = ~((blocks == 2) & (bits == [True, False, False, True]).all(axis=1))
    found = check_patterns(BLOCKS, pattern_counts(BLOCKS, rows[kept]))
    assert found.suspicious(ALPHA)
    assert found.findings[0].startswith("pattern 1001 of block 2 came 0 times")
    assert "not all clients are honest" in found.sentence()


def test_the_pattern_test_finds_clients_that_add_no_noise() -> None:
    # Twenty patterns out of a hundred become impossible where everybody sends the plain mask.
    masks = populations(24, 6000)[0]
    plain = BLOCKS.format.encode_rows(np.arange(6000) % 6, masks[:, :4])
    assert check_patterns(BLOCKS, pattern_counts(BLOCKS, plain)).suspicious(1e-6)
    assert check_votes(BLOCKS, BLOCKS.add(BLOCKS.new_sums(), plain)).suspicious(1e-6)


def test_pattern_counts_are_those_of_a_plain_loop_however_they_are_read() -> None:
    rows = honest(BLOCKS, populations(24, 300)[2], 0)
    counts = pattern_counts(BLOCKS, rows)
    expected = np.zeros((6, 16), dtype=int)
    for block, bits in zip(*BLOCKS.format.decode(rows), strict=True):
        expected[block, int("".join("1" if bit else "0" for bit in bits), 2)] += 1
    assert np.array_equal(counts, expected)
    assert np.array_equal(counts, pattern_counts(BLOCKS, iter(BLOCKS.format.split(rows))))
    with pytest.raises(PrivacyError, match="too many patterns"):
        pattern_counts(WHOLE, rows)


def test_the_vote_test_finds_a_majority_that_the_noise_would_not_let_through() -> None:
    rows = honest(WHOLE, populations(60, 2000)[2], 0)
    assert not check_votes(WHOLE, WHOLE.add(WHOLE.new_sums(), rows)).suspicious(ALPHA)
    bits = np.unpackbits(rows, axis=1)
    bits[:1400, 17] = 1
    sums = WHOLE.add(WHOLE.new_sums(), np.packbits(bits, axis=1))
    found = check_votes(WHOLE, sums)
    assert found.suspicious(1e-6)
    assert found.findings[0].startswith("unit 17 was kept by")


def test_the_pair_test_finds_a_few_copies_among_many_reports() -> None:
    mechanism = ThresholdResponse(8.0, 448, block_units=448, threshold=253)
    rows = honest(mechanism, populations(448, 500)[0], 0)  # honest and all of one opinion
    assert not check_pairs(mechanism, rows).suspicious(ALPHA)
    rows[300] = rows[20]
    found = check_pairs(mechanism, mechanism.format.split(rows))
    assert found.suspicious(1e-6)
    assert found.findings == ("reports 20 and 300 agree in 448 of 448 bits",)


def test_the_pair_test_finds_reused_randomness() -> None:
    # The same draw for clients that differ in a tenth of their units: nearly the same report.
    mechanism = ThresholdResponse(8.0, 448, block_units=448, threshold=253)
    mask = np.arange(448) % 2 == 0
    masks = mask ^ (np.random.default_rng(0).random((40, 448)) < 0.05)
    rows = mechanism.randomize_rows(masks, [SimulationRandomness(7, "same") for _ in range(40)])
    assert check_pairs(mechanism, rows).suspicious(1e-6)


def test_the_weight_law_is_that_of_enumeration() -> None:
    mechanism = ThresholdResponse(3.0, 6, block_units=6, threshold=4)
    for mask in ([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0] * 6):
        law = np.zeros(7)
        for pattern in product([0, 1], repeat=6):
            agreements = sum(a == b for a, b in zip(pattern, mask, strict=True))
            law[sum(pattern)] += float(mechanism.block_probability(agreements))
        assert weight_law(mechanism, sum(mask)) == pytest.approx(law, abs=1e-12)
    with pytest.raises(PrivacyError, match="kept_units"):
        weight_law(mechanism, 7)


def test_the_weight_test_finds_liars_that_send_exactly_as_many_ones_as_masks_have() -> None:
    masks = np.random.default_rng(0).random((3000, 60)).argsort(axis=1) < 30
    rows = honest(WHOLE, masks, 0)
    assert not check_weights(WHOLE, rows, 30).suspicious(ALPHA)
    rows[:300] = np.packbits(masks[:300], axis=1)  # sent as they are
    found = check_weights(WHOLE, rows, 30)
    assert found.suspicious(1e-4)
    assert "reports set 30 bits" in found.findings[0]


def test_the_block_test_finds_clients_that_choose_their_block() -> None:
    rows = honest(BLOCKS, populations(24, 3000)[2], 0)
    assert not check_blocks(BLOCKS, BLOCKS.add(BLOCKS.new_sums(), rows)).suspicious(ALPHA)
    rows[:200, 0] = 5
    found = check_blocks(BLOCKS, BLOCKS.add(BLOCKS.new_sums(), rows))
    assert found.suspicious(1e-4)
    assert found.findings[0].startswith("block 5 has")


def test_a_test_that_cannot_say_anything_says_so() -> None:
    rows = honest(BLOCKS, populations(24, 50)[2], 0)
    by_name = {test.name: test for test in check_reports(BLOCKS, rows, assigned=True)}
    assert not by_name["pairs of reports"].applies
    assert not by_name["report weights"].applies
    assert "blocks were assigned" in by_name["block counts"].sentence()
    assert "does not apply" in by_name["block counts"].sentence()
    assert not by_name["block counts"].suspicious(1.0)
    whole = {t.name: t for t in check_reports(WHOLE, honest(WHOLE, populations(60, 50)[2], 0),
                                              assigned=False, kept_units=30)}  # fmt: skip
    assert not whole["pattern frequencies"].applies
    assert whole["report weights"].applies
    assert "nothing that honest clients could not send" in whole["votes"].sentence()
