"""Networks made for the tests: every listed operation, as module and as function."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn import functional


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw weights and batch-norm statistics, so that folding has something to do."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.data.copy_(noise / fan_in**0.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shape = module.weight.shape
            module.weight.data.copy_(torch.randn(shape, generator=generator))
            module.bias.data.copy_(torch.randn(shape, generator=generator))
            module.running_mean.copy_(torch.randn(shape, generator=generator))
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.2)
    return model.eval()


class Residual(nn.Module):
    """Two convolutions beside a shortcut: the identity, or a strided slice padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int, bare: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.extra, self.bare = stride, outputs - inputs, bare

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.first_norm(self.first(x)))
        hidden = self.second_norm(self.second(hidden))
        if not self.bare:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        hidden += x
        return functional.relu(hidden)


def small_resnet(seed: int) -> nn.Module:
    return randomise(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            Residual(4, 4, 1, bare=True), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 3),
        ), seed,
    )  # fmt: skip


class Branches(nn.Module):
    """Concatenation, differences, factors, means and functional forms."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 3, 3, 2, 1, groups=1)
        self.right = nn.Conv2d(2, 2, 5, 2, 2, padding_mode="reflect")
        self.mix = nn.Conv2d(5, 6, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(6)
        self.shift = nn.Parameter(torch.randn(6, 1, 1))
        self.prelu = nn.PReLU(6, 0.3)
        self.head = nn.Linear(6, 4)
        self.head_norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), functional.leaky_relu(self.right(x), 1.5)], dim=1)
        mixed = self.prelu(self.norm(self.mix(joined)))
        mixed = 0.5 * mixed - torch.tanh(mixed) / 4 + self.shift
        pooled = functional.max_pool2d(mixed, 3, 2, 1) - functional.avg_pool2d(mixed, 3, 2, 1)
        features = functional.dropout(pooled.mean(dim=(2, 3)), 0.3, self.training)
        features = operator.neg(features.view(x.size(0), -1))
        return self.head_norm(self.head(self.drop(features)))


class Functional(nn.Module):
    """Only functional calls and tensor methods, weights as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3) / 4)
        self.matrix = nn.Parameter(torch.randn(3, 16) / 4)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.conv2d(x, self.kernel, stride=2, padding=1)
        hidden = functional.batch_norm(hidden, self.mean, self.var, training=False)
        hidden = functional.gelu(hidden).clamp(-1, 2).sigmoid()
        hidden = functional.adaptive_avg_pool2d(hidden, (2, 2))
        hidden = hidden.permute(0, 2, 3, 1).contiguous().reshape(hidden.shape[0], -1)
        return functional.linear(hidden, self.matrix).relu()


class Shared(nn.Module):
    """A convolution that is read by its batch norm and by a second reader: it must not fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv(x)
        return self.head(torch.flatten(self.norm(shared) + shared, 2).mean(2))


def small_networks(seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(),
                        nn.Linear(16, 3))  # fmt: skip
    return {
        "mlp": randomise(mlp, seed),
        "resnet": small_resnet(seed),
        "branches": randomise(Branches(), seed),
        "functional": Functional().eval(),
        "shared": randomise(Shared(), seed),
    }
