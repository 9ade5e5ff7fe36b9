"""A small, fast experiment that goes through every phase, for tests to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.federated.simulate import simulate
from fedprune.progress import Quiet

SMALL = (
    "data.clients=40",
    "model.name=mlp",
    "train.rounds=3",
    "train.fine_tune_rounds=1",
    "train.clients_per_round=10",
    "train.local_epochs=2",
    "evaluate.seeds=1",
    "evaluate.resamples=200",
)


def small_config(*overrides: str) -> Config:
    return configuration.load(None, [*SMALL, *overrides])


def run_small(out: Path, overrides: Sequence[str] = ()) -> dict:
    return simulate(small_config(*overrides), out, Quiet())
