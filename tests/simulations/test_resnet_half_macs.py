"""The long fine-tuning study: it goes on where it stopped, and ends the same."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedprune import data

SIMULATIONS = str(Path(__file__).parents[2] / "simulations")


@pytest.fixture
def script(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a few rows."""
    whole = data.load("cifar10", str(data_root), seed=1)
    few = {"train": whole.train.take(np.arange(300)), "test": whole.test.take(np.arange(40))}
    monkeypatch.syspath_prepend(SIMULATIONS)
    module = importlib.import_module("resnet_half_macs")
    monkeypatch.setattr(module.data, "load", lambda *_, **__: replace(whole, **few))
    monkeypatch.setattr(module, "SCORED", 100)
    monkeypatch.setattr(module, "RECALIBRATED_BATCH", 50)
    yield module
    for name in ("resnet_half_macs", "_half_macs", "_central"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mixtures_are_of_two_images_and_of_their_labels(share: float) -> None:
    rows = data.load("cifar10").train
    views = importlib.import_module("_central").Views(rows, 300, 3, 1, share)
    views.logits = [torch.zeros(300, 10)] * 3
    places, turn = torch.arange(300), torch.full((300,), 1)
    own = views._own[1]
    targets = views.targets(places, turn, 10)
    plain = views.plain_inputs(places, turn)
    other = views.plain_inputs(views._other[1], turn)
    kept = own[:, None, None, None]
    torch.testing.assert_close(views.inputs(places, turn), kept * plain + (1 - kept) * other)
    torch.testing.assert_close(targets.sum(1), torch.ones(300))
    labels = rows.targets(slice(0, 300))
    assert (targets[places, labels] >= own - 1e-6).all()
    assert own.min() >= 0.5
    assert ((own < 1).double().mean() - share).abs() < 0.1
    inputs, wanted, _ = next(views.batches(300, 1, np.random.default_rng(2)))
    assert bool((wanted.max(1).values == 1).all()) is (share == 0)
    first = {
        mixed: next(views.first_views(300, np.random.default_rng(2), mixed=mixed))
        for mixed in (False, True)
    }
    assert first[False].shape == first[True].shape == inputs.shape
    changed = (first[False] != first[True]).flatten(1).any(1)
    order = torch.from_numpy(np.random.default_rng(2).permutation(300))
    assert torch.equal(changed, views._own[views._first[order], order] < 1)


@pytest.mark.usefixtures("script")
def test_every_cycle_has_views_of_its_own() -> None:
    rows = data.load("cifar10").train
    made = importlib.import_module("_central").Views
    places, turn = torch.arange(300), torch.zeros(300, dtype=torch.int64)
    first, again, second = (made(rows, 300, 2, 1, 0.5, cycle) for cycle in (0, 0, 1))
    assert torch.equal(first.inputs(places, turn), again.inputs(places, turn))
    differ = (first.inputs(places, turn) != second.inputs(places, turn)).flatten(1).any(1)
    assert differ.double().mean() > 0.9


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_teacher_is_asked_in_order_however_many_threads_ask(threads: int) -> None:
    rows = data.load("cifar10").train
    views = importlib.import_module("_central").Views(rows, 300, 2, 1, 0.5)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
    found = views.ask(teacher, 1, contextlib.nullcontext, threads)
    inputs = views.inputs(torch.arange(300), torch.ones(300, dtype=torch.int64))
    torch.testing.assert_close(found, teacher(inputs).detach(), rtol=1e-4, atol=1e-4)


def options(root: Path, work: Path) -> argparse.Namespace:
    return argparse.Namespace(
        root=str(root), network="resnet20", weights=str(root / "weights/resnet20-12fca82f.th"),
        keep_macs=0.5, criterion="taylor", fill="value", steps=2,
        minibatches=1, epochs=2, restart=[1, 1], rate=0.05, weight_decay=5e-4,
        distill=0.5, teacher=None, teacher_weights=None, views=2, mixed=0.5,
        statistics="plain", bfloat16=False, threads=2, seed=1,
        images=256, work=work, out=None,
    )  # fmt: skip


class StoppedError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("kept", [1, 4, 5])
def test_a_study_that_was_stopped_ends_as_one_that_was_not(
    script: ModuleType,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:
    expected = script.Study(options(data_root, tmp_path / "whole")).run()
    stopped = script.Study(options(data_root, tmp_path / "stopped"))
    left = iter(range(kept))
    keep = stopped._keep

    def crash(state: Any) -> None:
        if next(left, None) is None:
            raise StoppedError
        keep(state)

    monkeypatch.setattr(stopped, "_keep", crash)
    with pytest.raises(StoppedError):
        stopped.run()
    found = script.Study(options(data_root, tmp_path / "stopped")).run()
    assert found["macs"] == expected["macs"]
    assert found["macs"]["times_fewer"] >= 2
    for name, tensor in load_file(tmp_path / "whole" / "state.safetensors").items():
        other = load_file(tmp_path / "stopped" / "state.safetensors")[name]
        assert torch.equal(tensor, other), name


def test_a_second_cycle_starts_from_the_average_at_half_of_the_rate(
    script: ModuleType, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(data_root, tmp_path)
    begun: list[tuple[float, dict[str, torch.Tensor]]] = []
    made = script.Training

    def noted(model: torch.nn.Module, recipe: Any, **rest: Any) -> Any:
        begun.append((recipe.rate, {k: t.clone() for k, t in model.state_dict().items()}))
        return made(model, recipe, **rest)

    monkeypatch.setattr(script, "Training", noted)
    study = script.Study(asked)
    keep, averages = study._keep, []

    def keeping(state: Any) -> None:
        averages.append({k: t.clone() for k, t in script.part(state, "average.").items()})
        keep(state)

    monkeypatch.setattr(study, "_keep", keeping)
    found = study.run()
    assert len(found["epochs"]) == 4
    restarted = [state for rate, state in begun if rate == 0.025]
    ends = averages[3:]  # after two steps of pruning and one epoch every epoch ends a cycle
    assert len(restarted) == 2
    for end, start in zip(ends, restarted, strict=False):
        for name, tensor in end.items():
            assert torch.equal(tensor, start[name]), name
    final = script.part(load_file(tmp_path / "state.safetensors"), "final.")
    for name, tensor in final.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(tensor, sum(end[name] for end in ends[:3]) / 3)
    assert len(found["accuracy"]["each_cycle"]) == 3


def test_statistics_of_the_views_are_reported_where_asked_and_training_is_the_same(
    script: ModuleType, data_root: Path, tmp_path: Path
) -> None:
    for statistics in ("plain", "views"):
        asked = options(data_root, tmp_path / statistics)
        asked.statistics = statistics
        script.Study(asked).run()
    plain, views = (load_file(tmp_path / name / "state.safetensors") for name in ("plain", "views"))
    assert plain.keys() == views.keys()
    for name, tensor in plain.items():
        moves = name.startswith("final.") and "running" in name
        assert torch.equal(tensor, views[name]) is not moves, name


def test_another_study_is_not_continued_in_the_same_folder(
    script: ModuleType, data_root: Path, tmp_path: Path
) -> None:
    asked = options(data_root, tmp_path)
    script.Study(asked)._keep({})
    asked.seed = 2
    with pytest.raises(SystemExit, match="other settings"):
        script.Study(asked)
