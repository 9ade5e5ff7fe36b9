"""Bands that hold for all groups at once, and the gap that chance alone makes."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.fairness import summarize
from fedprune.randomness import SimulationRandomness

NAMES = [f"group {code}" for code in range(8)]


def equal_groups(seed: int, clients: int = 60, rows: int = 12) -> np.ndarray:
    cells = np.array([0.1, 0.05, 0.1, 0.75])
    drawn = np.random.default_rng(seed).multinomial(rows, cells, size=(clients, 8))
    return drawn.reshape(clients, 8, 2, 2)


def test_equal_groups_show_the_gap_that_chance_makes() -> None:
    shown, expected = [], []
    for seed in range(30):
        found = summarize(equal_groups(seed), NAMES, SimulationRandomness(seed), resamples=300)
        shown.append(found.gap_pruned)
        expected.append(found.gap_pruned_by_chance)
        assert found.gap_pruned_interval.low == 0
        assert found.gap_pruned_interval.high > found.gap_pruned
    assert np.mean(expected) == pytest.approx(np.mean(shown), rel=0.15)


def test_bands_for_all_groups_hold_together_and_single_intervals_do_not() -> None:
    together = alone = 0
    for seed in range(150):
        found = summarize(equal_groups(seed), NAMES, SimulationRandomness(seed), resamples=300)
        pairs = [(group.excess_simultaneous, group.excess_interval) for group in found.groups]
        together += all(band.low <= 0 <= band.high for band, _ in pairs)
        alone += all(single.low <= 0 <= single.high for _, single in pairs)
    assert together >= 150 * 0.9
    assert alone < 150 * 0.85


def test_a_gap_that_is_there_has_an_interval_above_zero() -> None:
    tables = equal_groups(1)
    tables[:, 3, 1, 1], tables[:, 3, 1, 0] = 0, 12
    found = summarize(tables, NAMES, SimulationRandomness(0))
    assert found.gap_pruned_interval.low > 0.5
    assert found.gap_pruned_interval.low < found.gap_pruned < found.gap_pruned_interval.high
    assert found.gap_dense_interval.low < found.gap_pruned_interval.low


@pytest.mark.parametrize("clients", [4, 60])
def test_a_group_that_never_varies_is_not_certain(clients: int) -> None:
    tables = np.zeros((clients, 2, 2, 2), dtype=int)
    tables[:, 0, 1, 1], tables[:, 1, 0, 0] = 10, 10  # one always right, the other never
    found = summarize(tables, ["a", "b"], SimulationRandomness(1), resamples=300)
    assert found.gap_pruned == 1
    assert found.gap_pruned_interval.high == 1
    assert 0.5 < found.gap_pruned_interval.low < 0.97
    assert found.gap_pruned_by_chance > 0.01


@pytest.mark.parametrize("share", [0.98, 1.0])
def test_intervals_of_gaps_cover_them_near_the_end_of_the_scale(share: float) -> None:
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        right = random.random((3, 60)) < np.array([share, share, share - 0.02])[:, None]
        tables = np.zeros((1, 3, 2, 2), dtype=int)
        for group in range(3):
            tables[0, group, 1, 1], tables[0, group, 0, 0] = (
                right[group].sum(),
                (~right[group]).sum(),
            )
        found = summarize(tables, ["a", "b", "c"], SimulationRandomness(seed), resamples=200)
        covered += found.gap_pruned_interval.low <= 0.02 <= found.gap_pruned_interval.high
    assert covered >= 188
