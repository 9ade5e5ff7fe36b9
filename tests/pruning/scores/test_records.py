"""Scores of single records: each as a minibatch of one, and none touched by another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedprune import models
from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, score, shrink
from fedprune.pruning.scores.gates import GateGradients
from fedprune.pruning.scores.records import RECORDS_PER_PASS, score_records

SHAPES = {"mlp": (5,), "lenet": (1, 8, 8), "resnet20": (3, 8, 8)}


@dataclass
class Records:
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.inputs[start:stop], self.labels[start:stop]

    def without(self, place: int) -> Records:
        keep = torch.arange(len(self)) != place
        return Records(self.inputs[keep], self.labels[keep])


def records(count: int, shape: tuple[int, ...], seed: int = 1) -> Records:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=random)
    return Records(torch.randn(count, *shape, generator=random), labels)


@pytest.fixture(params=[(name, shrunk) for name in SHAPES for shrunk in (False, True)], ids=str)
def named(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, UnitLayout, tuple[int, ...]]:
    name, shrunk = request.param
    shape = SHAPES[name]
    model = models.load(name, num_classes=10, input_shape=shape, seed=2)
    layout = UnitLayout.of(model, torch.zeros(1, *shape))
    if shrunk:
        model = shrink(model, layout, torch.arange(len(layout)) % 3 != 0)
        layout = UnitLayout.of(model, torch.zeros(1, *shape))
    return model, layout, shape


def test_a_record_is_scored_as_a_minibatch_of_one(named: tuple) -> None:
    model, layout, shape = named
    rows = records(RECORDS_PER_PASS + 3, shape)
    found = score_records(model, layout, rows)
    for place in (0, 7, RECORDS_PER_PASS + 2):
        alone = score(model, layout, [rows.batch(place, place + 1)])
        torch.testing.assert_close(found[place], alone, rtol=1e-3, atol=1e-9)


def test_removing_a_record_changes_no_bit_of_the_others(named: tuple) -> None:
    model, layout, shape = named
    rows = records(RECORDS_PER_PASS + 2, shape)
    found = score_records(model, layout, rows)
    for place in (0, 3, RECORDS_PER_PASS):
        rest = torch.arange(len(rows)) != place
        assert torch.equal(score_records(model, layout, rows.without(place)), found[rest])


@pytest.mark.parametrize("criterion", ["linear_logits", "taylor_second", "fisher"])
def test_what_is_drawn_for_a_record_does_not_depend_on_the_others(criterion: str) -> None:
    model = models.load("mlp", num_classes=10, input_shape=(5,), seed=2)
    layout, rows = UnitLayout.of(model, torch.zeros(1, 5)), records(RECORDS_PER_PASS + 2, (5,))
    found = score_records(model, layout, rows, criterion)
    assert (found >= 0).all()
    for place in (0, RECORDS_PER_PASS):
        rest = torch.arange(len(rows)) != place
        without = score_records(model, layout, rows.without(place), criterion)
        assert torch.equal(without, found[rest])


@pytest.mark.parametrize("fault", ["nan", "infinite", "huge", "label", "negative label"])
def test_a_record_that_breaks_the_pass_is_zero_and_leaves_the_others_alone(
    named: tuple, fault: str
) -> None:
    model, layout, shape = named
    rows = records(6, shape)
    found = score_records(model, layout, rows)
    bad = Records(rows.inputs.clone(), rows.labels.clone())
    if fault in ("nan", "infinite", "huge"):
        bad.inputs[2] = {"nan": torch.nan, "infinite": torch.inf, "huge": 3e38}[fault]
    else:
        bad.labels[2] = {"label": 10, "negative label": -100}[fault]
    broken = score_records(model, layout, bad)
    assert not broken[2].any()
    others = torch.arange(6) != 2
    assert torch.equal(broken[others], found[others])


def test_no_record_has_no_scores_and_data_free_criteria_score_all_alike() -> None:
    model = models.load("mlp", num_classes=10, input_shape=(5,), seed=2)
    layout = UnitLayout.of(model, torch.zeros(1, 5))
    assert score_records(model, layout, records(0, (5,))).shape == (0, len(layout))
    found = score_records(model, layout, records(3, (5,)), "magnitude_l2")
    assert torch.equal(found, score(model, layout, [], "magnitude_l2").repeat(3, 1))
    with pytest.raises(PruningError, match="seed"):
        score_records(model, layout, records(3, (5,)), "random")


def test_records_that_touch_each_other_have_a_pass_to_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.load("mlp", num_classes=10, input_shape=(5,), seed=2)
    layout = UnitLayout.of(model, torch.zeros(1, 5))
    rows, passes = records(4, (5,)), []
    apart = score_records(model, layout, rows)
    of = GateGradients.of

    def mixing(gates: GateGradients, inputs: Tensor, labels: Tensor) -> Tensor:
        passes.append(len(labels))
        return of(gates, inputs, labels) + inputs.sum() * (len(labels) > 1)

    monkeypatch.setattr(GateGradients, "of", mixing)
    torch.testing.assert_close(score_records(model, layout, rows), apart)
    assert passes[-4:] == [1, 1, 1, 1]
