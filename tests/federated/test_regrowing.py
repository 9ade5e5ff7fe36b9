"""Removed units are asked about again, and come back where the votes say so."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_small, small_config
from torch import Tensor

from fedprune import pruning
from fedprune.audit import audit
from fedprune.errors import ConfigError
from fedprune.pruning import Regrowth
from fedprune.runs import RunFolder

STEPS = ("prune.schedule=geometric", "prune.steps=3", "prune.regrow=true")


def vote_events(path: Path, prefix: str = "") -> list[dict[str, Any]]:
    found = {event["phase"]: event["result"] for event in RunFolder.open(path).events()}
    return [found[f"{prefix}vote-{number}"] for number in (1, 2, 3)]


def units(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose votes are believed as if they had no error, so that units do come back."""
    path = tmp_path_factory.mktemp("runs") / "run"
    propose = pruning.propose_regrowth

    def believe(mask: Tensor, votes: Tensor, variances: Tensor, *rest: Any, **how: Any) -> Regrowth:
        return propose(mask, votes, torch.zeros_like(variances), *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "propose_regrowth", believe)
        run_small(path, [*STEPS, "privacy.epsilon=8"])
    return path


def test_every_step_asks_about_all_units_of_the_dense_network(run: Path) -> None:
    told = vote_events(run)
    votes = RunFolder.open(run).read_tensors("votes.safetensors")
    for number, event in enumerate(told, start=1):
        assert event["of"] == len(event["mask"]) == len(votes[f"step{number}.mean"])
    assert [event["units"] for event in told] == sorted(
        (event["units"] for event in told), reverse=True
    )


def test_units_come_back_only_for_units_with_lower_votes(run: Path) -> None:
    folder = RunFolder.open(run)
    for prefix in ("", "votes_without_noise/"):
        for before, event in pairwise(vote_events(run, prefix)):
            new = units(event["mask"]) & ~units(before["mask"])
            assert set(np.flatnonzero(new)) <= set(event["returned"])
            assert units(event["mask"]).sum() == event["units"]
    votes = folder.read_tensors("votes.safetensors")
    for number, event in enumerate(vote_events(run)[1:], start=2):
        mean = votes[f"step{number}.mean"]
        for back, gone in zip(event["returned"], event["went_for_them"], strict=True):
            assert mean[back] > mean[gone]


def test_units_did_come_back(run: Path) -> None:
    for prefix in ("", "votes_without_noise/"):
        told = vote_events(run, prefix)
        returned = [
            set(event["returned"]) - set(np.flatnonzero(units(before["mask"])))
            for before, event in pairwise(told)
        ]
        assert any(returned)


def test_noise_alone_brings_hardly_anything_back(tmp_path: Path) -> None:
    run_small(tmp_path / "run", [*STEPS, "privacy.epsilon=0.1", "evaluate.baselines=false"])
    assert [event["returned"] for event in vote_events(tmp_path / "run")[1:]] == [[], []]


def test_a_run_with_regrowth_audits_and_its_model_has_the_last_mask(run: Path) -> None:
    assert audit(run).holds
    model, architecture = RunFolder.open(run).load_pruned()
    assert (
        "".join("1" if keep else "0" for keep in architecture.mask) == vote_events(run)[-1]["mask"]
    )
    assert pruning.UnitLayout.of(model, torch.zeros(1, *architecture.input_shape))


def test_one_step_has_nothing_to_bring_back() -> None:
    with pytest.raises(ConfigError, match=r"prune\.steps must be at least 2 .* got 1"):
        small_config("prune.regrow=true")
