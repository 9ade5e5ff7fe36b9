"""Networks that write into their inputs, mix examples or put out something else than classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import FedpruneError, ModelError, PruningError
from fedprune.pruning import CRITERIA, UnitLayout, mask_model, normalize, oracle, score_clients

# What a layer has read is overwritten behind it, so that no weight could be trained, and none has a
# gradient: `taylor_weights` has no answer.
SEEING = [name for name, one in CRITERIA.items() if one.sees_data and name != "taylor_weights"]


class Normalising(nn.Module):
    """It shifts and scales its own inputs in place, before and (if asked) after the first layer."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.enter, self.side, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.traceable = traceable

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2.0
        y = functional.relu(self.enter(x))
        x += 1.0
        if not self.traceable and float(x.sum()) > 1e9:  # a decision that no trace can follow
            y = y * 2
        return self.out((y + functional.relu(self.side(x))).mean((2, 3)))


class Pure(Normalising):
    """The same without writing anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone())


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("criterion", SEEING)
def test_a_network_that_writes_into_its_inputs_is_scored_like_one_that_does_not(
    criterion: str, traceable: bool, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    writing, pure = randomised(Normalising(traceable)), randomised(Pure(traceable))
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 3, 8, 8, generator=random)
    labels = torch.randint(0, 4, (7,), generator=random)
    clients = torch.tensor([5, 5, 0, 5, 0, 0, -1])
    kept = inputs.clone()
    found = score_clients(writing, UnitLayout.of(writing, inputs), inputs, labels, clients,
                          criterion, seed=1)  # fmt: skip
    assert torch.equal(inputs, kept)
    wanted = score_clients(pure, UnitLayout.of(pure, inputs), inputs, labels, clients,
                           criterion, seed=1)  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_oracle_of_a_network_that_writes_is_each_units_removal(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    model = randomised(Normalising(True))
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(9, 3, 8, 8, generator=random)
    labels = torch.randint(0, 4, (9,), generator=random)
    layout = UnitLayout.of(model, inputs)
    found = oracle(model, layout, inputs, labels)

    def loss(one: nn.Module) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(one(inputs.clone()).double(), labels))

    for unit in range(len(layout)):
        mask = torch.arange(len(layout)) != unit
        wanted = loss(mask_model(model, layout, mask)) - loss(model)
        assert abs(float(found[unit]) - wanted) < 1e-6


def _batch_normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def _maps() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, type[FedpruneError], str]] = {
    "statistics of the batch": (_batch_normed, IMAGES, PruningError, "1 of Sequential normalises"),
    "maps": (_maps, IMAGES, ModelError, r"puts out \[batch, classes\]; Sequential makes"),
    "other inputs": (_maps, IMAGES[:, :2], ModelError, r"does not run on inputs of shape \[\d, 2"),
    "integers": (_maps, IMAGES.long(), ModelError, "does not run on inputs of shape"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("criterion", ["taylor", "linear_logits", "taylor_weights", "oracle"])
def test_what_has_no_scores_by_example_is_refused_in_one_sentence(
    name: str, criterion: str
) -> None:
    build, inputs, kind, words = REFUSED[name]
    model = build().eval()
    layout = UnitLayout.of(model, IMAGES)
    labels, clients = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.raises(kind, match=words) as refused:
        score_clients(model, layout, inputs, labels, clients, criterion)
    assert "\n" not in str(refused.value)


def test_infinite_scores_cannot_be_normalised() -> None:
    model = _maps()
    layout = UnitLayout.of(model, IMAGES)
    scores = torch.tensor([1.0, 2.0, float("inf"), 0.0, 1.0, 1.0])
    assert torch.equal(normalize(scores, layout, "none"), scores)
    with pytest.raises(PruningError, match="scores must be finite to be compared"):
        normalize(scores, layout, "layer_mean")
