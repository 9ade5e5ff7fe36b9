"""The examples that pruning treats differently, found locally and counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness import GroupTable, find_disagreements, modal_predictions


def rows(count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator)
    return inputs, torch.arange(count) % 3, torch.arange(count) % 4


def networks(count: int, start: int = 0) -> list[nn.Module]:
    made = []
    for seed in range(start, start + count):
        torch.manual_seed(seed)
        made.append(nn.Linear(5, 3))
    return made


def test_one_model_each_disagrees_where_predictions_differ() -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(2)
    found = find_disagreements(dense, pruned, inputs, labels, groups, batch_size=33)
    differs = (dense(inputs).argmax(1) != pruned(inputs).argmax(1)).numpy()
    assert sorted(found.indices.tolist()) == np.flatnonzero(differs).tolist()
    for group in range(4):
        inside = groups.numpy() == group
        assert found.counts[group].tolist() == [
            int((inside & ~differs).sum()),
            int((inside & differs).sum()),
        ]
    assert found.dense.tolist() == dense(inputs).argmax(1)[found.indices].tolist()
    assert found.pruned.tolist() == pruned(inputs).argmax(1)[found.indices].tolist()


def test_disagreements_hold_every_row_that_only_one_model_gets_right() -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(2)
    found = find_disagreements(dense, pruned, inputs, labels, groups)
    table = GroupTable.of(dense, pruned, inputs, labels, groups).counts
    assert np.all(found.counts.sum(axis=1) == table.sum(axis=(1, 2)))
    assert np.all(found.counts[:, 1] >= table[:, 0, 1] + table[:, 1, 0])


def test_the_worst_come_first() -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(2)
    found = find_disagreements(dense, pruned, inputs, labels, groups)
    fall = dense(inputs).softmax(1) - pruned(inputs).softmax(1)
    expected = fall[found.indices, labels[found.indices]].detach().numpy()
    assert np.all(np.diff(found.severity) <= 0)
    assert found.severity == pytest.approx(expected, abs=1e-6)


def test_a_population_of_models_goes_by_its_most_frequent_class() -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(5), networks(5, start=20)
    found = find_disagreements(dense, pruned, inputs, labels, groups)
    modes = []
    for models in (dense, pruned):
        predicted = np.stack([model(inputs).argmax(1).numpy() for model in models], axis=1)
        modes.append([max(range(3), key=list(row).count) for row in predicted])
    expected = np.flatnonzero(np.array(modes[0]) != np.array(modes[1]))
    assert sorted(found.indices.tolist()) == expected.tolist()


def test_ties_between_classes_go_to_the_lowest() -> None:
    assert modal_predictions([[2, 0], [1, 0], [0, 1]]).tolist() == [0, 0]


def test_counts_of_parts_add_up_and_printing_shows_no_example() -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(2)
    whole = find_disagreements(dense, pruned, inputs, labels, groups)
    halves = [
        find_disagreements(dense, pruned, inputs[s], labels[s], groups[s], num_groups=4)
        for s in (slice(0, 90), slice(90, None))
    ]
    assert np.array_equal(halves[0].counts + halves[1].counts, whole.counts)
    assert "indices" not in repr(whole)
    assert "severity" not in repr(whole)


def test_equal_models_disagree_nowhere() -> None:
    inputs, labels, groups = rows()
    model = networks(1)[0]
    found = find_disagreements(model, model, inputs, labels, groups)
    assert len(found.indices) == 0
    assert found.counts[:, 1].sum() == 0


def test_labels_may_be_true_or_false() -> None:
    inputs, _, groups = rows()
    dense, pruned = nn.Linear(5, 2), nn.Linear(5, 2)
    labels = torch.arange(200) % 2
    coded, flagged = (
        find_disagreements(dense, pruned, inputs, given, groups) for given in (labels, labels == 1)
    )
    assert coded.severity.tolist() == flagged.severity.tolist()


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([[2**40]], "classes must be numbered from 0 without gaps"),
        ([[1], [1, 2]], "predictions must fill an array"),
        (np.zeros((0, 3), int), "at least one model and row"),
        ([[1.0]], "class codes"),
    ],
)
def test_predictions_that_are_no_classes_are_refused(predictions, message) -> None:
    with pytest.raises(FairnessError, match=message):
        modal_predictions(predictions)


class OneRow(nn.Module):
    """Forgets the axis of rows."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=0, keepdim=True)[:, :3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_models": []}, "at least one dense_model"),
        ({"pruned_models": OneRow()}, "pruned_model must return scores for each of 200 inputs"),
        ({"dense_models": OneRow()}, "dense_model must return scores for each of 200 inputs"),
        ({"pruned_models": nn.Linear(5, 4)}, "same classes, got 3 and 4"),
        ({"inputs": torch.zeros(0, 5), "labels": torch.zeros(0).long(), "groups": []}, "zero"),
        ({"labels": torch.full((200,), 3)}, "labels must be from 0 to 2"),
        ({"groups": torch.full((200,), -1)}, "group code"),
        ({"groups": torch.zeros(10).long()}, "one entry for each"),
    ],
)
def test_questions_without_an_answer_are_refused(change, message) -> None:
    inputs, labels, groups = rows()
    dense, pruned = networks(2)
    asked = {
        "dense_models": dense,
        "pruned_models": pruned,
        "inputs": inputs,
        "labels": labels,
        "groups": groups,
        **change,
    }
    with pytest.raises(FairnessError, match=message):
        find_disagreements(**asked)
