"""torchvision's classifiers by name: the same functions, nothing in place, nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

from fedprune import models
from fedprune.errors import ModelError

# At least one of every block whose forward pass torchvision writes in place, and some others.
NAMES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
    "efficientnet_v2_s", "convnext_tiny", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5",
    "mnasnet0_5", "regnet_y_400mf", "googlenet", "swin_t", "vit_b_32", "alexnet",
)  # fmt: skip
LARGE = {"alexnet": 64, "inception_v3": 75}  # the smallest images that these can take, about
WITHOUT_HEADS = {"aux_logits": False, "init_weights": True}


def shape_for(name: str) -> tuple[int, int, int]:
    side = LARGE.get(name, 32)
    return (3, side, side)


def theirs(name: str, num_classes: int) -> torch.nn.Module:
    options: dict[str, Any] = WITHOUT_HEADS if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options = {"image_size": shape_for(name)[1]}
    return torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options
    ).eval()


class InPlace(TorchDispatchMode):
    """Records every operation that changes one of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*NAMES, "inception_v3"])
def test_a_network_of_torchvision_is_the_same_function_and_overwrites_nothing(name: str) -> None:
    shape = shape_for(name)
    ours = models.load(name, num_classes=7, input_shape=shape, seed=1)
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    original = theirs(name, 7)
    original.load_state_dict(ours.state_dict())
    mode = InPlace()
    with torch.no_grad(), mode:
        outputs = ours(inputs)
    if name != "swin_t":  # it fills attention masks of its own, which nothing else sees
        assert not mode.found
    with torch.no_grad():
        torch.testing.assert_close(outputs, original(inputs), rtol=1e-5, atol=1e-6)
    assert outputs.shape == (2, 7)
    assert not any(module.training for module in ours.modules())
    assert not any(getattr(module, "inplace", False) for module in ours.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_torchvision_can_be_traced(name: str) -> None:
    shape = shape_for(name)
    model = models.load(name, num_classes=7, input_shape=shape, seed=1)
    inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(inputs), model(inputs))


def test_a_seed_names_the_weights_and_leaves_the_process_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        models.load("resnet18", input_shape=(3, 32, 32), seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_published_keys_are_read_from_a_file_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    original = theirs("resnet18", 10)
    file = tmp_path / "resnet18.pth"
    torch.save(original.state_dict(), file)
    ours = models.load("resnet18", weights=file, num_classes=10, input_shape=(3, 32, 32))
    for key, tensor in original.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor)
    with pytest.raises(ModelError, match=r"fc.weight in .* has shape \[10, 512\], .* \[3, 512\]"):
        models.load("resnet18", weights=file, num_classes=3, input_shape=(3, 32, 32))


def test_a_published_state_with_auxiliary_heads_is_read_without_them(tmp_path: Path) -> None:
    whole = torchvision.models.googlenet(weights=None, num_classes=5, init_weights=True).eval()
    file = tmp_path / "googlenet.pth"
    torch.save(whole.state_dict(), file)
    assert any(key.startswith("aux1.") for key in whole.state_dict())
    ours = models.load("googlenet", weights=file, num_classes=5, input_shape=(3, 64, 64))
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), whole(inputs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"name": "resnet19"},
            r"one of lenet, .* classifier of torchvision .*package\.module:function.* 'resnet19'",
        ),
        ({"name": "fasterrcnn_resnet50_fpn"}, r"got 'fasterrcnn_resnet50_fpn'"),
        ({"name": "resnet18", "input_shape": (1, 28, 28)}, r"resnet18 wants .*3.* got \[1, 28, 28"),
        ({"name": "resnet18", "input_shape": (64,)}, r"wants input_shape \[3, H, W\], got \[64\]"),
        (
            {"name": "inception_v3", "input_shape": (3, 64, 64)},
            r"'inception_v3' does not run on an example of shape \[3, 64, 64\]: .*[Kk]ernel size",
        ),
        ({"name": "vit_b_16", "input_shape": (3, 40, 40)}, r"vit_b_16 does not take .*indivisible"),
        ({"name": "vit_b_16", "input_shape": (3, 32, 64)}, r"wants square images, got 32 x 64"),
        ({"name": "maxvit_t", "input_shape": (3, 64, 64)}, r"maxvit_t does not take .*partition"),
        ({"name": "resnet18", "num_classes": 1}, r"num_classes must be at least 2, got 1"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_in_one_sentence(
    call: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        models.load(**call)
    assert "\n" not in str(refused.value)


def test_only_classifiers_are_offered_and_none_hides_a_network_of_ours() -> None:
    offered = models.torchvision_names()
    assert {"resnet18", "vit_b_16", "inception_v3"} <= set(offered)
    assert not set(offered) & set(models.names())
    assert not any("rcnn" in name or "deeplab" in name or "r3d" in name for name in offered)
    assert models.default_input_shape("resnet18") == (3, 224, 224)
