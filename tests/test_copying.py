from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from fedprune import pruning
from fedprune.copying import copy_model
from fedprune.errors import ModelError

INPUTS = torch.linspace(-1, 1, 12).view(2, 6)


class _Keeps(nn.Module):
    """Keeps the features of its last call for whoever asks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.first(x))
        self.seen = {"features": [features]}
        return torch.as_tensor(self.last(features))


def _perceptron(layer: Any = lambda module: module) -> nn.Module:
    return nn.Sequential(
        layer(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
    )


NETWORKS = {
    "features": _Keeps,
    "spectral norm": lambda: _perceptron(spectral_norm),
    "weight norm": lambda: _perceptron(weight_norm),
    "masked weights": lambda: _perceptron(lambda one: prune.l1_unstructured(one, "weight", 2)),
}


def _called(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    model(INPUTS)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_that_keeps_results_of_its_last_call_is_copied(name: str) -> None:
    model = _called(name)
    copied = copy_model(model)
    assert torch.equal(copied(INPUTS), model(INPUTS))
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in copied.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("name", NETWORKS)
def test_such_a_model_is_scored_and_pruned_after_a_call_as_before_it(name: str) -> None:
    """A layer that computes its weights keeps its channels: five units are left in each network."""
    model = _called(name)
    layout = pruning.UnitLayout.of(model, INPUTS[:1])
    labels = torch.tensor([0, 2])
    mask = torch.tensor([True, False, True, True, False])
    for criterion in ("taylor", "linear_logits", "oracle", "taylor_weights"):
        model(INPUTS)
        found = pruning.score(model, layout, [(INPUTS, labels)], criterion=criterion)
        assert found.shape == (5,)
    model(INPUTS)
    small, silent = pruning.shrink(model, layout, mask), pruning.mask_model(model, layout, mask)
    torch.testing.assert_close(small(INPUTS), silent(INPUTS))


def test_what_is_shared_is_not_copied() -> None:
    model = _perceptron()
    copied = copy_model(model, shared=model.parameters())
    assert copied is not model
    for mine, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        assert mine is theirs


def test_a_model_with_a_lock_is_refused_in_one_sentence() -> None:
    model = _perceptron()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"^Sequential cannot be copied: .*lock"):
        copy_model(model)
