"""New statistics for batch norms after surgery: what one client with all rows would have found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_small, small_config

from fedprune import robustness, study
from fedprune.audit import audit
from fedprune.errors import ConfigError
from fedprune.federated.experiment import Held
from fedprune.federated.norm_answers import unpacked
from fedprune.privacy import Ledger
from fedprune.runs import RunFolder

NETWORK = """
from torch import nn

def build(input_shape, num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, num_classes))
"""
NAME = "net_with_norms:build"
OPTIONS = [
    f"model.name={NAME}", "data.clients=12", "train.clients_per_round=12", "prune.keep_units=0.4",
    "train.fine_tune_rounds=0", "evaluate.baselines=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("norms")
    (folder / "net_with_norms.py").write_text(NETWORK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        run_small(folder / "run", [*OPTIONS, "train.recalibrate=2"])
        run_small(folder / "plain", OPTIONS)
        yield folder / "run"


def test_rounds_over_clients_find_what_one_client_with_all_rows_would(run: Path) -> None:
    folder = RunFolder.open(run)
    rows = study.load_dataset(folder.config).train
    everything = rows.inputs(np.arange(len(rows)))
    wanted = RunFolder.open(run.parent / "plain").load_pruned()[0]
    assert Held(folder, "vote-1").architecture.mask.sum() == 8
    for _ in range(2):
        wanted = robustness.recalibrate(wanted, robustness.batch_norm_sums(wanted, [everything]))
    found = folder.load_pruned()[0].state_dict()
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    told = {event["phase"]: event["result"] for event in folder.events()}
    assert told["norms-1-2"]["clients"] == 12


def test_the_network_is_better_with_statistics_of_its_own(run: Path) -> None:
    accuracies = [
        json.loads((run.parent / name / "summary.json").read_text(encoding="utf-8"))["accuracy"]
        for name in ("plain", "run")
    ]
    assert accuracies[0]["dense"] == accuracies[1]["dense"]
    assert accuracies[1]["pruned"] > accuracies[0]["pruned"] + 0.01


def test_what_left_the_clients_is_in_the_ledger_and_in_the_words(run: Path) -> None:
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        rounds = {entry.round for entry in ledger.entries() if entry.kind == "norm-statistics"}
    assert rounds == {"norms-1-1", "norms-1-2"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert any("batch norms" in said for said in summary["privacy"]["not_covered"])
    assert summary["privacy"]["overall_client_epsilon"] is None
    assert audit(run).holds


def test_networks_without_batch_norm_and_dp_sgd_are_refused() -> None:
    config = small_config("train.recalibrate=1")
    dataset = study.load_dataset(config)
    with pytest.raises(ConfigError, match=r"train\.recalibrate must be 0 for mlp"):
        study.plan(config, dataset.schema, dataset)
    with pytest.raises(ConfigError, match=r"train\.recalibrate must be 0 with DP-SGD"):
        small_config("train.recalibrate=1", "train.private=all")


def test_sums_are_read_as_they_were_written() -> None:
    vector = np.arange(1.0, 13.0)
    found = unpacked(vector, {"a": 2, "b": 3})
    assert found.counts == {"a": 1, "b": 6}
    assert found.sums["b"].tolist() == [7, 8, 9]
    assert found.squares["a"].tolist() == [4, 5]
