from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedprune import models
from fedprune.errors import ModelError


def state_of(name: str = "resnet20", seed: int = 3) -> dict[str, Tensor]:
    return models.load(name, seed=seed).state_dict()


def trained_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The public layout: data-parallel prefix, no counters, nothing for the shortcuts."""
    kept = {k: v for k, v in state.items() if "shortcut" not in k and "num_batches" not in k}
    return {f"module.{key}": value for key, value in kept.items()}


def assert_same(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("suffix", ["th", "pth", "pt"])
def test_the_public_checkpoint_layout_is_understood(tmp_path: Path, suffix: str) -> None:
    state = state_of()
    path = tmp_path / f"weights.{suffix}"
    torch.save({"state_dict": trained_layout(state), "best_prec1": 91.7}, path)
    assert_same(models.load("resnet20", weights=path), state)


def test_a_state_survives_safetensors(tmp_path: Path) -> None:
    state = state_of()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    assert_same(models.load("resnet20", weights=str(path), seed=9), state)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    state = state_of("mlp")
    path = tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in state.items()}, path)
    model = models.load("mlp", weights=path)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.get_parameter("fc1.bias"), state["fc1.bias"].half().float())


def changed(key: str, value: Tensor | None) -> dict[str, Tensor]:
    state = dict(state_of())
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("linear.bias", None, "lacks linear.bias, which the model needs"),
        ("linear.beta", torch.zeros(2), "has linear.beta, which the model has not"),
        ("linear.bias", torch.zeros(9), r"linear.bias in .* has shape \[9\], .* wants \[10\]"),
        ("linear.bias", torch.full((10,), torch.nan), "linear.bias in .* not finite"),
        ("linear.bias", torch.zeros(10, dtype=torch.int64), "linear.bias in .* is torch.int64"),
        (
            "layer2.0.shortcut.weight",
            torch.ones(32, 16, 1, 1),
            "changes layer2.0.shortcut.weight, a fixed selection",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_its_key(
    tmp_path: Path, key: str, value: Tensor | None, message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(changed(key, value), path)
    with pytest.raises(ModelError, match=message):
        models.load("resnet20", weights=path)


def test_many_missing_keys_are_counted_rather_than_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"linear.bias": torch.zeros(10)}, path)
    with pytest.raises(ModelError, match=r"lacks .*, .*, .* and \d+ more, which"):
        models.load("resnet20", weights=path)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no weights file .*absent\.th"):
        models.load("resnet20", weights=tmp_path / "absent.th")
    with pytest.raises(ModelError, match=r"ending in \.th, .*\.safetensors, got .*weights\.bin"):
        models.load("resnet20", weights=tmp_path / "weights.bin")


@pytest.mark.parametrize("suffix", ["th", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", bytes(range(256)) * 4])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot read the weights file"):
        models.load("resnet20", weights=path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"fc1.weight": "text"}, {1: torch.zeros(1)}])
def test_a_file_without_a_state_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match="weights file"):
        models.load("mlp", weights=path)


class _RunsACommand:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def test_a_weights_file_cannot_run_anything(tmp_path: Path) -> None:
    path, witness = tmp_path / "weights.pth", tmp_path / "it-ran"
    torch.save({"state_dict": _RunsACommand(witness)}, path)
    with pytest.raises(ModelError, match="cannot read the weights file"):
        models.load("resnet20", weights=path)
    assert not witness.exists()
