from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprune import models
from fedprune.errors import ModelError


def example(name: str, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *models.default_input_shape(name), generator=generator)


@pytest.mark.parametrize("name", models.names())
def test_every_network_gives_one_logit_a_class_and_starts_in_evaluation_mode(name: str) -> None:
    model = models.load(name, num_classes=7)
    assert model(example(name)).shape == (3, 7)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", models.names())
def test_a_traced_network_is_the_same_function(name: str) -> None:
    model, inputs = models.load(name, seed=0), example(name)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(inputs), model(inputs))


@pytest.mark.parametrize("name", models.names())
def test_no_network_changes_a_tensor_in_place(name: str) -> None:
    model = models.load(name, seed=0)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    nodes = torch.fx.symbolic_trace(model).graph.nodes
    functions = {str(node.target) for node in nodes if node.op in ("call_function", "call_method")}
    assert not any("iadd" in function or function.endswith("_") for function in functions)


@pytest.mark.parametrize("name", models.names())
def test_the_graph_holds_whole_layers_that_a_tool_knows(name: str) -> None:
    nodes = torch.fx.symbolic_trace(models.load(name)).graph.nodes
    assert not any(node.op == "get_attr" for node in nodes)
    assert {node.target.__name__ for node in nodes if node.op == "call_function"} <= {"add"}


@pytest.mark.parametrize("name", models.names())
def test_a_seed_names_the_weights_and_leaves_the_process_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (models.load(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_without_a_seed_weights_are_fresh_whatever_the_process_was_seeded_with() -> None:
    torch.manual_seed(5)
    first = models.load("mlp")
    torch.manual_seed(5)
    assert not torch.equal(first.get_parameter("fc1.weight"), models.load("mlp").fc1.weight)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet", (3, 32, 32)),
        ("lenet", (1, 28, 28)),
        ("lenet", (2, 5, 7)),
        ("mlp", (36,)),
        ("mlp", (3, 4, 5)),
        ("resnet20", (1, 28, 28)),
        ("resnet20", (3, 17, 15)),
    ],
)
def test_networks_take_the_input_shapes_they_are_built_for(
    name: str, shape: tuple[int, ...]
) -> None:
    model = models.load(name, input_shape=list(shape))
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "layers", "params"), [("resnet20", 20, 269_722), ("resnet56", 56, 853_018)]
)
def test_cifar_resnets_have_the_published_depth_and_size(
    name: str, layers: int, params: int
) -> None:
    model = models.load(name)
    weighted = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not isinstance(module, models.ChannelSelection)
    ]
    assert len(weighted) == layers
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == params


@pytest.mark.parametrize("side", [32, 7])
def test_the_selection_equals_subsampling_and_padding_with_zero_channels(side: int) -> None:
    maps = torch.randn(2, 16, side, side, generator=torch.Generator().manual_seed(1))
    selection = models.ChannelSelection(16, 32, stride=2, offset=8)
    padded = functional.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(selection(maps), padded)


def test_a_selection_stays_frozen_when_its_weight_is_replaced_or_it_is_copied() -> None:
    selection = models.ChannelSelection(4, 8, stride=2, offset=2)
    sliced = nn.Parameter(selection.weight[:, :3].clone())
    selection.weight = sliced
    assert sliced.requires_grad
    for held in (selection, copy.deepcopy(selection)):
        assert torch.equal(held.weight, sliced)
        assert not held.weight.requires_grad


def test_a_selection_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offset must be in \[0, 4\], got 5"):
        models.ChannelSelection(4, 8, stride=1, offset=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "resnet21"}, r"model.name must be one of lenet, mlp, .*, got 'resnet21'"),
        ({"name": "lenet", "num_classes": 1}, r"num_classes must be at least 2, got 1"),
        ({"name": "lenet", "input_shape": (36,)}, r"lenet wants .* got \[36\]"),
        ({"name": "lenet", "input_shape": (1, 3, 9)}, r"sides of at least 4, got \[1, 3, 9\]"),
        ({"name": "resnet20", "input_shape": (36,)}, r"wants input_shape \[C, H, W\], got \[36\]"),
        ({"name": "mlp", "input_shape": ()}, r"positive sides, got \[\]"),
        ({"name": "mlp", "input_shape": (0,)}, r"positive sides, got \[0\]"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_in_one_sentence(
    call: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        models.load(**call)  # type: ignore[arg-type]
