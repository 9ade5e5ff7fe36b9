"""Training for certificates in federated rounds: it certifies more, and is the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_small, small_config

from fedprune import models
from fedprune.errors import ConfigError, UnsupportedOpError
from fedprune.federated.trainers import margins
from fedprune.federated.training import LocalTraining, Trainer
from fedprune.federated.trial import traits_of
from fedprune.runs import Architecture, weights_vector

GATED = """
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.a, self.b, self.out = (
            nn.Flatten(), nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10))

    def forward(self, x):
        x = self.flatten(x)
        return self.out(self.a(x) * self.b(x).sigmoid())

def build(input_shape, num_classes):
    return Gated()
"""
HOW = LocalTraining(2, 8, 0.1, 0.9, 0.0, margin_radius=0.1, input_std=(0.5,))


def trained(order: list[int], how: LocalTraining = HOW) -> dict[int, torch.Tensor]:
    """Train some clients one after another in one trainer."""
    model = models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=1)
    trainer, weights = Trainer(model, traits_of(model, (1, 8, 8))), weights_vector(model)
    loss_of = margins(Architecture.dense("lenet", 10, (1, 8, 8)), how)
    found = {}
    for client in order:
        draw = torch.Generator().manual_seed(client)
        inputs = torch.randn(20, 1, 8, 8, generator=draw)
        labels = torch.randint(0, 10, (20,), generator=draw)
        trainer.train(weights, inputs, labels, how, np.random.default_rng(client), loss_of)
        found[client] = trainer.read()
    return found


def test_a_clients_weights_do_not_depend_on_who_was_trained_before() -> None:
    together, backwards, alone = trained([0, 1, 2]), trained([2, 1, 0]), trained([1])
    assert torch.equal(together[1], alone[1])
    assert all(torch.equal(together[client], backwards[client]) for client in together)


def test_the_radius_is_that_of_the_unnormalised_input() -> None:
    plain = LocalTraining(2, 8, 0.1, 0.9, 0.0)
    narrow = LocalTraining(2, 8, 0.1, 0.9, 0.0, margin_radius=0.05, input_std=(0.25,))
    wide = LocalTraining(2, 8, 0.1, 0.9, 0.0, margin_radius=0.2, input_std=(1.0,))
    assert not torch.equal(trained([0], plain)[0], trained([0], wide)[0])
    assert torch.allclose(trained([0], narrow)[0], trained([0], wide)[0], atol=1e-5)


def test_margin_training_certifies_what_plain_training_does_not(tmp_path: Path) -> None:
    options = ["data.clients=20", "evaluate.baselines=false", "train.rounds=20",
               "train.fine_tune_rounds=10", "evaluate.certified_radius=0.3"]  # fmt: skip
    plain = run_small(tmp_path / "plain", options)
    wide = run_small(tmp_path / "margins", [*options, "train.margin_radius=0.3"])
    for model in ("dense", "pruned"):
        with_it, without = (one["certified_accuracy"][model] for one in (wide, plain))
        assert with_it > without + 0.1
        assert wide["accuracy"][model] > 0.5


def test_worker_processes_train_for_margins_as_this_process_does(tmp_path: Path) -> None:
    options = ["data.clients=12", "evaluate.baselines=false", "train.margin_radius=0.1"]
    found = [
        run_small(tmp_path / str(workers), [*options, f"engine.workers={workers}"])
        for workers in (1, 2)
    ]
    assert found[0]["accuracy"] == found[1]["accuracy"]
    models_ = [(tmp_path / str(workers) / "model.safetensors").read_bytes() for workers in (1, 2)]
    assert models_[0] == models_[1]


def test_what_cannot_be_trained_for_margins_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"train\.margin_radius must be 0 with DP-SGD"):
        small_config("train.margin_radius=0.1", "train.private=all")
    (tmp_path / "gated_network.py").write_text(GATED)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedOpError, match="mul"):
        run_small(tmp_path / "run", ["model.name=gated_network:build", "train.margin_radius=0.1"])
