from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import hardware, models
from fedprune.errors import LayoutMismatchError, ModelError, PruningError
from fedprune.pruning import UnitLayout, score

UNITS = {
    "plain": [6, 5, 7],
    "residual": [6, 5, 8],
    "concat": [4, 6, 5],
    "grouped": [6, 4 * 2, 5],
    "sigmoid": [6, 9],
    "gate": [8, 3, 6],
    "signal": [6],
    "recurrent": [8],
    "pre_activation": [6, 5],
}


@pytest.mark.parametrize("name", [name for name in UNITS if name != "grouped"])
def test_tied_channels_are_one_unit(build: Any, name: str) -> None:
    layout = UnitLayout.of(*build(name))
    assert [len(group) for group in layout.groups] == UNITS[name]
    assert len(layout) == sum(UNITS[name])


def test_grouped_channels_go_together_so_that_groups_stay_alike(build: Any) -> None:
    layout = UnitLayout.of(*build("grouped"))
    # 12 inputs in 2 groups are 6 units, their 8 outputs in 2 groups are 4, shared with a depthwise.
    assert [len(group) for group in layout.groups] == [6, 4, 5]


def test_groups_are_neighbours_in_forward_order(build: Any) -> None:
    layout = UnitLayout.of(*build("residual"))
    assert [group.name for group in layout.groups] == ["stem", "inner", "down"]
    assert layout.group_of.tolist() == [0] * 6 + [1] * 5 + [2] * 8
    assert layout.group_of.dtype == torch.int64


def test_resnet20_has_448_units_in_12_groups() -> None:
    model = models.load("resnet20", weights="", num_classes=10)
    layout = UnitLayout.of(model, torch.randn(1, 3, 32, 32))
    assert len(layout) == 448
    assert [len(group) for group in layout.groups] == [16] * 4 + [32] * 4 + [64] * 4
    assert layout.total_params == 269_722  # the published 0.27 million
    assert layout.total_macs == hardware.cost(model, torch.randn(1, 3, 32, 32)).macs


@pytest.mark.parametrize("name", UNITS)
def test_the_dense_cost_is_the_models_own(build: Any, name: str) -> None:
    model, example = build(name)
    layout, cost = UnitLayout.of(model, example), hardware.cost(model, example)
    assert layout.total_params == sum(p.numel() for p in model.parameters()) == cost.params
    assert layout.total_macs == cost.macs


@pytest.mark.parametrize("name", UNITS)
def test_a_units_own_cost_is_what_its_removal_saves(build: Any, name: str) -> None:
    layout = UnitLayout.of(*build(name))
    for unit in range(len(layout)):
        mask = torch.ones(len(layout), dtype=torch.bool)
        mask[unit] = False
        assert layout.unit_params[unit] == layout.total_params - layout.params(mask)
        assert layout.unit_macs[unit] == layout.total_macs - layout.macs(mask)


def test_a_hand_counted_network_costs_what_we_count(build: Any) -> None:
    layout = UnitLayout.of(*build("plain"))
    mask = torch.ones(len(layout), dtype=torch.bool)
    mask[[0, 1, 6, 11, 12]] = False  # leaves 4 of conv1, 4 of conv2, 5 of hidden
    conv1, conv2 = 4 * 3 * 9, 4 * 4 * 9
    hidden, out = 5 * (4 * 4), 4 * 5
    assert layout.params(mask) == conv1 + 4 + conv2 + 4 + hidden + 5 + out + 4
    assert layout.macs(mask) == conv1 * 100 + conv2 * 4 + hidden + out


def test_the_model_is_not_changed(build: Any) -> None:
    model, example = build("residual")
    model.train()
    model.stem_bn.eval()
    model.skip.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    UnitLayout.of(model, example)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


def test_the_fingerprint_tells_structure_and_not_weights(build: Any) -> None:
    model, example = build("residual")
    first = UnitLayout.of(model, example)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3.0)
    assert UnitLayout.of(model, example).fingerprint == first.fingerprint
    assert UnitLayout.of(model.train(), example[:1]).fingerprint == first.fingerprint
    wider = torch.randn(1, 3, 12, 12)
    assert UnitLayout.of(model, wider).fingerprint != first.fingerprint
    model.out = nn.Linear(8, 5)
    assert UnitLayout.of(model, example).fingerprint != first.fingerprint
    assert len(first.fingerprint) == 64


def test_a_known_layout_keeps_its_fingerprint_for_ever() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    layout = UnitLayout.of(model, torch.zeros(1, 2))
    expected = {
        "format": 1,
        "num_units": 3,
        "input_shape": [2],
        "groups": [["0", 0, 3]],
        "layers": [
            {
                "name": "0", "kind": "linear", "in_units": [-1, -1], "out_units": [0, 1, 2],
                "kernel": 1, "groups": 1, "vectors": 1, "positions": 1, "is_selection": False,
            },
            {
                "name": "2", "kind": "linear", "in_units": [0, 1, 2], "out_units": [-1, -1],
                "kernel": 1, "groups": 1, "vectors": 1, "positions": 1, "is_selection": False,
            },
        ],
        "other_params": 0,
    }  # fmt: skip
    assert json.loads(json.dumps(layout.describe())) == expected
    assert layout.fingerprint == "b18bfe658279a23b9dd6e01c809399e1dea1838278a400abd6482f5c18e4e758"


