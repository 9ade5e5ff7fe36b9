"""Passes: the same bits however they are batched and threaded, on any device, in two precisions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import models
from fedprune.errors import ModelError, PruningError
from fedprune.pruning import (
    UnitLayout,
    check_precision,
    correct_predictions,
    score,
    score_clients,
    select_many,
)
from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.scores.gates import GateGradients
from fedprune.pruning.scores.prepared import choose_format, prepare, rows_a_pass

NAMES = [
    "plain", "residual", "concat", "grouped", "sigmoid", "gate", "signal", "recurrent",
    "pre_activation",
]  # fmt: skip


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def labels_for(inputs: Tensor, classes: int = 4) -> Tensor:
    return torch.randint(classes, (len(inputs),), generator=torch.Generator().manual_seed(9))


def many(inputs: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *inputs.shape[1:], generator=generator)


class Listed:
    """Examples as a `Source`."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.inputs[start:stop], self.labels[start:stop]


class Viewing(nn.Module):
    """A network that asks for a view of its activations, as much code for images does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.out = nn.Linear(6 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        return self.out(x.view(x.size(0), -1))


class Strided(nn.Module):
    """A network that reads its activations' memory in whatever order it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        n, c, h, w = x.shape
        return self.out(x.as_strided((n, c, h, w), (c * h * w, h * w, w, 1)).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_the_same_bits_on_one_thread_and_on_several(build: Any, name: str) -> None:
    model, inputs = build(name)
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 70)
    labels, ids = labels_for(inputs), torch.arange(70) // 5
    with threads(1):
        alone = score_clients(model, layout, inputs, labels, ids, batch_size=16)
    with threads(3):
        side_by_side = score_clients(model, layout, inputs, labels, ids, batch_size=16)
    assert torch.equal(alone, side_by_side)


def test_scores_have_the_same_bits_in_every_cohort_of_a_residual_network() -> None:
    model = models.load("resnet20", weights="", num_classes=10, seed=0)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 3, 32, 32, generator=generator)
    layout, labels, ids = (
        UnitLayout.of(model, inputs),
        labels_for(inputs, 10),
        torch.arange(30) // 3,
    )
    whole = score_clients(model, layout, inputs, labels, ids)
    for size in (1, 4):
        parts = [
            score_clients(model, layout, inputs[own], labels[own], ids[own])
            for own in torch.arange(30).split(3 * size)
        ]
        together = torch.cat(parts)
        masks = [select_many(one, layout, 0.5) for one in (whole, together)]
        assert torch.equal(*masks)
        torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("examples", [1, 15, 16, 17, 40, 999, 50_000])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_passes_are_of_equal_size_and_enough_for_all_workers(examples: int, workers: int) -> None:
    model = models.load("resnet20", weights="", num_classes=10, seed=0)
    layout = UnitLayout.of(model, torch.zeros(1, 3, 32, 32))
    rows = rows_a_pass(layout, examples, workers)
    passes = -(-examples // rows)
    rest = examples - rows * (passes - 1)
    assert 1 <= rows <= 100
    assert passes >= min(workers, examples // 16)
    assert rest >= min(rows, max(rows - passes, 1))


def test_a_network_with_large_maps_is_passed_in_small_batches() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3), nn.Flatten(),
                            nn.Linear(4 * 196**2, 4))  # fmt: skip
    layout = UnitLayout.of(network, torch.zeros(1, 3, 200, 200))
    assert 1 <= rows_a_pass(layout, 10_000, 2) <= 4


@pytest.mark.parametrize("network", [Viewing, Strided])
def test_a_network_that_minds_how_its_memory_lies_keeps_it(
    network: type[nn.Module], randomised: Any
) -> None:
    model, inputs = randomised(network()), torch.randn(8, 3, 8, 8)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    assert choose_format(prepare(model, layout), inputs) is torch.contiguous_format
    found = score(model, layout, [(inputs, labels)])
    precise = score(copy.deepcopy(model).double(), layout, [(inputs.double(), labels)])
    torch.testing.assert_close(found, precise, rtol=1e-3, atol=1e-5 * float(precise.max()))


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_the_precision_of_a_pass_in_float64(build: Any, name: str) -> None:
    model, inputs = build(name)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    precise = copy.deepcopy(model).double()
    found = score(model, layout, [(inputs, labels)])
    wanted = score(precise, layout, [(inputs.double(), labels)])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.max()))


