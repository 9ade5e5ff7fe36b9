"""Kept units go back to the weights that they had early in training, after every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import run_small, small_config

from fedprune import pruning
from fedprune.audit import audit
from fedprune.errors import ConfigError
from fedprune.federated.experiment import Held
from fedprune.runs import RunFolder, weights_vector

STEPS = ("prune.schedule=geometric", "prune.steps=2", "evaluate.baselines=false")


def reference(folder: RunFolder, rewind: int) -> Held:
    return Held(folder, f"train-{rewind}" if rewind else "start")


@pytest.mark.parametrize("rewind", [0, 2, 3])
def test_without_fine_tuning_the_pruned_model_is_a_cut_from_the_one_rewound_to(
    tmp_path: Path, rewind: int
) -> None:
    run_small(tmp_path / "run", [*STEPS, f"prune.rewind={rewind}", "train.fine_tune_rounds=0"])
    folder = RunFolder.open(tmp_path / "run")
    dense = reference(folder, rewind)
    found, architecture = folder.load_pruned()
    expected = pruning.shrink(dense.model(), dense.layout(), architecture.mask)
    assert torch.equal(weights_vector(found), weights_vector(expected))
    assert int(architecture.mask.sum()) == len(architecture.mask) // 2
    assert audit(tmp_path / "run").holds


def test_rewinding_starts_every_fine_tuning_from_the_same_weights(tmp_path: Path) -> None:
    run_small(tmp_path / "back", [*STEPS, "prune.rewind=1"])
    run_small(tmp_path / "on", [*STEPS])
    models = [RunFolder.open(tmp_path / name).path / "model.safetensors" for name in ("back", "on")]
    assert models[0].read_bytes() != models[1].read_bytes()


def test_a_round_that_there_is_not_cannot_be_gone_back_to() -> None:
    with pytest.raises(
        ConfigError, match=r"prune\.rewind must be at most train\.rounds = 3, got 4"
    ):
        small_config("prune.rewind=4")


def test_only_the_round_that_is_gone_back_to_stays_in_the_folder(tmp_path: Path) -> None:
    run_small(tmp_path / "run", [*STEPS, "prune.rewind=1"])
    kept = {path.stem for path in (tmp_path / "run" / "checkpoints").glob("train-*.safetensors")}
    assert kept == {"train-1", "train-3"}
