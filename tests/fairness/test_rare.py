"""Where pruning changed few rows, what is said of them still holds: counted out, not drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedprune.fairness import gap_test, summarize, wilson
from fedprune.fairness.changes import Change, difference_change
from fedprune.fairness.rare import Share, Shares, net_change
from fedprune.fairness.sample import draw_sample
from fedprune.randomness import SimulationRandomness

NAMES = ["many", "few"]
MANY = 2000  # rows of the group in which nothing changes
OTHER = np.array([[[[100, 0], [0, 900]], [[200, 0], [0, 800]]]])


def with_losses(lost: int, rows: int, everywhere: int = 0) -> np.ndarray:
    """One client; of `rows` rows of the second group `lost` are lost, of the first `everywhere`."""
    tables = np.zeros((1, 2, 2, 2), dtype=np.int64)
    tables[0, 0] = [[200, 0], [everywhere, MANY - 200 - everywhere]]
    tables[0, 1] = [[0, 0], [lost, rows - lost]]
    return tables


def summary(tables: np.ndarray):
    return summarize(tables, NAMES, SimulationRandomness(0), other=OTHER, resamples=500)


@pytest.mark.parametrize("rows", [50, 100, 185])
def test_a_gap_that_grew_is_let_through_at_most_at_the_level_however_few_rows_changed(rows) -> None:
    passes = [
        gap_test(
            with_losses(lost, rows), NAMES, SimulationRandomness(0), tolerance=3.75 / rows,
            resamples=500,
        ).p_value <= 0.05
        for lost in range(16)
    ]  # fmt: skip
    chances = stats.binom.pmf(np.arange(16), rows, 3.75 / rows)
    assert chances @ passes <= 0.05


@pytest.mark.parametrize("mean", [1.0, 2.5, 3.75, 6.0])
def test_intervals_cover_what_few_rows_hardly_show(mean: float) -> None:
    rows, lost = 100, np.arange(25)
    found = [summary(with_losses(count, rows)) for count in lost]
    chances, share = stats.binom.pmf(lost, rows, mean / rows), rows / (rows + MANY)
    changes = [one.pair.interval.low <= mean / rows <= one.pair.interval.high for one in found]
    excess = mean / rows * (1 - share)
    bands = [one.groups[1].excess_simultaneous for one in found]
    single = [one.groups[1].excess_interval for one in found]
    assert chances @ changes >= 0.94
    assert chances @ [one.low <= excess <= one.high for one in single] >= 0.94
    assert chances @ [one.low <= excess <= one.high for one in bands] >= 0.94


def test_one_lucky_row_less_is_no_proof_that_a_group_fares_otherwise() -> None:
    found = summary(with_losses(1, 100, everywhere=75))  # 3.75 of 100 were to be expected
    assert stats.poisson.cdf(1, 3.75) > 0.1
    assert found.groups[1].p_holm > 0.05


def test_clients_that_are_all_alike_do_not_make_figures_certain() -> None:
    tables = np.repeat(with_losses(1, 10, everywhere=40), 40, axis=0)
    found = summary(tables)
    assert found.resampled == "whole clients"
    for interval in (found.pair.interval, found.groups[1].excess_interval):
        assert interval.high - interval.low > 0.01


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.5, 1.0, 1.96, 3.0]))
def test_the_reach_of_one_share_is_wilsons(count: int, others: int, deviations: float) -> None:
    rows = count + others + 1
    low, high = wilson(count, rows, 1 - 2 * stats.norm.sf(deviations))
    one = Shares((Share(1.0, count, rows),))
    share = count / rows
    assert one.reach(deviations, upward=True) == pytest.approx(high - share, abs=1e-12)
    assert one.reach(deviations, upward=False) == pytest.approx(share - low, abs=1e-12)
    turned = Shares((Share(-1.0, count, rows),))
    assert turned.reach(deviations, upward=True) == pytest.approx(share - low, abs=1e-12)


@given(st.integers(0, 20), st.integers(1, 20), st.floats(0.5, 4), st.booleans())
def test_the_tail_turns_the_reach_round(gained, lost, deviations, upward) -> None:
    cells = np.array([[30, gained], [lost, 50]])
    shares = Shares(net_change(cells, 0.7), noise_variance=2.0)
    distance = shares.reach(deviations, upward=upward)
    assert shares.tail(distance, upward=upward) == pytest.approx(stats.norm.sf(deviations))
    assert shares.tail(0.0, upward=upward) == 1.0


def test_resamples_that_are_all_the_same_have_no_error_whatever_rounding_makes_of_it() -> None:
    draws = np.full(1000, 37 / 137 - 1)
    assert draws.std() > 0  # by rounding
    assert Change(draws[0], draws, 37, 0.0, 2.0, Shares(())).error == 0.0


def losing(hit: np.ndarray, rows: int, lost: int) -> np.ndarray:
    """Clients with so many rows in each of two groups; those hit lose so many of the second."""
    tables = np.zeros((len(hit), 2, 2, 2), dtype=np.int64)
    tables[:, :, 0, 0], tables[:, :, 1, 1] = rows // 10, rows - rows // 10
    tables[hit, 1, 1] = [lost, rows - rows // 10 - lost]
    return tables


def test_clients_that_lose_everything_or_nothing_count_once_each() -> None:
    hit = np.arange(40) % 10 == 0
    sample = draw_sample(losing(hit, 50, 45), 30, 0.95, 4000, SimulationRandomness(0))
    rows, share = 40 * 50, 4 * 45 / (40 * 50)
    alike = share * (1 - share) / (0.9**2 * 0.1 * 0.9 / 40)  # p (1 - p) over the variance
    shares = difference_change(sample, 0, 1).shares.parts
    assert [one.count for one in shares] == [0, 0, 0, 4 * 45]
    for one in shares:
        assert one.rows == rows
        assert one.effective == pytest.approx(alike, rel=0.1)


def test_what_clients_have_in_common_does_not_widen_a_difference_of_groups() -> None:
    """Groups that every client changes alike differ by little, however much the clients differ."""
    generator = np.random.default_rng(3)
    tables = np.zeros((60, 2, 2, 2), dtype=np.int64)
    lost = generator.integers(0, 40, 60)
    tables[:, :, 1, 0] = lost[:, None]
    tables[:, :, 1, 1] = 50 - tables[:, :, 1, 0]
    change = summary(tables)
    wide = change.accuracy.change_interval
    assert wide.high - wide.low > 0.1  # clients differ
    rows = 2 * 60 * 50
    independent = np.sqrt(2 * 0.4 * 0.6 / (rows / 2))
    close = change.pair.interval
    assert close.high - close.low < 1.2 * 2 * 1.96 * independent


def test_changes_of_few_clients_are_within_the_intervals_and_pass_no_test_too_often() -> None:
    generator, truth = np.random.default_rng(2), 0.1 * 15 / 50
    inside, passed = [], []
    for trial in range(150):
        tables = losing(generator.random(40) < 0.1, 50, 15)
        interval = summary(tables).pair.interval
        inside.append(interval.low <= truth <= interval.high)
        stream = SimulationRandomness(0, "trial", trial)
        test = gap_test(
            tables, NAMES, stream, tolerance=truth, pair=(0, 1), confidence=0.95, resamples=300
        )
        passed.append(test.p_value <= 0.05)
    assert np.mean(inside) >= 0.92
    assert np.mean(passed) <= 0.09


def test_what_is_assumed_where_nothing_changed_is_said() -> None:
    words = "as alike in changing as they are in being right"
    assert words in summary(unchanged(50, 200, [150, 160])).method
    assert words not in summary(losing(np.full(40, True), 50, 5)[:, [1, 1]]).method


def test_all_groups_together_stand_on_as_many_clients_as_each_where_each_is_spread_alike() -> None:
    tables = np.full((40, 2, 2, 2), 1)
    tables[:2] = 300  # two clients have nearly all rows
    found = draw_sample(tables, 30, 0.95, 100, SimulationRandomness(0))
    assert found.clients == 40
    assert found.effective.tolist() == [2, 2]
    assert found.independent_overall() == 2


def unchanged(clients: int, rows: int, right: list[int]) -> np.ndarray:
    """Groups of so many rows a client, of which so many are right, dense and pruned alike."""
    tables = np.zeros((clients, 2, 2, 2), dtype=np.int64)
    tables[:, :, 1, 1] = np.resize(right, (clients, 1))
    tables[:, :, 0, 0] = rows - tables[:, :, 1, 1]
    return tables


def test_many_rows_of_which_none_changed_leave_little_room_for_a_change() -> None:
    found = summary(unchanged(50, 200, [150, 160, 170, 180, 155]))
    assert found.resampled == "whole clients"
    assert found.pair.interval.low == -found.pair.interval.high
    rows = 50 * 200  # a client's rows are more alike than independent ones, but no unit as a whole
    assert 2 * 3 / rows < found.pair.interval.high < 0.01
    spread = found.accuracy.change_interval
    assert 3 / (2 * rows) < spread.high < 0.01


def test_clients_whose_rows_are_all_alike_count_once_each() -> None:
    whole = summary(unchanged(50, 200, [0, 200])).pair.interval.high  # right in all rows or none
    assert whole == pytest.approx(2 * (1 - 0.025 ** (1 / 50)), rel=1e-9)


def test_where_no_row_changed_the_truth_is_inside_though_changes_come_in_clusters() -> None:
    clients, rows, alike, mean = 40, 50, 1 / 0.1 - 1, 0.002
    generator = np.random.default_rng(5)
    inside = []
    for _ in range(60):
        right = generator.binomial(rows, generator.beta(0.85 * alike, 0.15 * alike, clients))
        lost = generator.binomial(rows, generator.beta(mean * alike, alike, clients))
        tables = unchanged(clients, rows, right.tolist())
        moved = np.minimum(lost, tables[:, 1, 1, 1])
        tables[:, 1, 1, 0] += moved
        tables[:, 1, 1, 1] -= moved
        interval = summary(tables).pair.interval
        inside.append(interval.low <= mean <= interval.high)
    assert np.mean(inside) >= 0.93
