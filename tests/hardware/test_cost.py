from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fedprune import hardware
from fedprune.errors import ModelError


class Selecting(nn.Conv2d):
    is_selection = True


class Functional(nn.Module):
    """Layers applied as functions, which hooks on modules would not see."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 6))

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.conv2d(images, self.kernel, stride=2, groups=2)
        return functional.linear(maps.mean((2, 3)), self.matrix)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 9, 9)),
    "strided": (lambda: nn.Conv2d(3, 8, 5, stride=3, padding=2, bias=False), (3, 11, 10)),
    "dilated": (lambda: nn.Conv2d(3, 8, 3, dilation=2, padding=1), (3, 12, 9)),
    "grouped": (lambda: nn.Conv2d(6, 9, (3, 1), groups=3), (6, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8)),
    "same padding": (lambda: nn.Conv1d(2, 4, 4, padding="same", padding_mode="circular"), (2, 9)),
    "volume": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear on sequences": (lambda: nn.Linear(7, 5), (4, 3, 7)),
    "functions": (Functional, (4, 9, 9)),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=4), (3, 64, 64)),
    "resnet": (lambda: torchvision.models.resnet18(num_classes=4), (3, 64, 64)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_macs_are_half_of_what_an_independent_counter_finds(name: str) -> None:
    build, shape = LAYERS[name]
    model = build().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    found = hardware.cost(model, torch.zeros(4, *shape))
    assert found.macs == counter.get_total_flops() / 2 > 0
    assert found.params == sum(p.numel() for p in model.parameters())


def test_resnet18_costs_what_is_published() -> None:
    found = hardware.cost(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    assert (found.params, round(found.macs / 1e9, 3)) == (11_689_512, 1.814)


@pytest.mark.parametrize("trained", [True, False])
def test_attention_counts_its_four_projections(trained: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return mixed

    model = Attention().requires_grad_(trained)
    assert hardware.cost(model, torch.zeros(2, 5, 8)).macs == 4 * 5 * 8 * 8


def test_a_frozen_selection_costs_nothing() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with_selection = nn.Sequential(*body, Selecting(4, 8, 1, stride=2, bias=False))
    image = torch.zeros(1, 3, 8, 8)
    assert hardware.cost(with_selection, image) == hardware.cost(body, image)


def test_bytes_are_the_float32_state_and_shared_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    found = hardware.cost(model, torch.zeros(1, 4))
    assert found == hardware.Cost(params=16 + 4 + 8 + 4, macs=32, bytes=4 * (32 + 8))


def test_counting_leaves_modes_gradients_statistics_and_hooks_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    model.train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    hardware.cost(model, torch.randn(2, 1, 5, 5))
    with pytest.raises(ModelError, match=r"cannot process an example of shape \[1, 7, 5, 5\]"):
        hardware.cost(model, torch.randn(2, 7, 5, 5))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert not torch.is_inference_mode_enabled()


def test_counting_does_not_load_torchs_compiler() -> None:
    code = (
        "import sys, torch; from fedprune import hardware, models, pruning; "
        "model = models.load('lenet', num_classes=10, input_shape=(1, 8, 8), seed=0); "
        "example = torch.zeros(1, 1, 8, 8); hardware.cost(model, example); "
        "pruning.UnitLayout.of(model, example); sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
