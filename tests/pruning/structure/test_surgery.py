from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fedprune import hardware, models
from fedprune.errors import LayoutMismatchError, PruningError
from fedprune.pruning import UnitLayout, compose_masks, mask_model, shrink

SMALL = [
    "plain", "residual", "concat", "grouped", "sigmoid", "gate", "signal", "recurrent",
    "pre_activation",
]  # fmt: skip


def random_mask(layout: UnitLayout, keep: float, seed: int) -> Tensor:
    """Keep each unit with a probability, and one unit in every group."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(layout), generator=generator) < keep
    for group in layout.groups:
        pick = int(torch.randint(group.start, group.stop, (1,), generator=generator))
        mask[pick] = True
    return mask


def check_laws(model: nn.Module, layout: UnitLayout, example: Tensor, mask: Tensor) -> None:
    small = shrink(model, layout, mask)
    with torch.no_grad():
        masked_out, small_out = mask_model(model, layout, mask)(example), small(example)
    scale = max(float(masked_out.abs().max()), 1.0)
    assert float((masked_out - small_out).abs().max()) <= 1e-5 * scale
    again = UnitLayout.of(small, example)
    assert len(again) == int(mask.sum())
    kept = [int(mask[group.units].sum()) for group in layout.groups]
    assert [(g.name, len(g)) for g in again.groups] == [
        (g.name, n) for g, n in zip(layout.groups, kept, strict=True)
    ]
    cost = hardware.cost(small, example)
    assert cost.params == again.total_params == layout.params(mask)
    assert cost.macs == again.total_macs == layout.macs(mask)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(6))
def test_a_shrunk_model_equals_the_masked_one_and_costs_what_the_layout_says(
    build: Any, name: str, seed: int
) -> None:
    model, example = build(name)
    layout = UnitLayout.of(model, example)
    check_laws(model, layout, example, random_mask(layout, [0.0, 0.2, 0.5, 0.8][seed % 4], seed))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("resnet56", (3, 32, 32)),
        ("lenet", (1, 8, 8)),
        ("mlp", (1, 8, 8)),
    ],
)
def test_our_networks_shrink_exactly(name: str, shape: tuple[int, ...], randomised: Any) -> None:
    model = randomised(models.load(name, weights="", num_classes=10, input_shape=shape))
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    layout = UnitLayout.of(model, example)
    for seed, keep in enumerate((0.3, 0.7)):
        check_laws(model, layout, example, random_mask(layout, keep, seed))


def _torchvision(name: str) -> nn.Module:
    """The architectures of torchvision, narrow or short where it lets us."""
    zoo = torchvision.models
    bottleneck = zoo.resnet.Bottleneck
    makers = {
        "resnet18": lambda: zoo.resnet18(weights=None, num_classes=10),
        "resnext": lambda: zoo.ResNet(
            bottleneck, [1, 2, 1, 1], num_classes=10, groups=8, width_per_group=2
        ),
        "mobilenet_v2": lambda: zoo.mobilenet_v2(weights=None, num_classes=10, width_mult=0.35),
        "densenet": lambda: zoo.DenseNet(8, (2, 3, 2, 2), 16, num_classes=10),
        "squeezenet": lambda: zoo.squeezenet1_1(weights=None, num_classes=10),
        "vgg": lambda: zoo.VGG(
            zoo.vgg.make_layers([8, "M", 16, 16, "M", 24, "M"], batch_norm=True), num_classes=10
        ),
    }
    model = makers[name]()
    if name == "vgg":  # hidden layers of 4096 take time, to no purpose
        model.classifier = nn.Sequential(nn.Linear(24 * 49, 20), nn.ReLU(True), nn.Linear(20, 10))
    return model


@pytest.mark.parametrize(
    "name", ["resnet18", "resnext", "mobilenet_v2", "densenet", "squeezenet", "vgg"]
)
def test_torchvision_networks_shrink_exactly(name: str, randomised: Any) -> None:
    model = randomised(_torchvision(name))
    example = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    layout = UnitLayout.of(model, example)
    check_laws(model, layout, example, random_mask(layout, 0.5, 0))


def test_pretrained_resnet20_shrinks_exactly(data_root: Any) -> None:
    weights = str(data_root / "weights" / "resnet20-12fca82f.th")
    model = models.load("resnet20", weights=weights, num_classes=10).eval()
    example = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layout = UnitLayout.of(model, example)
    check_laws(model, layout, example, random_mask(layout, 0.5, 0))


def test_removed_units_are_silent_and_others_are_untouched(build: Any) -> None:
    model, example = build("plain")
    layout = UnitLayout.of(model, example)
    mask = random_mask(layout, 0.5, 1)
    masked = mask_model(model, layout, mask)
    outputs: list[Tensor] = []
    masked.conv1.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    masked(example)
    kept = mask[:6]
    assert not outputs[0][:, ~kept].any()
    torch.testing.assert_close(outputs[0][:, kept], model.conv1(example)[:, kept])


def test_keeping_everything_gives_an_equal_copy(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    everything = torch.ones(len(layout), dtype=torch.bool)
    for same in (mask_model(model, layout, everything), shrink(model, layout, everything)):
        assert same is not model
        assert all(torch.equal(a, b) for a, b in zip(
            model.state_dict().values(), same.state_dict().values(), strict=True))  # fmt: skip


def test_shrinking_keeps_order_mode_dtype_and_frozen_layers(build: Any) -> None:
    model, example = build("residual")
    model = model.double().train()
    model.inner.requires_grad_(False)
    model.stem_bn.eval()
    layout = UnitLayout.of(model, example.double())
    mask = random_mask(layout, 0.5, 3)
    small = shrink(model, layout, mask)
    assert small.training
    assert not small.stem_bn.training
    flags = {name: p.requires_grad for name, p in small.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    stem, inner = mask[:6], mask[6:11]
    assert torch.equal(small.stem.weight, model.stem.weight[stem])
    assert torch.equal(small.inner.weight, model.inner.weight[inner][:, stem])
    assert torch.equal(small.inner_bn.running_var, model.inner_bn.running_var[inner])


def test_surgery_leaves_the_model_alone(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mask = random_mask(layout, 0.5, 3)
    shrink(model, layout, mask)
    mask_model(model, layout, mask)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_shrunk_model_can_be_shrunk_again_and_masks_compose(build: Any) -> None:
    for name in SMALL:
        model, example = build(name)
        layout = UnitLayout.of(model, example)
        outer = random_mask(layout, 0.7, 0)
        small = shrink(model, layout, outer)
        inner_layout = UnitLayout.of(small, example)
        inner = random_mask(inner_layout, 0.6, 1)
        twice = shrink(small, inner_layout, inner)
        once = shrink(model, layout, compose_masks(outer, inner))
        torch.testing.assert_close(twice(example), once(example))


def test_composing_a_mask_of_the_wrong_length_is_refused() -> None:
    outer = torch.tensor([True, False, True])
    assert compose_masks(outer, torch.tensor([False, True])).tolist() == [False, False, True]
    with pytest.raises(PruningError, match=r"each of the 2 units .* shape \[3\]"):
        compose_masks(outer, outer)


def test_an_emptied_group_is_refused_by_name(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    mask = torch.ones(len(layout), dtype=torch.bool)
    mask[layout.groups[1].units] = False
    for operation in (mask_model, shrink):
        with pytest.raises(PruningError, match=r"all 5 units of group inner"):
            operation(model, layout, mask)


def test_a_model_of_another_layout_is_refused(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    mask = random_mask(layout, 0.5, 0)
    small = shrink(model, layout, mask)
    with pytest.raises(LayoutMismatchError, match="does not fit this Residual"):
        shrink(small, layout, mask)


def test_gradients_reach_every_parameter_of_a_shrunk_model(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    small = shrink(model, layout, random_mask(layout, 0.5, 0)).train()
    small(example).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
