"""Networks that others wrote: pruned exactly, scored rightly, or refused in one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fedprune import hardware, models
from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, mask_model, score, score_clients, select, shrink

PRUNABLE = {
    "resnet18": 32, "resnet50": 32, "resnext50_32x4d": 32, "vgg11_bn": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "efficientnet_b0": 32, "densenet121": 32, "squeezenet1_1": 32,
    "mnasnet0_5": 32, "regnet_y_400mf": 32, "googlenet": 32, "alexnet": 64,
    "convnext_tiny": 32,
}  # fmt: skip


def network(name: str, side: int) -> tuple[nn.Module, Tensor]:
    """The network with statistics as if it had been trained, so that outputs are of order 1."""
    model = models.load(name, num_classes=5, input_shape=(3, side, side), seed=1)
    inputs = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain mean over all batches
            module.train()
    with torch.no_grad():
        model(inputs)
    return model.eval(), inputs


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_shrunk_network_of_torchvision_equals_the_masked_one_and_costs_what_was_said(
    name: str,
) -> None:
    model, inputs = network(name, PRUNABLE[name])
    layout = UnitLayout.of(model, inputs[:1])
    scores = torch.rand(len(layout), generator=torch.Generator().manual_seed(3))
    mask = select(scores, layout, keep_units=0.6)
    small = shrink(model, layout, mask)
    with torch.no_grad():
        masked, shrunk = mask_model(model, layout, mask)(inputs), small(inputs)
    torch.testing.assert_close(
        shrunk, masked, rtol=0, atol=1e-5 * float(masked.abs().max()), check_stride=False
    )
    assert not torch.equal(shrunk, model(inputs))
    cost = hardware.cost(small, inputs[:1])
    assert (cost.params, cost.macs) == (layout.params(mask), layout.macs(mask))


def test_what_cannot_be_traced_is_refused_in_one_sentence() -> None:
    model = models.load("shufflenet_v2_x0_5", num_classes=5, input_shape=(3, 32, 32), seed=1)
    with pytest.raises(
        PruningError, match=r"ShuffleNetV2 .*split/chunk, transpose move channels"
    ) as refused:
        UnitLayout.of(model, torch.zeros(1, 3, 32, 32))
    assert "\n" not in str(refused.value)


def gated_loss(
    model: nn.Module, layout: UnitLayout, unit: int, gate: float, inputs: Tensor, labels: Tensor
) -> float:
    """Mean loss with one unit's gate set by multiplication at every site, and nothing else."""
    handles = []
    for site in layout.sites:
        column = torch.ones(len(site.units), dtype=torch.float64)
        column[torch.from_numpy(site.units) == unit] = gate
        handles.append(
            model.get_submodule(site.name).register_forward_hook(
                lambda _m, _i, out, c=column: out * c.reshape(-1, *[1] * (out.ndim - 2))
            )
        )
    with torch.no_grad():
        loss = float(functional.cross_entropy(model(inputs), labels))
    for handle in handles:
        handle.remove()
    return loss


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0"])
def test_scores_are_the_squared_slopes_of_the_loss_in_brute_force_gates(name: str) -> None:
    model, inputs = network(name, 32)
    layout = UnitLayout.of(model, inputs[:1])
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    precise, step = copy.deepcopy(model).double(), 1e-6
    units = torch.randperm(len(layout), generator=torch.Generator().manual_seed(5))[:10].tolist()
    slopes = [
        (gated_loss(precise, layout, unit, 1 + step, inputs.double(), labels)
         - gated_loss(precise, layout, unit, 1 - step, inputs.double(), labels)) / (2 * step)
        for unit in units
    ]  # fmt: skip
    expected = torch.tensor(slopes).square()
    found = score(precise, layout, [(inputs.double(), labels)])[units]
    torch.testing.assert_close(
        found, expected.float(), rtol=1e-3, atol=1e-5 * float(expected.max())
    )


def test_scores_do_not_depend_on_whether_a_network_overwrites_its_tensors() -> None:
    model, inputs = network("resnet18", 32)
    original = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    original.load_state_dict(model.state_dict())
    layout = UnitLayout.of(model, inputs[:1])
    assert UnitLayout.of(original, inputs[:1]).fingerprint == layout.fingerprint
    labels, clients = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
    found = score_clients(model, layout, inputs, labels, clients)
    wanted = score_clients(original, layout, inputs, labels, clients)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.max()))
