"""A network of torchvision goes through every phase, on a user's own data with random labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedprune import config as configuration
from fedprune import data, hardware
from fedprune.federated.simulate import simulate
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

CLASSES, SIDE = 4, 64
OVERRIDES = (
    f"data.dataset={__name__}:random_images",
    "data.clients=4",
    "model.name=resnet18",
    "prune.keep_units=0.5",
    "train.rounds=1",
    "train.fine_tune_rounds=1",
    "train.clients_per_round=2",
    "train.local_epochs=1",
    "train.batch_size=4",
    "train.learning_rate=0.01",
    "train.fine_tune_learning_rate=0.01",
    "evaluate.seeds=1",
    "evaluate.baselines=false",
    "evaluate.resamples=100",
    "evaluate.certified_rows=4",
    "evaluate.attacked_rows=2",
)


def random_images(root: str | Path, *, seed: int) -> data.Dataset:
    """Noise images whose labels mean nothing."""
    del root
    generator = np.random.default_rng(seed)

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = generator.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
        return images, generator.integers(0, CLASSES, size=count)

    return data.from_arrays("random-images", train=rows(16), test=rows(8), num_classes=CLASSES)


def test_resnet18_is_trained_voted_on_pruned_bounded_and_certified(tmp_path: Path) -> None:
    summary = simulate(configuration.load(None, list(OVERRIDES)), tmp_path / "run", Quiet())
    folder = RunFolder.open(tmp_path / "run")
    small, architecture = folder.load_pruned()
    assert architecture.model == "resnet18"
    cost = hardware.cost(small, architecture.example_input)
    assert summary["cost"]["pruned"]["params"] == cost.params
    assert cost.params < 0.5 * summary["cost"]["dense"]["params"]
    robustness = summary["robustness"]
    for model in ("dense", "pruned"):
        # After two rounds on noise the pruned network may well be constant: a lower bound of 0.
        assert 0 <= robustness[f"lower_{model}"] <= robustness[f"upper_{model}"]
        assert 0 <= summary["certified_accuracy"][model] <= 1
    assert summary["accuracy"]["pruned"] == pytest.approx(1 / CLASSES, abs=0.5)
