"""Networks that compute the same function: criteria of the gates cannot tell them apart."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from fedprune.pruning import CRITERIA

SIMULATIONS = str(Path(__file__).parents[3] / "simulations")
OF_THE_FUNCTION = [
    name
    for name in CRITERIA
    if name.startswith(("linear_logits", "taylor")) and name != "taylor_weights"
] + ["fisher", "oracle"]
CHANGES = ["scaled", "scaled before its norm", "split in halves", "silent channel added"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SIMULATIONS)
        yield importlib.import_module("criterion_symmetry")
    for name in ("criterion_symmetry", "_study"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(script: ModuleType) -> nn.Sequential:
    network = script.network((6, 8), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("norm1", "norm2"):
            norm = network.get_submodule(name)
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.add_(0.4 * torch.randn(tensor.shape, generator=generator))
            norm.running_var.mul_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 1, 8, 8, generator=generator)
    return inputs, torch.randint(10, (30,), generator=generator)


def found(
    script: ModuleType, model: nn.Sequential, batch: tuple[Tensor, Tensor], change: str, name: str
) -> dict[str, object]:
    verdict: dict[str, object] = script.verdict(
        *script.before_and_after(model, change, 2, name, batch)
    )
    return verdict


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_notation_leaves_the_function(
    script: ModuleType, model: nn.Sequential, batch: tuple[Tensor, Tensor], change: str
) -> None:
    other = script.CHANGES[change][0](model, 2)
    with torch.no_grad():
        torch.testing.assert_close(other(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("criterion", OF_THE_FUNCTION)
def test_criteria_of_the_gates_score_the_function_and_not_how_it_is_written(
    script: ModuleType,
    model: nn.Sequential,
    batch: tuple[Tensor, Tensor],
    criterion: str,
    change: str,
) -> None:
    assert found(script, model, batch, change, criterion)["same_scores"]


@pytest.mark.parametrize("criterion", OF_THE_FUNCTION)
def test_a_silent_channel_scores_nothing_by_its_function(
    script: ModuleType, model: nn.Sequential, batch: tuple[Tensor, Tensor], criterion: str
) -> None:
    _, _, new = script.before_and_after(model, "silent channel added", 2, criterion, batch)
    assert abs(new) < 1e-9


def test_weights_tell_the_same_function_apart_once_it_is_scaled(
    script: ModuleType, model: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    for change in CHANGES:
        assert not found(script, model, batch, change, "magnitude_l2")["same_scores"]
    before_norm = "scaled before its norm"
    least = int(model.conv1.weight.flatten(1).norm(dim=1).argmin())
    scores = script.before_and_after(model, before_norm, least, "magnitude_l2", batch)
    assert not script.verdict(*scores)["same_order"]
    for change in ("scaled", before_norm):
        assert found(script, model, batch, change, "taylor_weights")["same_scores"]
    assert not found(script, model, batch, "scaled", "bn_scale")["same_scores"]
    assert found(script, model, batch, before_norm, "bn_scale")["same_scores"]
