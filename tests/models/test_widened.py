"""Widened dense layers: the same function, and every row of a batch rounded alike."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedprune.models.widened import widen


@pytest.mark.parametrize(("inside", "outside"), [(21, 10), (16, 3), (5, 32), (32, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_widened_layer_computes_what_it_computed(inside: int, outside: int, bias: bool) -> None:
    layer = nn.Linear(inside, outside, bias=bias)
    twin = copy.deepcopy(layer)
    widen(twin)
    for inputs in (torch.randn(7, inside), torch.randn(2, 3, inside)):
        torch.testing.assert_close(twin(inputs), layer(inputs), rtol=1e-5, atol=1e-6)
        wanted = torch.autograd.grad(layer(inputs).square().sum(), list(layer.parameters()))
        found = torch.autograd.grad(twin(inputs).square().sum(), list(twin.parameters()))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert twin.state_dict().keys() == layer.state_dict().keys()


def test_rows_of_a_widened_layer_do_not_depend_on_their_place() -> None:
    layer = nn.Linear(21, 10)
    widen(layer)
    random = torch.Generator().manual_seed(1)
    for rows in (2, 8, 13, 32):
        inputs = torch.randn(rows, 21, generator=random)
        order = torch.randperm(rows, generator=random)
        assert torch.equal(layer(inputs)[order], layer(inputs[order]))


def test_a_copy_of_a_widened_network_has_weights_of_its_own() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    widen(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin[0].weight.zero_()
        twin[0].bias.zero_()
    inputs = torch.ones(1, 3)
    assert torch.equal(twin(inputs), twin(inputs * 5))
    assert not torch.equal(network(inputs), network(inputs * 5))
