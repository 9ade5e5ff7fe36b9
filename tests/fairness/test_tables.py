"""Count tables: what is counted, how tables add up and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torch import nn

from fedprune.errors import FairnessError, ModelError
from fedprune.fairness import GroupTable, client_tables, stack_tables, sum_tables


def make_classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def problem() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(211, 5, generator=generator)
    labels = torch.randint(0, 3, (211,), generator=generator)
    groups = torch.randint(0, 4, (211,), generator=generator)
    return make_classifier(1), make_classifier(2), inputs, labels, groups


def test_a_table_counts_what_a_plain_loop_counts(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    table = GroupTable.of(dense, pruned, inputs, labels, groups, batch_size=50)
    expected = np.zeros((4, 2, 2), dtype=np.int64)
    dense.eval(), pruned.eval()
    for row, label, group in zip(inputs, labels, groups, strict=True):
        right = [int(model(row[None]).argmax() == label) for model in (dense, pruned)]
        expected[group, right[0], right[1]] += 1
    assert np.array_equal(table.to_array(), expected)
    assert table.rows == 211


def test_accuracies_from_counts_agree_with_fairlearn(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    counts = GroupTable.of(dense, pruned, inputs, labels, groups).to_array()
    for model, ours in ((dense, counts[:, 1, :].sum(1)), (pruned, counts[:, :, 1].sum(1))):
        predicted = model.eval()(inputs).argmax(1).numpy()
        frame = MetricFrame(
            metrics=accuracy_score,
            y_true=labels.numpy(),
            y_pred=predicted,
            sensitive_features=groups.numpy(),
        )
        by_group = ours / counts.sum(axis=(1, 2))
        assert by_group.tolist() == frame.by_group.tolist()
        assert by_group.max() - by_group.min() == frame.difference()


class Rows(nn.Module):
    """Gives scores for other rows than it was asked for."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_zeros(self.rows, 3)


@pytest.mark.parametrize("rows", [0, 1, 210, 212])
def test_a_model_that_returns_other_rows_than_its_inputs_is_refused(problem, rows) -> None:
    dense, _, inputs, labels, groups = problem
    message = f"pruned_model must return scores for each of 211 inputs, got {rows} rows"
    with pytest.raises(FairnessError, match=message):
        GroupTable.of(dense, Rows(rows), inputs, labels, groups)


def test_models_of_different_classes_are_refused(problem) -> None:
    dense, _, inputs, labels, groups = problem
    with pytest.raises(FairnessError, match="pruned_model must tell 3 classes apart, got 4"):
        GroupTable.of(dense, nn.Linear(5, 4), inputs, labels, groups)


def test_the_models_keep_their_mode_and_their_running_statistics(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    dense.train()
    dense[1].eval()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    GroupTable.of(dense, pruned, inputs, labels, groups)
    assert dense.training
    assert not dense[1].training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


rows_of_clients = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 4)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60)
@given(rows_of_clients)
def test_the_tables_of_clients_add_up_to_the_table_of_all_rows(rows) -> None:
    dense, pruned, groups, clients = (list(column) for column in zip(*rows, strict=True))
    tables = client_tables(dense, pruned, groups, clients, 5, 4)
    whole = GroupTable.from_correct(dense, pruned, groups, 4)
    assert tables.shape == (5, 4, 2, 2)
    assert sum_tables(GroupTable.from_array(table) for table in tables) == whole
    for client in range(5):
        own = [row for row in rows if row[3] == client]
        assert tables[client].sum() == len(own)


@settings(max_examples=30)
@given(rows_of_clients, st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)))
def test_one_more_record_changes_one_cell_by_one(rows, record) -> None:
    dense, pruned, groups, _ = (list(column) for column in zip(*rows, strict=True))
    before = GroupTable.from_correct(dense, pruned, groups, 4).to_array()
    after = GroupTable.from_correct(
        [*dense, record[0]], [*pruned, record[1]], [*groups, record[2]], 4
    ).to_array()
    assert np.abs(after - before).sum() == 1


def test_a_table_survives_the_way_through_lists() -> None:
    table = GroupTable.from_correct([True, False, True], [True, True, False], [0, 2, 2])
    assert GroupTable.from_array(table.to_array().tolist()) == table
    assert hash(GroupTable.from_array(table.to_array())) == hash(table)
    assert table != GroupTable.from_correct([True], [True], [2])


def test_a_table_cannot_be_changed_through_what_made_it_or_what_it_gives() -> None:
    counts = np.ones((2, 2, 2), dtype=np.int64)
    table = GroupTable.from_array(counts)
    counts[0, 0, 0] = 9
    table.to_array()[0, 0, 0] = 9
    assert table.rows == 8
    with pytest.raises(ValueError, match="read-only"):
        table.counts[0, 0, 0] = 9


def test_tables_stack_whichever_form_they_come_in() -> None:
    table = GroupTable.from_correct([True, False], [True, True], [0, 1])
    assert stack_tables(table).shape == (1, 2, 2, 2)
    assert np.array_equal(stack_tables([table, table]), stack_tables(stack_tables([table, table])))


