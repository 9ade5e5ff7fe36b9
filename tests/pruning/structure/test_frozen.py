"""A network that can lose only some of its channels loses those, and says what stays and why."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fedprune import hardware
from fedprune.errors import PruningError
from fedprune.pruning import UnitLayout, mask_model, shrink


class GroupNormed(nn.Module):
    """A residual block as federated learning likes it: group norms of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(6, 12)
        self.inner, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), nn.GroupNorm(4, 8, affine=False)
        self.back, self.norm3 = nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.alone, self.norm4 = nn.Conv2d(12, 5, 1), nn.GroupNorm(1, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.stem(x)))
        y = functional.relu(self.norm2(self.inner(x)))
        x = functional.relu(x + self.norm3(self.back(y)))
        return self.out(functional.silu(self.norm4(self.alone(x))).mean((2, 3)))


class LayerNormed(nn.Module):
    """A multilayer perceptron in a residual stream with layer norms, and a tied pair of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.last, self.out = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.out(functional.relu(self.last(self.second(torch.tanh(self.first(x))))))


class Softmaxed(nn.Module):
    """One branch mixes its channels through an operation that no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.free = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 7, 3)
        self.read_mixed, self.read_free = nn.Conv2d(6, 4, 1), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.read_mixed(self.mixed(x).softmax(1))
        return (mixed + self.read_free(functional.relu(self.free(x)))).mean((2, 3))


def _vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24,
        num_classes=4,
    )  # fmt: skip


def _convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(8, 16, 1), setting(16, None, 2)], num_classes=4)


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [2, 2], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=4
    )


NETS: dict[str, tuple[Any, tuple[int, ...], dict[str, str]]] = {
    "group norm": (GroupNormed, (3, 8, 8), {}),
    "layer norm": (LayerNormed, (5,), {"enter": "LayerNorm", "first": "shares one parameter"}),
    "softmax": (Softmaxed, (3, 8, 8), {"mixed": "softmax"}),
    "vision transformer": (_vision_transformer, (3, 16, 16), {"conv_proj": "LayerNorm"}),
    "convnext": (_convnext, (3, 32, 32), {"features.0.0": "LayerNorm2d"}),
    "swin": (_swin, (3, 32, 32), {"features.0.0": "LayerNorm"}),
}
SIZES = {
    "group norm": [3, 4, 1],
    "layer norm": [16, 6],
    "softmax": [7],
    "vision transformer": [24, 24],
    "convnext": [32, 64, 64],
    "swin": [32],  # torch-pruning loses its way in the later windows
}


@cache
def network(name: str) -> tuple[nn.Module, Tensor, UnitLayout]:
    build, shape, _ = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = build().eval(), torch.randn(3, *shape)
        with torch.no_grad():
            for parameter in model.parameters():  # heads and scales that start at zero hide errors
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model, example, UnitLayout.of(model, example)


@pytest.mark.parametrize("name", NETS)
def test_what_can_go_are_units_and_what_cannot_is_named_with_the_reason(name: str) -> None:
    _, _, layout = network(name)
    assert [len(group) for group in layout.groups] == SIZES[name]
    reasons = {one.name: one.reason for one in layout.frozen}
    for layer, word in NETS[name][2].items():
        assert word in reasons[layer]
    assert all("\n" not in reason for reason in reasons.values())
    assert all(one.channels > 0 for one in layout.frozen)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), keep=st.sampled_from([0.0, 0.3, 0.7]))
def test_any_mask_shrinks_exactly_and_costs_what_an_independent_counter_finds(
    name: str, seed: int, keep: float
) -> None:
    model, example, layout = network(name)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(layout), generator=generator) < keep
    for group in layout.groups:
        mask[int(torch.randint(group.start, group.stop, (1,), generator=generator))] = True
    small, masked = shrink(model, layout, mask), mask_model(model, layout, mask)
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        expected, found = masked(example), small(example)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    assert layout.params(mask) == sum(p.numel() for p in small.parameters())
    cost = hardware.cost(small, example)
    assert (cost.params, cost.macs) == (layout.params(mask), layout.macs(mask))
    if name in ("group norm", "layer norm", "softmax", "convnext"):  # no products in attention
        with counter, torch.no_grad():
            small(example[:1])
        assert layout.macs(mask) == counter.get_total_flops() / 2


@pytest.mark.parametrize("name", [name for name in NETS if name != "swin"])
def test_what_is_left_has_the_units_that_were_kept(name: str) -> None:
    model, example, layout = network(name)
    mask = torch.arange(len(layout)) % 2 == 0
    for group in layout.groups:
        mask[group.start] = True
    again = UnitLayout.of(shrink(model, layout, mask), example)
    assert [len(g) for g in again.groups] == [int(mask[g.units].sum()) for g in layout.groups]


@pytest.mark.parametrize("name", NETS)
def test_the_dense_cost_is_the_models_own(name: str) -> None:
    model, example, layout = network(name)
    cost = hardware.cost(model, example)
    assert (layout.total_params, layout.total_macs) == (cost.params, cost.macs)


def test_channels_that_are_normalised_together_are_one_unit() -> None:
    model, _, layout = network("group norm")
    stem = {layer.name: layer for layer in layout.layers}["stem"]
    # Groups of 2 in one norm and of 4 in the other one, tied by the addition: 3 units of 4.
    assert stem.out_units.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    mask = torch.tensor([True, False, True, False, True, True, False, True])
    small: Any = shrink(model, layout, mask)
    assert [(n.num_groups, n.num_channels) for n in (small.norm1, small.norm2, small.norm3)] == [
        (4, 8), (2, 4), (2, 8)
    ]  # fmt: skip


def test_a_layout_without_frozen_operations_keeps_its_description() -> None:
    model, example, layout = network("group norm")
    assert "other_macs" not in layout.describe()
    assert UnitLayout.of(model, example).fingerprint == layout.fingerprint
    assert network("vision transformer")[2].describe()["other_macs"] > 0


def test_a_network_of_which_nothing_can_go_is_refused_with_the_first_reason() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.out = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.enter(x)))

    with pytest.raises(PruningError, match=r"Nothing cannot be pruned exactly: norm \(LayerNorm"):
        UnitLayout.of(Nothing(), torch.zeros(2, 5))


def test_groups_that_fail_only_together_are_frozen_until_what_is_left_is_exact() -> None:
    class Counting(nn.Module):
        """Removing channels of both layers changes what a sum over a shape says."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 6), nn.Linear(5, 7)
            self.read_left, self.read_right = nn.Linear(6, 4), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.left(x).relu(), self.right(x).relu()
            fewer = max(0, 6 - left.shape[1]) * max(0, 7 - right.shape[1])
            return self.read_left(left) + self.read_right(right) + fewer

    layout = UnitLayout.of(Counting(), torch.randn(3, 5))
    assert [(group.name, len(group)) for group in layout.groups] == [("left", 6)]
    assert [(one.name, one.channels) for one in layout.frozen] == [("right", 7)]
    assert "together with" in layout.frozen[0].reason
