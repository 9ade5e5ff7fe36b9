"""The run folder: atomic files, torn events, architectures that rebuild exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedprune import config as configuration
from fedprune import models, pruning
from fedprune.errors import LayoutMismatchError, RunError
from fedprune.runs import Architecture, RunFolder, load_weights_vector, weights_vector


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", configuration.load())


def test_a_phase_runs_once_and_its_result_is_remembered(folder: RunFolder) -> None:
    calls = []

    def action() -> dict:
        calls.append(1)
        return {"value": len(calls)}

    assert folder.phase("a", action) == {"value": 1}
    assert folder.phase("a", action) == {"value": 1}
    assert RunFolder.open(folder.path).phase("a", action) == {"value": 1}
    assert len(calls) == 1


def test_a_phase_that_fails_is_not_finished(folder: RunFolder) -> None:
    def failing() -> dict:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        folder.phase("a", failing)
    assert folder.events() == []
    assert folder.phase("a", lambda: {"ok": 1}) == {"ok": 1}


def test_a_torn_last_event_is_cut_off_and_a_torn_middle_is_damage(folder: RunFolder) -> None:
    folder.phase("a", dict)
    path = folder.path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"phase": "b", "resu')
    again = RunFolder.open(folder.path)
    assert [event["phase"] for event in again.events()] == ["a"]
    again.phase("b", dict)
    assert [event["phase"] for event in again.events()] == ["a", "b"]
    path.write_bytes(b"{torn\n" + whole)
    with pytest.raises(RunError, match="is damaged"):
        RunFolder.open(folder.path).events()


def test_a_file_that_cannot_be_written_leaves_the_old_one(folder: RunFolder) -> None:
    folder.write_text("x.txt", "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("x.txt", {"x": float("nan")})
    assert (folder.path / "x.txt").read_text() == "old"
    (folder.path / "is-a-file").write_text("")
    with pytest.raises((RunError, OSError)):
        folder.write_text("is-a-file/x", "new")
    assert [p.name for p in folder.path.iterdir() if p.name.endswith(".tmp")] == []


def test_what_a_killed_process_had_begun_to_write_is_gone_when_the_run_goes_on(
    folder: RunFolder,
) -> None:
    other = RunFolder.create(folder.path / "seeds" / "seed-2", configuration.load())
    begun = [".summary.json.71.tmp", "checkpoints/.vote-1.safetensors.72.tmp"]
    own = ["notes.tmp", ".hidden", "checkpoints/.a.tmp"]
    for name in (*begun, *own, "seeds/seed-2/.summary.json.73.tmp"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(b"half")
    with folder.locked():
        assert [name for name in begun if (folder.path / name).exists()] == []
        assert [name for name in own if not (folder.path / name).exists()] == []
        assert (other.path / ".summary.json.73.tmp").exists()  # another process may be writing it
        folder.write_text("summary.json", "whole")
        (folder.path / ".x.json.1.tmp").write_bytes(b"being written")
        with pytest.raises(RunError, match="in use"), folder.locked():
            pass
        assert (folder.path / ".x.json.1.tmp").exists()
    with other.locked():
        assert not (other.path / ".summary.json.73.tmp").exists()


def test_damaged_and_missing_files_are_one_sentence(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"has no summary\.json; is it finished\?"):
        folder.read_json("summary.json")
    folder.write_text("summary.json", "[]")
    with pytest.raises(RunError, match="not a JSON object"):
        folder.read_json("summary.json")
    folder.write_text("w.safetensors", "no tensors")
    with pytest.raises(RunError, match="cannot read"):
        folder.read_tensors("w.safetensors")


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (1, 8, 8)), ("lenet", (1, 8, 8)), ("resnet20", (3, 32, 32))]
)
def test_a_pruned_model_rebuilds_from_words_and_weights(
    folder: RunFolder, name: str, shape: tuple[int, ...]
) -> None:
    dense = Architecture.dense(name, 10, shape)
    model = models.load(name, num_classes=10, input_shape=shape, seed=3)
    layout = dense.dense_layout
    scores = torch.rand(len(layout), generator=torch.Generator().manual_seed(0))
    mask = pruning.select(scores, layout, keep_units=0.4)
    small = pruning.shrink(model, layout, mask)
    architecture = Architecture.from_json(dense.with_mask(mask).to_json())
    folder.write_model(small, "model.safetensors")
    folder.write_model(model, "dense.safetensors")
    folder.write_text("architecture.json", architecture.to_json())
    inputs = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(folder.load_pruned()[0](inputs), small(inputs))
    assert torch.equal(folder.load_dense()[0](inputs), model(inputs))
    assert torch.equal(architecture.mask, mask)


def test_pruning_twice_equals_pruning_once_by_the_composed_mask() -> None:
    dense = Architecture.dense("lenet", 10, (1, 8, 8))
    model, layout = dense.build()
    generator = torch.Generator().manual_seed(0)
    first = pruning.select(torch.rand(len(layout), generator=generator), layout, keep_units=0.7)
    once, middle = dense.with_mask(first).build()
    load_weights_vector(once, weights_vector(pruning.shrink(model, layout, first)))
    second = pruning.select(torch.rand(len(middle), generator=generator), middle, keep_units=0.5)
    twice = pruning.shrink(once, middle, second)
    composed = pruning.compose_masks(first, second)
    direct = pruning.shrink(model, layout, composed)
    inputs = torch.rand(3, 1, 8, 8)
    assert torch.allclose(twice(inputs), direct(inputs), atol=1e-6)
    assert weights_vector(twice).shape == weights_vector(dense.with_mask(composed).build()[0]).shape


def test_what_does_not_fit_is_refused() -> None:
    dense = Architecture.dense("mlp", 10, (1, 8, 8))
    with pytest.raises(LayoutMismatchError, match="is asked for"):
        replace(dense, layout="0" * 64).build()
    with pytest.raises(LayoutMismatchError, match="units, the mask names 3"):
        replace(dense, kept="101").build()
    with pytest.raises(RunError, match="as 0 and 1"):
        Architecture.from_json(replace(dense, kept="1x").to_json())
    with pytest.raises(RunError, match="not an architecture"):
        Architecture.from_json(json.dumps({"model": "mlp"}))
    model, _ = dense.build()
    with pytest.raises(RunError, match="weights must have"):
        load_weights_vector(model, torch.zeros(3))