def test_labels_of_the_wrong_length_are_refused(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    with pytest.raises(FairnessError, match="labels must have one entry for each of 211 rows"):
        GroupTable.of(dense, pruned, inputs, labels[:-1], groups)
    with pytest.raises(FairnessError, match=r"groups must have one entry .* got 210"):
        GroupTable.of(dense, pruned, inputs, labels, groups[:-1])


def test_zero_examples_are_refused(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    with pytest.raises(FairnessError, match="zero examples"):
        GroupTable.of(dense, pruned, inputs[:0], labels[:0], groups[:0])
    with pytest.raises(FairnessError, match="zero examples"):
        client_tables([], [], [], [], 3, 2)
    with pytest.raises(FairnessError, match="got none"):
        sum_tables([])


def test_a_code_out_of_range_is_refused_with_its_value(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    with pytest.raises(FairnessError, match=r"group code must be from 0 .* = 2, got 3"):
        GroupTable.of(dense, pruned, inputs, labels, groups, num_groups=3)
    with pytest.raises(FairnessError, match=r"group code .* got -1"):
        GroupTable.from_correct([True], [True], [-1], 2)
    with pytest.raises(FairnessError, match=r"client number .* got 5"):
        client_tables([True], [True], [0], [5], 5, 2)
    with pytest.raises(FairnessError, match=r"labels must be from 0 to 2.* got 3"):
        GroupTable.of(dense, pruned, inputs, labels + 1, groups)


def test_group_codes_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(FairnessError, match="whole-number codes, got the type float64"):
        GroupTable.from_correct([True, True], [True, True], [0.0, float("nan")])
    with pytest.raises(FairnessError, match="one axis"):
        GroupTable.from_correct([True], [True], [[0]])
    with pytest.raises(FairnessError, match="true or false"):
        GroupTable.from_correct([1, 0], [True, True], [0, 0])


@pytest.mark.parametrize("code", [10**9, 10**12, 2**63 - 1])
def test_codes_with_gaps_ask_for_no_memory(code: int) -> None:
    with pytest.raises(FairnessError, match="numbered from 0 without gaps"):
        GroupTable.from_correct([True, False], [True, False], [0, code])
    with pytest.raises(FairnessError, match="numbered from 0 without gaps"):
        client_tables([True, False], [True, False], [0, 1], [0, code])


def test_numbers_that_are_no_numbers_of_groups_are_refused() -> None:
    with pytest.raises(FairnessError, match="codes below 2\\^63"):
        GroupTable.from_correct([True], [True], np.array([2**63 + 1], dtype=np.uint64))
    with pytest.raises(FairnessError, match=r"num_groups must be a whole number .* got 2\.5"):
        GroupTable.from_correct([True], [True], [0], 2.5)
    with pytest.raises(FairnessError, match="num_groups must be a whole number of at least 1"):
        GroupTable.from_correct([True], [True], [0], 0)
    with pytest.raises(FairnessError, match="every group code must be at least 0, got -1"):
        GroupTable.from_correct([True], [True], [-1])


def test_counts_may_be_nested_lists() -> None:
    assert GroupTable([[[1, 2], [3, 4]]]).rows == 10


def test_a_model_whose_scores_are_not_finite_is_refused_by_name(problem) -> None:
    dense, pruned, inputs, labels, groups = problem
    with torch.no_grad():
        pruned[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="pruned_model returned scores that are not finite"):
        GroupTable.of(dense, pruned, inputs, labels, groups)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 2], [3, 4]], r"shape \[2, 2\]"),
        ([[[1, 2], [3, -4]]], "at least 0, got -4"),
        ([[[1, 2], [3, 4.5]]], "whole numbers"),
        ([[["a", "b"], ["c", "d"]]], "whole numbers"),
        ([[[1, 2], [3, float("inf")]]], "not finite"),
        (np.full((2, 2, 2), 1e30), "at most 2\\^53 rows together"),
        (np.full((2, 2, 2), 2**62), "at most 2\\^53 rows together"),
        (np.full((2, 2, 2), 2**64 - 1, dtype=np.uint64), "at most 2\\^53 rows together"),
        (np.zeros((0, 2, 2)), "at least one group"),
        (np.zeros((3, 2, 2, 2)), r"\[num_groups, 2, 2\]"),
    ],
)
def test_impossible_counts_are_refused(counts, message) -> None:
    with pytest.raises(FairnessError, match=message):
        GroupTable.from_array(counts)


def test_tables_of_different_groups_do_not_add() -> None:
    two = GroupTable.from_array(np.ones((2, 2, 2)))
    three = GroupTable.from_array(np.ones((3, 2, 2)))
    with pytest.raises(FairnessError, match="2 and of 3 groups"):
        two + three
    with pytest.raises(FairnessError, match="same number of groups"):
        stack_tables([two, three])
