"""Certificates from bounds inside each row's own ball: more rows, and no attack breaks one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_small, small_config

from fedprune import robustness, study
from fedprune.audit import audit
from fedprune.errors import UnsupportedOpError
from fedprune.runs import RunFolder

RADIUS = 0.3
SIDES = ("dense", "pruned")
NETWORK = """
from torch import nn

def build(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.GELU(), nn.Linear(24, num_classes))
"""
OPTIONS = ["evaluate.baselines=false", f"evaluate.certified_radius={RADIUS}", "train.rounds=6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("local")
    run_small(folder / "plain", OPTIONS)
    run_small(folder / "local", [*OPTIONS, "evaluate.local_certificates=true"])
    return folder / "plain", folder / "local"


def test_more_rows_are_certified_and_the_audit_redoes_it(runs: tuple[Path, Path]) -> None:
    plain, local = (
        json.loads((run / "summary.json").read_text(encoding="utf-8"))["certified_accuracy"]
        for run in runs
    )
    assert local["rows"] == plain["rows"]
    for side in SIDES:
        assert local[side] >= max(plain[side], local[f"local_{side}"])
        assert local[side] > plain[side] + 0.02
        assert local[side] == local["curve"][side]["certified"][4]
        assert f"local_{side}" not in plain
    assert all(audit(run).holds for run in runs)


def test_no_row_that_is_certified_is_broken(runs: tuple[Path, Path]) -> None:
    folder = RunFolder.open(runs[1])
    model, architecture = folder.load_pruned()
    dataset = study.load_dataset(folder.config)
    rows = dataset.test
    inputs, labels = rows.inputs(np.arange(len(rows))), rows.targets(np.arange(len(rows)))
    certifier = robustness.LocalCertifier.of(
        model, architecture.example_input, input_std=dataset.input_std, work=-1
    )
    sure = certifier.certified(inputs, labels, RADIUS)
    assert 0 < sure.sum() < len(sure)
    radii = torch.full((int(sure.sum()),), RADIUS, dtype=torch.float64)
    attacked = robustness.pgd(
        model, inputs[sure], labels[sure], radii, steps=40, restarts=2,
        input_std=dataset.input_std, seed=1,
    )  # fmt: skip
    assert not attacked.success.any()


def test_a_network_without_local_bounds_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_with_gelu.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config("model.name=net_with_gelu:build", "evaluate.local_certificates=true")
    dataset = study.load_dataset(config)
    with pytest.raises(UnsupportedOpError):
        study.plan(config, dataset.schema, dataset)


def test_margins_hold_what_was_sent(runs: tuple[Path, Path]) -> None:
    margins = RunFolder.open(runs[1]).read_tensors("margins.safetensors")
    attacked = {f"{side}_attacked{end}" for side in SIDES for end in ("", "_local", "_distances")}
    assert set(margins) == {*SIDES, "dense_local", "pruned_local", *attacked}
    assert torch.equal(
        margins["dense_local"].unique(), torch.tensor([0, RADIUS], dtype=torch.float64)
    )
