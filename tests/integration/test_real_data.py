"""Real data, where they are at hand: hospitals end to end, CIFAR-10 with pretrained networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedprune import data, models, pruning
from fedprune.cli import app
from fedprune.pruning import UnitLayout

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


def test_four_hospitals_end_to_end_and_audited(data_root: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "heart"
    arguments = [
        "simulate", str(CONFIGS / "heart.toml"), "--out", str(out), "--json",
        "--set", f"data.root={data_root}", "--set", "evaluate.seeds=1",
        "--set", "train.rounds=8", "--set", "train.fine_tune_rounds=2",
    ]  # fmt: skip
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"]["dense"] > 0.7
    assert summary["fairness"]["group"] == "sex"
    assert not summary["plan"]["useful"]
    assert summary["privacy"]["reports"] == 4
    assert runner.invoke(app, ["audit", str(out)]).exit_code == 0


def test_adult_with_crossed_groups_end_to_end_and_audited(data_root: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "adult"
    arguments = [
        "simulate", str(CONFIGS / "adult.toml"), "--out", str(out), "--json",
        "--set", f"data.root={data_root}", "--set", "evaluate.seeds=1",
        "--set", "train.rounds=8", "--set", "train.fine_tune_rounds=2",
    ]  # fmt: skip
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"]["dense"] > 0.8
    fairness = summary["fairness"]
    assert fairness["group"] == "sex x race"
    low, high = fairness["gap_change_interval"]
    assert low <= fairness["gap_change"] <= high
    assert len(json.loads((out / "tables.json").read_text())["names"]) == 10
    assert runner.invoke(app, ["audit", str(out)]).exit_code == 0


REAL = [("lenet", "digits", ""), ("mlp", "digits", ""), ("mlp", "heart", "")]
REAL += [(f"resnet{depth}", "cifar10", "") for depth in (20, 32, 44, 56)]
REAL += [
    ("resnet20", "cifar10", "weights/resnet20-12fca82f.th"),
    ("resnet56", "cifar10", "weights/resnet56-4bfd9763.th"),
]


@pytest.mark.parametrize(("name", "dataset", "weights"), REAL)
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_masked_and_shrunk_models_agree_on_real_inputs(
    data_root: Path, name: str, dataset: str, weights: str, keep: float
) -> None:
    rows = data.load(dataset, str(data_root), seed=1)
    model = models.load(
        name,
        weights=str(data_root / weights) if weights else "",
        num_classes=rows.num_classes,
        input_shape=rows.input_shape,
        seed=1,
    )
    inputs = rows.test.inputs(np.arange(40))
    layout = UnitLayout.of(model, inputs[:1])
    generator = torch.Generator().manual_seed(int(10 * keep))
    mask = pruning.select(torch.rand(len(layout), generator=generator), layout, keep_units=keep)
    with torch.inference_mode():
        masked = pruning.mask_model(model, layout, mask)(inputs)
        shrunk = pruning.shrink(model, layout, mask)(inputs)
    assert (masked - shrunk).abs().max() <= 1e-5
