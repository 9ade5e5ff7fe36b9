"""Closing a gate is exact as far as the activation that reads it, whatever that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import pruning

Activation = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """A convolution and norm, added to what came before or not, an activation, linear after it."""

    def __init__(self, activation: Activation, join: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 4)
        if isinstance(activation, nn.Module):
            self.module = activation
        self.activation, self.join = [activation], join

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.conv(x))
        if self.join == "out of place":
            y = x + y
        elif self.join == "in place":
            y += x
        elif self.join == "twice":
            y = y + y.abs()
        elif self.join == "data":
            y = x + y if float(x.sum()) > -1e9 else y
        after = self.module(y) if hasattr(self, "module") else self.activation[0](y)
        return self.out(after.mean((2, 3)))


def network(activation: Activation, join: str) -> nn.Module:
    torch.manual_seed(3)
    model = Block(activation, join)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.weight.data.normal_(1, 0.3)
    model.norm.bias.data.normal_()
    return model.eval()


def scored(model: nn.Module, criterion: str) -> tuple[Tensor, Tensor]:
    """Scores of the gates behind the norm, by the criterion and by the oracle."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 3, 5, 5, generator=draw)
    labels = torch.randint(0, 4, (12,), generator=draw)
    layout = pruning.UnitLayout.of(model, inputs[:1])
    gates = pruning.separate_gates(layout)
    place = next(group for group in gates.groups if group.name == "norm")
    units = slice(place.start, place.stop)
    found = pruning.score(model, gates, [(inputs, labels)], criterion)[units]
    truth = pruning.oracle(model, gates, inputs, labels).abs()[units]
    return found.double(), truth.double()


ACTIVATIONS: dict[str, Activation] = {
    "relu": functional.relu,
    "module": nn.ReLU(inplace=True),
    "method": lambda x: x.relu(),
    "gelu": nn.GELU(),
    "silu": functional.silu,
    "hardswish": nn.Hardswish(),
    "leaky": lambda x: functional.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("join", ["alone", "out of place", "in place"])
def test_where_all_after_the_activation_is_linear_the_criterion_is_the_oracle(
    name: str, join: str
) -> None:
    found, truth = scored(network(ACTIVATIONS[name], join), "linear_logits_all")
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-5)
    assert truth.min() > 0


@pytest.mark.parametrize("join", ["twice", "data"])
def test_a_gate_that_is_read_otherwise_is_taken_by_its_slope(join: str) -> None:
    found, truth = scored(network(functional.silu, join), "linear_logits_all")
    assert found.isfinite().all()
    assert found.max() > 0
    assert not torch.allclose(found, truth, rtol=1e-2)


def test_slopes_alone_are_not_exact_there() -> None:
    """The control: without secants the same network and criterion are off by far."""
    model = network(functional.relu, "out of place")
    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(12, 3, 5, 5, generator=draw), torch.arange(12) % 4
    gates = pruning.separate_gates(pruning.UnitLayout.of(model, inputs[:1]))
    taylor = pruning.score(model, gates, [(inputs, labels)], "taylor_separate")
    truth = pruning.oracle(model, gates, inputs, labels).abs()
    assert not torch.allclose(taylor.double(), truth, rtol=0.05)


def test_clients_and_batches_agree_with_secants_too() -> None:
    model = network(functional.gelu, "in place")
    draw = torch.Generator().manual_seed(2)
    inputs, labels = torch.randn(9, 3, 5, 5, generator=draw), torch.arange(9) % 4
    gates = pruning.separate_gates(pruning.UnitLayout.of(model, inputs[:1]))
    clients = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    together = pruning.score_clients(
        model, gates, inputs, labels, clients, criterion="linear_logits"
    )
    for client in (0, 1):
        own = clients == client
        alone = pruning.score(model, gates, [(inputs[own], labels[own])], "linear_logits")
        torch.testing.assert_close(together[client], alone, rtol=1e-4, atol=1e-6)