def test_frozen_layers_have_units_too(build: Any) -> None:
    model, example = build("residual")
    assert len(UnitLayout.of(model.requires_grad_(False), example)) == 19


def test_halves_of_one_layer_that_are_added_are_tied() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.conv(x))
            half = x.shape[1] // 2
            return self.out((x[:, :half] + x[:, half:]).mean((2, 3)))

    # Channels i and i + 4 are tied; kept channels stay halves of what is left.
    assert len(UnitLayout.of(Folded(), torch.randn(2, 3, 4, 4))) == 4


class Bare(nn.Module):
    def __init__(self, operation: Any, parts: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.parts = nn.Conv2d(3, 8, 3), parts
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.out = nn.Linear(8, 4)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.operation(self, self.conv(x)).mean((2, 3)))


REFUSED = {
    "LayerNorm": Bare(lambda m, x: m.parts(x), nn.LayerNorm([8, 6, 6])),
    "scale": Bare(lambda m, x: x * m.scale),
    "softmax": Bare(lambda _, x: x.softmax(1)),
    "conv": Bare(lambda _, x: x + x.mean(1, keepdim=True)),
    "transpose": Bare(
        lambda _, x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2) + x.flip(1)
    ),
}


@pytest.mark.parametrize("culprit", REFUSED)
def test_what_cannot_be_removed_exactly_is_refused_by_name(culprit: str) -> None:
    with pytest.raises(PruningError, match=rf"Bare .*{culprit}") as caught:
        UnitLayout.of(REFUSED[culprit], torch.randn(2, 3, 8, 8))
    assert "\n" not in str(caught.value)


class Tokens(nn.Module):
    """Integer inputs, a learned scalar, and a dtype of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(9, 6), nn.Linear(6, 7), nn.Linear(7, 3)
        self.heat = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.words(x).mean(1))) * self.heat)


def test_integer_inputs_and_scalar_parameters_are_no_obstacle() -> None:
    model, tokens = Tokens(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    layout = UnitLayout.of(model, tokens)
    assert len(layout) == 7
    assert layout.total_params == sum(p.numel() for p in model.parameters())
    assert (score(model, layout, [(tokens, torch.tensor([0, 2]))]) >= 0).all()


def test_a_model_may_insist_on_its_dtype_and_weights_but_must_give_finite_outputs() -> None:
    class Single(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    class Fussy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self[0].bias.sqrt().sum()

    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)]
    assert len(UnitLayout.of(Single(*layers), torch.randn(2, 3))) == 5
    fussy = Fussy(*layers)
    with torch.no_grad():
        layers[0].bias.fill_(4.0)
    assert len(UnitLayout.of(fussy, torch.randn(2, 3))) == 5
    with torch.no_grad():
        layers[0].bias.fill_(-4.0)
    with pytest.raises(ModelError, match="Fussy gives no finite output"):
        UnitLayout.of(fussy, torch.randn(2, 3))


def test_shufflenet_is_refused_with_the_operations_that_stop_it() -> None:
    import torchvision

    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    with pytest.raises(PruningError, match=r"ShuffleNetV2 .*split/chunk, transpose"):
        UnitLayout.of(model, torch.randn(1, 3, 64, 64))


def test_layers_that_do_not_run_belong_to_no_unit() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(9, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x).relu())

    layout = UnitLayout.of(Spare(), torch.randn(2, 3))
    assert len(layout) == 4
    assert layout.total_params == (3 + 1) * 4 + (4 + 1) * 2 + 90


def test_shared_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    with pytest.raises(PruningError, match=r"between 0\.weight and 2\.weight"):
        UnitLayout.of(model, torch.randn(2, 4))


def test_a_model_without_units_is_refused() -> None:
    with pytest.raises(PruningError, match="no unit to remove"):
        UnitLayout.of(nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4))


def test_a_model_that_does_not_run_or_returns_no_tensor_is_refused(build: Any) -> None:
    model, _ = build("plain")
    with pytest.raises(ModelError, match=r"PlainCnn does not run .*\[2, 1, 10, 10\]"):
        UnitLayout.of(model, torch.randn(2, 1, 10, 10))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    with pytest.raises(ModelError, match=r"Pair must return one tensor .* got tuple"):
        UnitLayout.of(Pair(), torch.randn(2, 3))


def test_another_models_layout_is_refused(build: Any) -> None:
    layout = UnitLayout.of(*build("plain"))
    other, _ = build("residual")
    with pytest.raises(LayoutMismatchError, match="in only one of them"):
        layout.check_model(other)
    wider, _ = build("plain")
    wider.hidden = nn.Linear(20, 9)
    with pytest.raises(LayoutMismatchError, match=r"hidden has 20 inputs and 9 outputs"):
        layout.check_model(wider)


def test_a_mask_of_the_wrong_length_or_type_is_refused(build: Any) -> None:
    layout = UnitLayout.of(*build("plain"))
    with pytest.raises(PruningError, match=r"18 booleans for PlainCnn, got bool of shape \[17\]"):
        layout.params(torch.ones(17, dtype=torch.bool))
    with pytest.raises(PruningError, match="got float32"):
        layout.macs(torch.ones(18))
