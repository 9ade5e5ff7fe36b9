"""Outcome tables of binary tasks against plain tables, by hand and against fairlearn."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness import (
    GroupTable,
    OutcomeTable,
    TableNoise,
    client_outcome_tables,
    client_tables,
    rate_tables,
    stack_outcomes,
    summarize,
    summarize_outcomes,
)
from fedprune.randomness import SimulationRandomness

NAMES = ["a", "b", "c"]


def draw_rows(seed: int, count: int = 3000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    groups = generator.choice(3, size=count, p=[0.5, 0.3, 0.2])
    labels = (generator.random(count) < np.array([0.3, 0.5, 0.2])[groups]).astype(int)
    flip = generator.random((2, count)) < np.array([[0.1, 0.15, 0.2], [0.12, 0.2, 0.35]])[:, groups]
    return {
        "labels": labels,
        "dense": np.where(flip[0], 1 - labels, labels),
        "pruned": np.where(flip[1], 1 - labels, labels),
        "groups": groups,
    }


def tables_of(rows: dict[str, np.ndarray], clients: int) -> np.ndarray:
    ids = np.arange(len(rows["labels"])) % clients
    return client_outcome_tables(**rows, client_ids=ids, num_clients=clients, num_groups=3)


def test_outcomes_hold_the_plain_table_of_the_same_rows() -> None:
    rows = draw_rows(0)
    right = [rows[model] == rows["labels"] for model in ("dense", "pruned")]
    table = OutcomeTable.from_predictions(*rows.values())
    assert table.group_table() == GroupTable.from_correct(*right, rows["groups"])
    ids = np.arange(3000) % 7
    plain = client_tables(*right, rows["groups"], ids, 7, 3)
    assert np.array_equal(rate_tables(tables_of(rows, 7), "accuracy"), plain)


def test_every_record_is_counted_in_exactly_one_cell() -> None:
    for cell in itertools.product(range(2), repeat=4):
        group, label, dense, pruned = ([value] for value in cell)
        counts = OutcomeTable.from_predictions(label, dense, pruned, group, 2).counts
        assert counts.sum() == 1
        assert counts[cell] == 1


def test_outcome_tables_add_up() -> None:
    rows = draw_rows(1)
    cut = {name: (values[:800], values[800:]) for name, values in rows.items()}
    one, two = (
        OutcomeTable.from_predictions(*(halves[half] for halves in cut.values()), 3)
        for half in (0, 1)
    )
    whole = OutcomeTable.from_predictions(*rows.values())
    assert one + two == whole
    assert whole.rows == 3000
    assert hash(one + two) == hash(whole)
    assert np.array_equal(stack_outcomes([one, two]).sum(axis=0), whole.counts)


def test_rates_are_those_counted_on_rows_by_hand() -> None:
    rows = draw_rows(2)
    found = summarize_outcomes(tables_of(rows, 40), NAMES, SimulationRandomness(0), resamples=200)
    rates: dict[str, list[float]] = {"selection": [], "true": [], "false": []}
    for group in range(3):
        inside = [i for i in range(3000) if rows["groups"][i] == group]
        for name, label in (("selection", None), ("true", 1), ("false", 0)):
            asked = [i for i in inside if label is None or rows["labels"][i] == label]
            rates[name].append(sum(int(rows["pruned"][i]) for i in asked) / len(asked))
    for name, change in (
        ("selection", found.demographic_parity),
        ("true", found.true_positive),
        ("false", found.false_positive),
    ):
        assert [group.pruned for group in change.groups] == pytest.approx(rates[name])
        assert change.difference_pruned == pytest.approx(max(rates[name]) - min(rates[name]))
    odds = max(max(rates[name]) - min(rates[name]) for name in ("true", "false"))
    assert found.equalized_odds.difference_pruned == pytest.approx(odds)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_fairlearn_finds_the_same_on_the_same_rows(seed: int) -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is not installed")
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rows = draw_rows(seed)
    tables = tables_of(rows, 35)
    found = summarize_outcomes(tables, NAMES, SimulationRandomness(0), resamples=100)
    plain = summarize(rate_tables(tables, "accuracy"), NAMES, SimulationRandomness(0))
    for model in ("dense", "pruned"):
        asked = (rows["labels"], rows[model])
        by_group = {"sensitive_features": rows["groups"]}
        parity = metrics.demographic_parity_difference(*asked, **by_group)
        odds = metrics.equalized_odds_difference(*asked, **by_group)
        assert getattr(found.demographic_parity, f"difference_{model}") == parity
        assert getattr(found.equalized_odds, f"difference_{model}") == odds
        frame = metrics.MetricFrame(
            metrics={
                "accuracy": sklearn.accuracy_score,
                "selection": metrics.selection_rate,
                "true": metrics.true_positive_rate,
                "false": metrics.false_positive_rate,
            },
            y_true=asked[0],
            y_pred=asked[1],
            **by_group,
        )
        ours = {
            "accuracy": [getattr(group, f"accuracy_{model}") for group in plain.groups],
            "selection": [getattr(group, model) for group in found.demographic_parity.groups],
            "true": [getattr(group, model) for group in found.true_positive.groups],
            "false": [getattr(group, model) for group in found.false_positive.groups],
        }
        for name, values in ours.items():
            assert values == frame.by_group[name].tolist()
        assert getattr(plain, f"gap_{model}") == frame.difference()["accuracy"]
        assert plain.worst_group_pruned.accuracy == plain.groups[2].accuracy_pruned


def test_the_rate_to_follow_is_chosen_on_other_rows() -> None:
    here, elsewhere = draw_rows(6), draw_rows(7)
    swapped = dict(elsewhere, labels=1 - elsewhere["labels"])
    for other in (elsewhere, swapped):
        found = summarize_outcomes(
            tables_of(here, 40),
            NAMES,
            SimulationRandomness(0),
            other=tables_of(other, 40),
            other_name="validation rows",
            resamples=100,
        )
        tables = tables_of(other, 1)[0]
        spans = {}
        for rate in ("true positive", "false positive"):
            cells = rate_tables(tables, rate)
            shares = cells[:, :, 1].sum(axis=1) / cells.sum(axis=(1, 2))
            spans[rate] = np.ptp(shares)
        assert found.equalized_odds.followed_rate == max(spans, key=spans.get)
        assert found.equalized_odds.pair.chosen_on == "validation rows"


def test_intervals_of_parity_cover_as_often_as_they_say_with_noise() -> None:
    noise, trials, covered = TableNoise("discrete-laplace", 1.0), 100, 0
    cells = np.zeros((2, 2, 2, 2))
    for group, (ones, wrong) in enumerate(((0.4, 0.1), (0.25, 0.25))):
        for label, dense, pruned in itertools.product(range(2), repeat=3):
            chance = ones if label else 1 - ones
            chance *= 0.1 if dense != label else 0.9
            cells[group, label, dense, pruned] = chance * (wrong if pruned != dense else 1 - wrong)
    shares = [rate_tables_float(cells, model) for model in (0, 1)]
    truth = np.subtract(*shares[1]) - np.subtract(*shares[0])
    generator = np.random.default_rng(0)
    other = np.rint(cells * 1e6).astype(int)
    for trial in range(trials):
        drawn = generator.multinomial(40, cells.reshape(2, 8), size=(50, 2)).reshape(50, 2, 2, 2, 2)
        found = summarize_outcomes(
            drawn + noise.sample(drawn.shape, generator),
            ["a", "b"],
            SimulationRandomness(trial),
            other=other,
            resamples=100,
            noise=noise,
        )
        pair = found.demographic_parity.pair
        sign = 1 if pair.best == "a" else -1
        covered += pair.interval.low <= sign * truth <= pair.interval.high
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.95)
    assert low <= covered <= high


def rate_tables_float(cells: np.ndarray, model: int) -> np.ndarray:
    ones = cells[:, :, 1, :] if model == 0 else cells[:, :, :, 1]
    return ones.sum(axis=(1, 2))


def test_a_rate_without_enough_rows_is_no_number() -> None:
    rows = draw_rows(8)
    rare = (rows["groups"] == 2) & (rows["labels"] == 1)
    kept = ~rare | (np.cumsum(rare) <= 10)
    cut = {name: values[kept] for name, values in rows.items()}
    found = summarize_outcomes(tables_of(cut, 5), NAMES, SimulationRandomness(0), resamples=100)
    small = found.true_positive.groups[2]
    assert small.too_small
    assert small.pruned is None
    assert not found.false_positive.groups[2].too_small
    stored = found.to_json()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored


@pytest.mark.parametrize("holders", [0, 1])
def test_a_rate_of_fewer_than_two_groups_is_missing_and_the_others_are_reported(holders) -> None:
    tables = ONES.copy()
    tables[:, holders:, 1] = 0  # only so many groups have rows of label 1
    found = summarize_outcomes(tables, NAMES, SimulationRandomness(0), resamples=100)
    whole = summarize(
        rate_tables(tables, "selection"), NAMES, SimulationRandomness(0), resamples=100
    )
    assert found.true_positive is None
    assert found.equalized_odds is None
    assert found.demographic_parity.difference_pruned == whole.gap_pruned
    assert found.false_positive.difference_pruned is not None
    assert found.to_json()["true_positive"] is None


def test_a_group_without_positives_is_left_out_where_fairlearn_says_zero() -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is not installed")
    rows = draw_rows(9)
    kept = (rows["groups"] != 2) | (rows["labels"] == 0)
    cut = {name: values[kept] for name, values in rows.items()}
    found = summarize_outcomes(tables_of(cut, 5), NAMES, SimulationRandomness(0), resamples=100)
    rates = [group.pruned for group in found.true_positive.groups]
    theirs = metrics.equalized_odds_difference(
        cut["labels"], cut["pruned"], sensitive_features=cut["groups"]
    )
    assert rates[2] is None
    assert found.true_positive.difference_pruned == pytest.approx(abs(rates[0] - rates[1]))
    assert theirs == pytest.approx(max(rates[:2]))  # against the 0 of the group without positives


def test_models_of_two_classes_are_evaluated_and_others_refused() -> None:
    torch.manual_seed(0)
    dense, pruned = nn.Linear(4, 2), nn.Linear(4, 2)
    inputs, labels, groups = torch.randn(90, 4), torch.arange(90) % 2, torch.arange(90) % 3
    table = OutcomeTable.of(dense, pruned, inputs, labels, groups, batch_size=7)
    expected = OutcomeTable.from_predictions(
        labels, dense(inputs).argmax(1), pruned(inputs).argmax(1), groups
    )
    assert table == expected
    assert table.group_table() == GroupTable.of(dense, pruned, inputs, labels, groups)
    with pytest.raises(FairnessError, match="tell 2 classes apart, got 3"):
        OutcomeTable.of(dense, nn.Linear(4, 3), inputs, labels, groups)


ONES = np.ones((4, 3, 2, 2, 2), dtype=np.int64) * 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OutcomeTable.from_predictions([2], [0], [0], [0]), "binary task"),
        (lambda: OutcomeTable.from_predictions([0], [0], [-1], [0]), "binary task"),
        (lambda: OutcomeTable.from_predictions([0.0], [0], [0], [0]), "whole-number codes"),
        (lambda: OutcomeTable.from_predictions([], [], [], []), "zero examples"),
        (lambda: OutcomeTable.from_predictions([0, 1], [0], [0, 1], [0, 0]), "dense must have"),
        (lambda: OutcomeTable(np.ones((2, 2, 2))), "num_groups, 2, 2, 2"),
        (lambda: OutcomeTable(np.full((2, 2, 2, 2), np.nan)), "whole numbers"),
        (lambda: OutcomeTable(ONES[0]) + OutcomeTable(ONES[0, :2]), "cannot be added"),
        (
            lambda: stack_outcomes([OutcomeTable(ONES[0]), ONES[0]]),
            "of the type OutcomeTable",
        ),
        (lambda: rate_tables(ONES, "recall"), "one of accuracy"),
        (
            lambda: summarize_outcomes(ONES, ["a"], SimulationRandomness(0)),
            "names must name 3 groups, got 1",
        ),
        (
            lambda: summarize_outcomes(ONES[:, :1], ["a"], SimulationRandomness(0)),
            "rows of at least two groups, got only 'a'",
        ),
    ],
)
def test_outcomes_without_an_answer_are_refused(call, message) -> None:
    with pytest.raises(FairnessError, match=message):
        call()
