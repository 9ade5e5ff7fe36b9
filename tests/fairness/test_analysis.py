"""Gaps, excess losses, the followed pair and how far their intervals can be trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness import GroupTable, choose_pair, clopper_pearson, summarize, wilson
from fedprune.randomness import SimulationRandomness

NAMES = ["a", "b", "c"]


def draw_tables(
    seed: int,
    clients: int,
    rows: int,
    dense: tuple[float, ...],
    lost: tuple[float, ...],
    spread: float = 0.0,
) -> np.ndarray:
    """Clients [clients, groups, 2, 2] whose rows lose `lost` of what dense got right.

    `spread` is the standard deviation, over clients, of the chance that a right answer is lost.
    """
    generator = np.random.default_rng(seed)
    shifts = spread * generator.choice([-1, 1], size=clients)
    tables = np.zeros((clients, len(dense), 2, 2), dtype=np.int64)
    for group, (right, loss) in enumerate(zip(dense, lost, strict=True)):
        chances = [
            [[0.9 * (1 - right), 0.1 * (1 - right)], [right * p, right * (1 - p)]]
            for p in loss + shifts
        ]
        cells = np.asarray(chances).reshape(clients, 4)
        tables[:, group] = generator.multinomial(rows, cells).reshape(clients, 2, 2)
    return tables


def analyse(tables, **options):
    return summarize(tables, NAMES[: tables.shape[1]], SimulationRandomness(5), **options)


def test_every_figure_can_be_recomputed_from_the_counts() -> None:
    tables = draw_tables(0, 40, 25, (0.9, 0.8, 0.7), (0.05, 0.1, 0.2))
    result = analyse(tables)
    total = tables.sum(0)
    dense = total[:, 1].sum(1) / total.sum(axis=(1, 2))
    pruned = total[:, :, 1].sum(1) / total.sum(axis=(1, 2))
    overall = (total[:, 1].sum() - total[:, :, 1].sum()) / total.sum()
    assert [g.accuracy_dense for g in result.groups] == dense.tolist()
    assert [g.accuracy_pruned for g in result.groups] == pruned.tolist()
    assert result.gap_dense == pytest.approx(dense.max() - dense.min())
    assert result.gap_pruned == pytest.approx(pruned.max() - pruned.min())
    assert result.gap_change == pytest.approx(result.gap_pruned - result.gap_dense)
    assert result.worst_group_pruned.name == NAMES[pruned.argmin()]
    for group, own in zip(result.groups, dense - pruned, strict=True):
        assert group.excess_loss == pytest.approx(own - overall)
        assert group.excess_interval.low < group.excess_loss < group.excess_interval.high


def test_excess_losses_weighted_by_rows_sum_to_zero() -> None:
    tables = draw_tables(1, 33, 17, (0.9, 0.6, 0.7), (0.05, 0.3, 0.2))
    groups = analyse(tables).groups
    assert sum(g.rows * g.excess_loss for g in groups) == pytest.approx(0, abs=1e-9)


def test_the_pair_comes_from_the_other_rows_and_its_change_from_these() -> None:
    tables = draw_tables(2, 40, 30, (0.9, 0.8, 0.7), (0.05, 0.1, 0.2))
    other = draw_tables(3, 40, 30, (0.6, 0.9, 0.8), (0.05, 0.1, 0.2))
    result = analyse(tables, other=other, other_name="validation rows")
    assert choose_pair(other) == (1, 0)
    assert (result.pair.best, result.pair.worst) == ("b", "a")
    assert result.pair.chosen_on == "validation rows"
    dense = [g.accuracy_dense for g in result.groups]
    pruned = [g.accuracy_pruned for g in result.groups]
    change = (pruned[1] - pruned[0]) - (dense[1] - dense[0])
    assert result.pair.change == pytest.approx(change)
    assert result.pair.interval.low < change < result.pair.interval.high
    assert "validation rows" in result.method


def test_a_pair_chosen_on_the_same_rows_is_said_to_be() -> None:
    result = analyse(draw_tables(2, 40, 30, (0.9, 0.8, 0.7), (0.05, 0.1, 0.2)))
    assert "same rows" in result.pair.chosen_on
    assert "same rows" in result.method


def test_ties_in_the_choice_of_the_pair_go_to_the_lower_code() -> None:
    level = np.full((4, 2, 2), 10)
    assert choose_pair(level) == (0, 1)
    assert choose_pair(level, among=[2, 3]) == (2, 3)


def test_a_tiny_group_is_not_chosen_by_luck() -> None:
    counts = np.zeros((3, 2, 2), dtype=np.int64)
    counts[0, 1, 1], counts[0, 1, 0] = 950, 50
    counts[1, 1, 1], counts[1, 1, 0] = 500, 500
    counts[2, 1, 0] = 2  # two rows, both wrong
    assert choose_pair(counts) == (0, 1)


def test_thirty_clients_are_resampled_as_wholes_and_fewer_are_not() -> None:
    many = analyse(draw_tables(4, 30, 10, (0.9, 0.8), (0.1, 0.1)))
    few = analyse(draw_tables(4, 29, 10, (0.9, 0.8), (0.1, 0.1)))
    assert many.resampled == "whole clients"
    assert many.conditional_on == ""
    assert all(g.mcnemar_p is None for g in many.groups)
    assert few.resampled == "records within each client"
    assert "29 clients" in few.conditional_on
    assert "these 29 clients only" in few.method
    assert all(g.mcnemar_p is not None for g in few.groups)


def test_clients_without_rows_do_not_count_towards_the_thirty() -> None:
    tables = draw_tables(4, 40, 10, (0.9, 0.8), (0.1, 0.1))
    tables[20:] = 0
    result = analyse(tables)
    assert result.clients.clients == 20
    assert result.resampled == "records within each client"


def test_a_group_on_few_clients_is_resampled_by_records() -> None:
    tables = draw_tables(5, 50, 20, (0.9, 0.8), (0.1, 0.1))
    tables[6:, 1] = 0
    result = analyse(tables)
    assert result.resampled == "records within each client"
    assert "on 6 clients" in result.method


def test_a_small_group_is_named_and_gets_no_figure() -> None:
    tables = draw_tables(6, 40, 20, (0.9, 0.8, 0.1), (0.1, 0.1, 0.1))
    tables[:, 2] = 0
    tables[0, 2, 0, 0] = 29
    result = analyse(tables)
    small = result.groups[2]
    assert small.too_small
    assert small.accuracy_pruned is None
    assert small.excess_interval is None
    assert result.gap_pruned < 0.5
    assert result.worst_group_pruned.name != "c"
    tables[0, 2, 0, 0] = 30
    assert analyse(tables).groups[2].accuracy_pruned == 0.0


def test_one_group_large_enough_gives_no_gap_and_says_so() -> None:
    tables = draw_tables(7, 40, 20, (0.9, 0.8), (0.1, 0.1))
    tables[2:, 1] = 0
    tables[:2, 1] = [[1, 1], [1, 1]]
    result = analyse(tables)
    assert result.gap_dense is None
    assert result.gap_change is None
    assert result.pair is None
    assert "no gap to report" in result.method
    assert result.to_json()["gap_change_interval"] is None


def test_the_same_stream_gives_the_same_intervals_and_another_others() -> None:
    tables = draw_tables(8, 40, 20, (0.9, 0.8), (0.1, 0.2))
    one, again = analyse(tables), analyse(tables)
    other = summarize(tables, NAMES[:2], SimulationRandomness(6))
    assert one == again
    assert one.pair.interval != other.pair.interval


def test_equal_models_change_nothing_and_the_interval_says_how_surely() -> None:
    tables = np.zeros((3, 2, 2, 2), dtype=np.int64)
    tables[:, :, 1, 1], tables[:, :, 0, 0] = 80, 20
    result = analyse(tables)
    assert result.gap_change == 0
    assert result.pair.interval.low == -result.pair.interval.high
    limit = clopper_pearson(0, 300).high
    assert result.pair.interval.high == pytest.approx(2 * limit)
    assert result.groups[0].excess_interval.high == pytest.approx(limit)
    assert result.groups[0].p_holm == 1.0


def test_a_group_that_pruning_destroys_stands_out() -> None:
    tables = draw_tables(9, 5, 100, (0.95, 0.95, 0.9), (0.02, 0.02, 0.0))
    tables[:, 2, 1, 0] += tables[:, 2, 1, 1]
    tables[:, 2, :, 1] = 0
    result = analyse(tables)
    assert result.worst_group_pruned.name == "c"
    assert result.groups[2].excess_interval.low > 0.4
    assert result.groups[2].p_holm < 1e-6
    assert result.groups[2].mcnemar_p_holm < 1e-6


def test_accuracy_intervals_are_wilsons_and_wider_where_clients_differ() -> None:
    tables = draw_tables(10, 60, 50, (0.8, 0.8), (0.2, 0.2), spread=0.19)
    clustered = analyse(tables).groups[0]
    pooled = analyse(tables.sum(0, keepdims=True)).groups[0]
    plain = wilson(tables[:, 0, :, 1].sum(), tables[:, 0].sum())
    assert pooled.interval_pruned == plain
    assert clustered.interval_pruned.low < plain.low
    assert clustered.interval_pruned.high > plain.high


def test_the_spread_over_clients_is_that_of_their_accuracies() -> None:
    tables = draw_tables(11, 40, 12, (0.9, 0.7), (0.1, 0.3))
    spread = analyse(tables).clients
    by_client = tables.sum(1)
    accuracy = by_client[:, :, 1].sum(1) / 24
    assert spread.pruned.variance == pytest.approx(np.var(accuracy))
    assert spread.pruned.worst == pytest.approx(accuracy.min())
    assert spread.pruned.bottom_tenth == pytest.approx(np.sort(accuracy)[:4].mean())
    overall = accuracy.mean()
    assert spread.chance_variance_pruned == pytest.approx(overall * (1 - overall) / 24)


def test_the_json_form_has_the_documented_keys_and_survives_json() -> None:
    result = analyse(draw_tables(12, 40, 20, (0.9, 0.8, 0.7), (0.1, 0.2, 0.1))).to_json()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {
        "group",
        "gap_dense",
        "gap_pruned",
        "gap_change",
        "gap_change_interval",
        "worst_group",
        "pair",
        "method",
        "groups",
    } <= set(result)
    assert set(result["worst_group"]) == {"dense", "pruned"}
    assert {"name", "rows", "accuracy_dense", "interval_pruned", "p_holm", "too_small"} <= set(
        result["groups"][0]
    )


@pytest.mark.parametrize("setting", ["whole clients", "records within each client"])
def test_intervals_cover_the_truth_as_often_as_they_say(setting: str) -> None:
    dense, lost, spread, trials = (0.9, 0.7), (0.05, 0.2), 0.04, 400
    if setting == "whole clients":
        clients, rows = 40, 15
    else:
        clients, rows, spread = 6, 60, 0.0
    kept = [0.1 * (1 - right) + right * (1 - p) for right, p in zip(dense, lost, strict=True)]
    truth = (kept[0] - kept[1]) - (dense[0] - dense[1])
    loss = [right - now for right, now in zip(dense, kept, strict=True)]
    excess = loss[1] - (loss[0] + loss[1]) / 2
    other = draw_tables(999, 40, 100, dense, lost)
    covered = np.zeros(2)
    for trial in range(trials):
        tables = draw_tables(trial, clients, rows, dense, lost, spread)
        rng = SimulationRandomness(trial)
        result = summarize(tables, NAMES[:2], rng, other=other, resamples=600)
        assert result.resampled == setting
        psi = result.groups[1].excess_interval
        covered += [
            result.pair.interval.low <= truth <= result.pair.interval.high,
            psi.low <= excess <= psi.high,
        ]
    # Two-sided 99.9 % limits of 400 fair trials at 95 %.
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.95)
    assert np.all((covered >= low) & (covered <= high)), covered / trials


def test_p_values_reject_a_true_hypothesis_no_more_often_than_the_level() -> None:
    rejected = 0
    for trial in range(300):
        # Equal net losses: right * lost - 0.1 * (1 - right) is 0.08 in every group.
        tables = draw_tables(trial, 35, 15, (0.9, 0.8, 0.7), (0.1, 0.125, 0.11 / 0.7), 0.03)
        result = summarize(tables, NAMES, SimulationRandomness(trial), resamples=300)
        rejected += min(g.p_holm for g in result.groups) < 0.05
    assert rejected <= stats.binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": np.zeros((4, 2, 2, 2))}, "zero examples"),
        ({"tables": np.ones((4, 1, 2, 2)), "names": ["all"]}, "at least two groups, got only"),
        ({"names": ["a", "a"]}, "names of groups must differ"),
        ({"names": ["a"]}, "names must name 2 groups, got 1"),
        ({"confidence": 1.0}, "confidence must be in"),
        ({"resamples": 10}, "resamples must be a whole number of at least 100"),
        ({"min_group": 1}, "min_group must be a whole number of at least 2"),
        ({"other": np.ones((3, 2, 2))}, "other must have 2 groups, as the tables do, got 3"),
        ({"other": np.zeros((2, 2, 2))}, "choosing a pair"),
    ],
)
def test_questions_without_an_answer_are_refused(change, message) -> None:
    options = {"tables": np.full((40, 2, 2, 2), 5), "names": ["a", "b"], **change}
    tables, names = options.pop("tables"), options.pop("names")
    with pytest.raises(FairnessError, match=message):
        summarize(tables, names, SimulationRandomness(0), **options)


def test_a_pair_needs_two_groups_that_exist() -> None:
    table = GroupTable.from_array(np.full((2, 2, 2), 5))
    with pytest.raises(FairnessError, match="at least 2 groups"):
        choose_pair(table, among=[1, 1])
    with pytest.raises(FairnessError, match="from 0 to 1, got 4"):
        choose_pair(table, among=[0, 4])
