"""What summaries say of noisy tables, and how far their intervals can be trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness import TableNoise, summarize
from fedprune.fairness.noisy import decided_groups, effective_holders, resample_noisy_records
from fedprune.randomness import SimulationRandomness

NOISE = TableNoise("discrete-laplace", 1.0)
RIGHT, LOST = np.array([0.95, 0.8]), np.array([0.03, 0.2])


def true_cells() -> np.ndarray:
    wrong = 1 - RIGHT
    return np.stack([0.9 * wrong, 0.1 * wrong, RIGHT * LOST, RIGHT * (1 - LOST)], axis=1)


def draw_tables(generator: np.random.Generator, clients: int, rows: int) -> np.ndarray:
    cells = np.broadcast_to(true_cells(), (clients, 2, 4))
    return generator.multinomial(rows, cells).reshape(clients, 2, 2, 2)


def noisy(tables: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return tables + NOISE.sample(tables.shape, generator)


def true_change() -> float:
    before, after = RIGHT, 0.1 * (1 - RIGHT) + RIGHT * (1 - LOST)
    return float((after[0] - after[1]) - (before[0] - before[1]))


@pytest.mark.parametrize(("clients", "rows"), [(60, 60), (6, 300)])
def test_intervals_of_noisy_tables_cover_as_often_as_they_say(clients: int, rows: int) -> None:
    generator, trials, covered, careless = np.random.default_rng(7), 250, 0, 0
    other = (true_cells() * 1e5).round().astype(int).reshape(1, 2, 2, 2)
    for trial in range(trials):
        tables = noisy(draw_tables(generator, clients, rows), generator)
        stream = SimulationRandomness(trial)
        found = summarize(tables, ["a", "b"], stream, other=other, resamples=200, noise=NOISE)
        low, high = found.pair.interval
        covered += low <= true_change() <= high
        if clients < 30:
            cut = summarize(np.maximum(tables, 0), ["a", "b"], stream, other=other, resamples=200)
            low, high = cut.pair.interval
            careless += low <= true_change() <= high
    # Two-sided 99.9 % limits of fair trials at 95 %.
    fair = stats.binom.ppf([0.0005, 0.9995], trials, 0.95)
    assert fair[0] <= covered <= fair[1]
    assert careless < covered  # forgetting the noise is not valid


def test_noisy_records_vary_by_sampling_and_by_the_noise_of_every_client() -> None:
    generator = np.random.default_rng(1)
    tables = draw_tables(generator, 9, 400)
    totals = resample_noisy_records(tables, 40_000, NOISE, generator).reshape(40_000, -1)
    counts = tables.sum(axis=0).reshape(-1)
    rows = counts.sum()
    expected = counts * (1 - counts / rows) + 9 * NOISE.variance
    assert totals.mean(axis=0) == pytest.approx(counts, abs=5 * np.sqrt(expected.max() / 40_000))
    assert totals.var(axis=0) == pytest.approx(expected, rel=0.05)


def test_noise_widens_intervals_and_tiny_noise_changes_nothing_much() -> None:
    tables = draw_tables(np.random.default_rng(2), 40, 100)
    faint = TableNoise("discrete-laplace", 0.01)
    exact, almost, loud = (
        summarize(counts, ["a", "b"], SimulationRandomness(0), noise=noise)
        for counts, noise in (
            (tables, None),
            (tables, faint),
            (noisy(tables, np.random.default_rng(3)), NOISE),
        )
    )
    assert almost.gap_change == exact.gap_change
    assert tuple(almost.pair.interval) == pytest.approx(tuple(exact.pair.interval), abs=1e-9)
    for one in (0, 1):
        wide, narrow = (found.groups[one].interval_pruned for found in (loud, exact))
        assert wide.high - wide.low > narrow.high - narrow.low


def test_a_group_without_rows_is_not_shown_by_the_luck_of_its_noise() -> None:
    generator, shown = np.random.default_rng(5), 0
    for _ in range(400):
        tables = np.zeros((50, 2, 2, 2), dtype=np.int64)
        tables[:, 0] = 200
        tables[:25, 1, 1, 1] = 1  # 25 rows, under the 30 that are needed
        drawn = tables + NOISE.sample(tables.shape, generator)
        shown += 1 in decided_groups(drawn, 30, 0.95, NOISE)
    assert shown <= stats.binom.ppf(0.9995, 400, 0.05)


def test_groups_are_shown_where_the_noise_is_a_small_part_of_them() -> None:
    tables = np.full((100, 2, 2, 2), 50)
    tables[:, 1] = 1
    deviation = np.sqrt(100 * 4 * NOISE.variance)
    assert 30 + NOISE.times(400).quantile(0.95) < 400  # the second group surely has 30 rows
    assert deviation / 400 < 0.1
    assert decided_groups(tables, 30, 0.95, NOISE).tolist() == [0, 1]
    tables[50:, 1] = 0
    assert deviation / 200 > 0.1
    assert decided_groups(tables, 30, 0.95, NOISE).tolist() == [0]


def test_noise_too_wide_to_tabulate_does_not_hide_what_very_many_clients_show() -> None:
    generator, noise = np.random.default_rng(9), TableNoise("discrete-laplace", 800.0)
    tables = draw_tables(generator, 10_000, 400)
    drawn = tables + noise.sample(tables.shape, generator)
    found = summarize(drawn, ["a", "b"], SimulationRandomness(0), resamples=100, noise=noise)
    assert not any(group.too_small for group in found.groups)
    assert found.pair.interval.low <= true_change() <= found.pair.interval.high


def test_effective_holders_are_clients_of_equal_size() -> None:
    tables = np.zeros((200, 2, 2, 2), dtype=np.int64)
    tables[:40, 0, 1, 1] = 500
    tables[:, 1, 1, 1] = 100
    assert effective_holders(tables).tolist() == [40, 200]
    drawn = tables + NOISE.sample(tables.shape, np.random.default_rng(0))
    found = effective_holders(drawn, NOISE)
    assert found[0] == pytest.approx(40, abs=2)
    assert found[1] == pytest.approx(200, abs=4)


def test_noisy_figures_are_possible_and_nothing_exact_is_claimed() -> None:
    tables = np.zeros((5, 2, 2, 2), dtype=np.int64)
    tables[:, :, 1, 1] = 400
    drawn = noisy(tables, np.random.default_rng(4))
    found = summarize(drawn, ["a", "b"], SimulationRandomness(0), noise=NOISE)
    for group in found.groups:
        assert 0 <= group.interval_pruned.low <= group.accuracy_pruned <= 1
        assert group.interval_pruned.high <= 1
        assert group.mcnemar_p is None
    assert found.clients.dense.worst is None
    assert found.clients.chance_variance_dense is None
    assert "discrete laplace noise of scale 1" in found.method
    assert "McNemar" not in found.method
    assert found.resampled == "records of all clients together"
    stored = found.to_json()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert TableNoise.from_json(stored["noise"]) == NOISE


def test_the_variance_between_clients_is_found_behind_chance_and_noise() -> None:
    generator = np.random.default_rng(6)
    shares = np.repeat([0.6, 0.9], 2000)
    right = generator.binomial(30, shares)
    tables = np.zeros((4000, 1, 2, 2), dtype=np.int64)
    tables[:, 0, 1, 1], tables[:, 0, 0, 0] = right, 30 - right
    tables = np.concatenate([tables, tables], axis=1)  # two groups that fare alike
    tables[:, 1] = 0
    tables[:, 1, 1, 1] = 30
    truth = np.var((shares * 30 + 30) / 60)
    exact = summarize(tables, ["a", "b"], SimulationRandomness(0), resamples=100).clients
    assert exact.between_variance_dense == pytest.approx(truth, rel=0.1)
    assert exact.between_variance_dense < exact.dense.variance
    drawn = noisy(tables, generator)
    hidden = summarize(drawn, ["a", "b"], SimulationRandomness(0), resamples=100, noise=NOISE)
    assert hidden.clients.between_variance_pruned == pytest.approx(truth, rel=0.15)


def test_clients_that_do_not_differ_have_no_variance_between_them() -> None:
    generator, found = np.random.default_rng(8), []
    for _ in range(20):
        tables = draw_tables(generator, 300, 20)
        clients = summarize(tables, ["a", "b"], SimulationRandomness(0), resamples=100).clients
        found.append(clients.between_variance_dense)
        assert clients.dense.variance > 0.002
    assert np.mean(found) < 0.0003


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (np.full((40, 2, 2, 2), -1), "zero examples beyond their noise"),
        (
            np.full((40, 2, 2, 2), 1) * np.array([1, 0, 0])[np.arange(40) % 3][:, None, None, None],
            "noise hides the rows",
        ),
        (np.full((40, 2, 2, 2), 0.5), "whole numbers"),
        (np.full((40, 2, 2, 2), np.nan), "whole numbers"),
    ],
)
def test_noisy_tables_without_an_answer_are_refused(tables, message) -> None:
    with pytest.raises(FairnessError, match=message):
        summarize(tables, ["a", "b"], SimulationRandomness(0), noise=NOISE)


def test_negative_counts_are_refused_where_no_noise_is_said() -> None:
    with pytest.raises(FairnessError, match="at least 0"):
        summarize(np.full((40, 2, 2, 2), -1), ["a", "b"], SimulationRandomness(0))