@pytest.mark.parametrize("name", NAMES)
def test_on_another_device_no_number_is_looked_at_on_the_way(build: Any, name: str) -> None:
    """The meta device has shapes and no numbers: whoever asks for one fails."""
    model, inputs = build(name)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    elsewhere = copy.deepcopy(model).to("meta")
    clients = Clients.of(inputs, labels, torch.arange(6) // 2, 4, None)
    gates = GateGradients(elsewhere, layout)
    assert gates.device.type == "meta"
    assert gates.workers == 1
    sums = clients.sum_rows(gates)
    assert sums.device.type == "meta"
    assert sums.shape == (3, len(layout))
    with pytest.raises(ModelError, match=r"labels must be in \[0, 4\)"):
        gates.of(inputs, labels * 0 + 4)


def test_an_example_without_a_finite_loss_is_named_in_any_of_the_threads(build: Any) -> None:
    model, inputs = build("plain")
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 60)
    inputs[50] = float("inf")
    with threads(3), pytest.raises(ModelError, match="the loss of PlainCnn is nan"):
        score_clients(model, layout, inputs, labels_for(inputs), torch.arange(60), batch_size=8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_predictions_are_those_of_the_model_itself(build: Any, name: str, count: int) -> None:
    model, inputs = build(name)
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 90)
    labels = labels_for(inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        scores = copy.deepcopy(model).double()(inputs.double())
    clear = scores.topk(2).values.diff().abs().squeeze() > 1e-4  # no coin decides these
    with threads(count):
        found = correct_predictions(model, layout, Listed(inputs, labels))
    assert found.dtype == torch.bool
    assert torch.equal(found[clear], (scores.argmax(1) == labels)[clear])
    assert 0 < int(found.sum()) < 90
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_predictions_of_no_rows_are_none_and_of_broken_weights_refused(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    assert correct_predictions(model, layout, Listed(inputs[:0], labels[:0])).shape == (0,)
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="scores of PlainCnn are not finite"):
        correct_predictions(model, layout, Listed(inputs, labels))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_scores_are_near_those_of_float32_and_not_the_same(build: Any, name: str) -> None:
    model, inputs = build(name)
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 40)
    labels, ids = labels_for(inputs), torch.arange(40) // 4
    exact, reduced = (
        score_clients(model, layout, inputs, labels, ids, precision=one)
        for one in ("float32", "bfloat16")
    )
    assert reduced.dtype == torch.float32
    slopes = exact.sqrt(), reduced.sqrt()
    error = (slopes[0] - slopes[1]).norm() / slopes[0].norm()
    assert error < 0.05
    if name != "signal":  # whose every layer touches the inputs or the outputs
        assert error > 0


def test_bfloat16_has_the_same_bits_on_one_thread_and_on_several(build: Any) -> None:
    model, inputs = build("residual")
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 60)
    labels, ids = labels_for(inputs), torch.arange(60) // 5
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(
                score_clients(
                    model, layout, inputs, labels, ids, batch_size=16, precision="bfloat16"
                )
            )
    assert torch.equal(*found)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with instructions for every precision; others compute the same more slowly."""
    monkeypatch.setattr("fedprune.pruning.scores.precision.has_instructions", lambda *_: True)


@pytest.mark.usefixtures("able")
def test_a_precision_is_used_where_the_votes_stand_it_and_else_float32_with_a_reason(
    build: Any,
) -> None:
    model, inputs = build("residual")
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 200)
    examples = inputs, labels_for(inputs), torch.arange(200) // 5

    def check(precision: str, least: float) -> Any:
        return check_precision(
            model, layout, *examples, precision, keep_units=0.5, least_kept=least
        )

    kept = check("bfloat16", 0.0)
    assert kept.used == "bfloat16"
    assert 0.5 < kept.kept <= 1
    assert kept.clients == 40
    assert "on a sample of 40 clients" in kept.sentence
    reduced = score_clients(model, layout, *examples, precision="bfloat16")
    assert torch.equal(kept.scores, reduced)
    assert check("float32", 0.99).kept == 1


def test_a_precision_without_instructions_is_not_even_tried(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("residual")
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 60)
    examples = inputs, labels_for(inputs), torch.arange(60) // 5
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    found = check_precision(model, layout, *examples, "bfloat16", keep_units=0.5, least_kept=0)
    assert (found.used, found.kept, found.clients) == ("float32", None, 12)
    assert "this processor has no instructions for bfloat16" in found.sentence
    assert torch.equal(found.scores, score_clients(model, layout, *examples))


@pytest.mark.usefixtures("able")
def test_a_precision_that_moves_the_votes_too_far_is_not_used(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("residual")
    layout, inputs = UnitLayout.of(model, inputs), many(inputs, 60)
    examples = inputs, labels_for(inputs), torch.arange(60) // 5
    exact = score_clients(model, layout, *examples)

    def turned(*_arguments: Any, precision: str, **_named: Any) -> Tensor:
        return exact if precision == "float32" else -exact

    def failing(*_arguments: Any, precision: str, **_named: Any) -> Tensor:
        if precision == "float32":
            return exact
        raise RuntimeError("no kernel for BFloat16\nand more")

    for scores, why in ((turned, "keeps"), (failing, "fails (no kernel for BFloat16)")):
        monkeypatch.setattr("fedprune.pruning.scores.precision.score_clients", scores)
        found = check_precision(model, layout, *examples, "bfloat16", keep_units=0.5)
        assert found.used == "float32"
        assert found.kept < 0.99
        assert f"12 clients {why}" in found.sentence
        assert found.sentence.endswith("less than the 99% asked for: scores are in float32")
        assert torch.equal(found.scores, exact)


def test_an_unknown_precision_is_one_sentence(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    ids = torch.arange(6)
    for criterion in ("taylor", "magnitude"):
        with pytest.raises(PruningError, match="one of float32, bfloat16, got 'float8'"):
            score_clients(model, layout, inputs, labels, ids, criterion, precision="float8")
    with pytest.raises(PruningError, match="got 'float8'"):
        check_precision(model, layout, inputs, labels, ids, "float8", keep_units=0.5)
    with pytest.raises(PruningError, match=r"least_kept must be in \[0, 1\], got 2"):
        check_precision(
            model, layout, inputs, labels, ids, "bfloat16", keep_units=0.5, least_kept=2
        )
