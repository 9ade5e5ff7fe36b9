"""Models without layers, inputs without examples, counts that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.errors import ConfigError, FedpruneError, ModelError, PruningError
from fedprune.hardware import compare, cost, latency, measure_forms, measure_layers
from fedprune.pruning import LatencyTable, UnitLayout

ROWS = torch.ones(2, 5)
LINEAR = nn.Linear(5, 4)
NOTHING = nn.Sequential(nn.ReLU(), nn.Flatten())


class Product(nn.Module):
    """A product with a matrix of its own, and linear layers without biases on turned inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 3))
        self.turned = nn.Linear(7, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.turned(x.transpose(1, 2)) @ self.matrix
        return found.flatten(1)


@pytest.mark.parametrize("trained", [True, False])
def test_products_with_weights_count_whether_they_are_trained_or_not(trained: bool) -> None:
    model, example = Product().requires_grad_(trained), torch.randn(2, 7, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example[:1])
    assert cost(model, example).macs == counter.get_total_flops() // 2 == 5 * 7 * 6 + 5 * 6 * 3


def test_products_of_activations_do_not_count() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x @ x.transpose(-1, -2), -1) @ x

    assert cost(Attention(), torch.randn(2, 4, 5)).macs == 0


def test_a_model_without_layers_costs_nothing_and_one_layer_is_enough() -> None:
    assert cost(NOTHING, ROWS).macs == cost(NOTHING, ROWS).params == 0
    assert cost(LINEAR, ROWS).macs == 20
    assert latency({"": NOTHING}, ROWS, repeats=1)[""].median_ms > 0
    (work,) = measure_layers(LINEAR, ROWS, repeats=6)
    assert work.flops == 2 * 2 * 20


def test_an_example_is_left_as_it_is_by_a_model_that_writes_into_it() -> None:
    example = torch.randn(2, 5)
    kept = example.clone()
    cost(nn.Sequential(nn.ReLU(inplace=True), LINEAR), example)
    assert torch.equal(example, kept)


WRONG: dict[str, tuple[Callable[[], Any], type[FedpruneError], str]] = {
    "no example": (lambda: cost(LINEAR, ROWS[:0]), ModelError, "at least one example"),
    "a number": (lambda: cost(LINEAR, torch.tensor(1.0)), ModelError, r"got shape \[\]"),
    "two inputs": (
        lambda: cost(LINEAR, (ROWS, ROWS)), ModelError, r"one tensor .*, got tuple",  # type: ignore[arg-type]
    ),
    "latency of none": (lambda: latency({"a": LINEAR}, ROWS[:0]), ModelError, "at least one"),
    "latency of others": (
        lambda: latency({"first": LINEAR, "second": nn.Linear(6, 2)}, ROWS), ModelError,
        r"second cannot process an example of shape \[1, 5\]",
    ),
    "compare none": (lambda: compare({}, ROWS), ConfigError, "at least one network, got none"),
    "half a repeat": (
        lambda: latency({"a": LINEAR}, ROWS, repeats=2.5), ConfigError,  # type: ignore[arg-type]
        "repeats of a latency measurement must be a whole number, got 2.5",
    ),
    "batch that is no number": (
        lambda: compare({"a": LINEAR}, ROWS, batch_size=float("nan")),  # type: ignore[arg-type]
        ConfigError, "batch_size of a comparison must be a whole number, got nan",
    ),
    "no layers": (lambda: measure_layers(NOTHING, ROWS), ConfigError, "no convolution or linear"),
    "forms of other inputs": (
        lambda: measure_forms(LINEAR, torch.ones(2, 6), 0.5), ConfigError, "reads 5 channels",
    ),
    "forms without a batch": (
        lambda: measure_forms(nn.Conv2d(3, 4, 3), torch.ones(3, 8, 8), 0.5), ConfigError,
        r"must have a row each, got \[3, 8, 8\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_measured_is_refused_in_one_sentence(name: str) -> None:
    work, kind, words = WRONG[name]
    with pytest.raises(kind, match=words) as refused:
        work()
    assert "\n" not in str(refused.value)


def test_a_table_is_saved_into_a_new_folder_and_a_spoilt_one_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    layout = UnitLayout.of(model, ROWS)
    table = LatencyTable.measure(model, layout, ROWS, repeats=1, points=2)
    path = tmp_path / "new" / "table.json"
    table.save(path)
    everything = torch.ones(6, dtype=torch.bool)
    loaded = LatencyTable.load(path)
    assert loaded.predict(layout, everything) == table.predict(layout, everything)
    stored = json.loads(path.read_text(encoding="utf-8"))
    grid = next(iter(stored["grids"]))
    infinite = {**stored["grids"][grid], "ms": [[float("inf")] * 2]}
    for change in ({"factor": float("nan")}, {"factor": -1}, {"overhead_ms": float("inf")},
                   {"threads": 0}, {"grids": {**stored["grids"], grid: infinite}}):  # fmt: skip
        path.write_text(json.dumps(stored | change), encoding="utf-8")
        with pytest.raises(PruningError, match=r"table\.json is no latency table"):
            LatencyTable.load(path)
