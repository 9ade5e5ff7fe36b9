"""A user's own network, named "package.module:function"."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedprune import models
from fedprune.errors import ConfigError, ModelError
from fedprune.named import is_reference


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network that starts in train mode and with dropout, as users' networks do."""
    layers = [nn.Conv2d(input_shape[0], 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    width = 4 * (input_shape[1] - 2) * (input_shape[2] - 2)
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def wrong_arguments(shape: tuple[int, ...]) -> nn.Module:
    return build(shape, 3)


def no_module(input_shape: tuple[int, ...], num_classes: int) -> object:
    return torch.zeros(*input_shape, num_classes)


def too_many_logits(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return build(input_shape, num_classes + 1)


def in_double(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(build(input_shape, num_classes), _Double())


def two_outputs(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(build(input_shape, num_classes), _Twice())


def not_finite(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    model = build(input_shape, num_classes)
    nn.init.constant_(model.get_parameter("4.bias"), float("nan"))
    return model


def does_not_run(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return build((input_shape[0] + 1, *input_shape[1:]), num_classes)


class _Double(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.double()


class _Twice(nn.Module):
    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits, logits


def load(function: str, **options: Any) -> nn.Module:
    return models.load(f"{__name__}:{function}", input_shape=(2, 6, 5), num_classes=3, **options)


def test_a_users_network_is_built_in_evaluation_mode_for_shape_and_classes() -> None:
    model = load("build")
    assert is_reference(f"{__name__}:build")
    assert model(torch.zeros(4, 2, 6, 5)).shape == (4, 3)
    assert not any(module.training for module in model.modules())


def test_a_seed_names_its_weights_and_leaves_the_process_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load("build", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_weights_from_a_file_replace_those_that_it_was_built_with(tmp_path: Path) -> None:
    wanted = load("build", seed=5).state_dict()
    save_file(wanted, tmp_path / "own.safetensors")
    found = load("build", seed=6, weights=tmp_path / "own.safetensors").state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_module_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network_of_a_folder.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, num_classes):\n"
        "    return nn.Linear(input_shape[0], num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = models.load("network_of_a_folder:build", input_shape=(7,), num_classes=2)
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_arguments", r"fails as a function of input_shape \[2, 6, 5\] .*TypeError"),
        ("no_module", r"must return a torch.nn.Module, got Tensor"),
        ("too_many_logits", r"logits, float32 of shape \[1, 3\], got float32 of shape \[1, 4\]"),
        ("in_double", r"float32 of shape \[1, 3\], got float64 of shape \[1, 3\]"),
        ("two_outputs", r"float32 of shape \[1, 3\], got tuple"),
        ("not_finite", r"gives values that are not finite"),
        ("does_not_run", r"does not run on an example of shape \[2, 6, 5\]: RuntimeError"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_sentence_that_names_it(
    function: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        load(function)
    assert f"'{__name__}:{function}'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_function_that_is_not_there_and_a_shape_that_is_not_given_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.name = .* has no function 'nothing'"):
        load("nothing")
    with pytest.raises(ConfigError, match=r"model.name = 'no_such_module:f' cannot be imported"):
        models.load("no_such_module:f", input_shape=(3,))
    with pytest.raises(ModelError, match=r"input_shape must be given"):
        models.load(f"{__name__}:build")
