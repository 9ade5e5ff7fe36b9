"""The networks in which the study of soundness looks for a counterexample: random ones and digits.

Not a study itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedprune.randomness import SimulationRandomness

Shape = tuple[int, ...]


class Residual(nn.Module):
    """x + body(x), or x - body(x) / 2."""

    def __init__(self, body: nn.Module, minus: bool) -> None:
        """Keep the body."""
        super().__init__()
        self.body, self.minus = body, minus

    def forward(self, x: Tensor) -> Tensor:
        """Add or subtract."""
        return x - self.body(x) / 2 if self.minus else x + self.body(x)


class Branches(nn.Module):
    """Two bodies side by side, joined over channels."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        """Keep both."""
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat((self.left(x), self.right(x)), dim=1)


class Draw:
    """Draws layers one after the other for a tensor of known shape [channels, *map]."""

    def __init__(self, stream: SimulationRandomness, linear: bool) -> None:
        """Start with a random small shape of one or two spatial axes."""
        self._numbers = stream.generator
        self.linear = linear
        self.spatial = 1 if self._numbers.random() < 0.2 else 2
        sides = self._numbers.integers(4, 9, size=self.spatial)
        self.shape: Shape = (self.pick(1, 2, 3, 4), *(int(side) for side in sides))
        torch.manual_seed(stream.torch_seed())

    def pick(self, *choices: Any) -> Any:
        """Choose one, all alike."""
        return choices[int(self._numbers.integers(len(choices)))]

    def network(self, depth: int) -> nn.Sequential:
        """Draw a network of so many layers that work on its first shape."""
        layers: list[nn.Module] = []
        self.first = self.shape
        while len(layers) < depth:
            layer = self.pick(*self.kinds())()
            if layer is None or not self.accept(layer):
                continue
            layers.append(layer)
        return nn.Sequential(*layers).eval()

    def kinds(self) -> list[Callable[[], nn.Module | None]]:
        """What can be drawn; convolutions more often."""
        linear = [self.convolution] * 4 + [
            self.transposed, self.batch_norm, self.average_pool, self.adaptive_pool,
            self.residual, self.branches, self.identity_bits,
        ]  # fmt: skip
        return linear if self.linear else [*linear, self.activation, self.activation, self.max_pool]

    def accept(self, layer: nn.Module) -> bool:
        """Take a layer whose output is neither empty nor large."""
        try:
            with torch.no_grad():
                shape = tuple(layer.eval()(torch.zeros(2, *self.shape)).shape)
        except (RuntimeError, ValueError):  # the window does not fit this map
            return False
        if shape[0] != 2 or not 1 <= math.prod(shape[1:]) <= 400:
            return False
        self.shape = shape[1:]
        return True

    def convolution(self, outputs: int | None = None) -> nn.Module | None:
        """A convolution with every option drawn."""
        groups = self.pick(*(g for g in (1, 1, 2, 3, 4) if self.shape[0] % g == 0))
        outputs = outputs or groups * self.pick(1, 2, 3)
        kind = nn.Conv1d if self.spatial == 1 else nn.Conv2d
        mode = self.pick("zeros", "zeros", "zeros", "circular", "reflect", "replicate")
        sizes = {
            "kernel_size": (1, 2, 3, 4), "stride": (1, 1, 2, 3), "padding": (0, 1, 2, 3),
            "dilation": (1, 1, 2),
        }  # fmt: skip
        options = {
            name: tuple(self.pick(*choices) for _ in range(self.spatial))
            for name, choices in sizes.items()
        }
        if outputs % groups:
            return None
        return self.scaled(
            kind(self.shape[0], outputs, groups=groups, padding_mode=mode, **options)
        )

    def transposed(self) -> nn.Module:
        """A transposed convolution."""
        kind = nn.ConvTranspose1d if self.spatial == 1 else nn.ConvTranspose2d
        stride = self.pick(1, 2, 3)
        return self.scaled(
            kind(self.shape[0], self.pick(1, 2, 3), self.pick(1, 2, 3), stride, self.pick(0, 1),
                 self.pick(0, stride - 1), dilation=self.pick(1, 2))
        )  # fmt: skip

    def scaled(self, layer: nn.Module) -> nn.Module:
        """Draw weights whose size varies over two orders of magnitude."""
        scale = 10 ** self._numbers.uniform(-1, 1)
        for parameter in layer.parameters():
            parameter.data.normal_().mul_(scale / math.sqrt(max(1, parameter[0].numel())))
        return layer

    def batch_norm(self) -> nn.Module:
        """Batch norm with drawn statistics and factors of both signs."""
        layer = (nn.BatchNorm1d if self.spatial == 1 else nn.BatchNorm2d)(self.shape[0])
        layer.weight.data.normal_()
        layer.bias.data.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.05, 3)
        return layer

    def average_pool(self) -> nn.Module:
        """An average pool, with or without overlap, padding, ceil_mode and padding counted."""
        kernel = self.pick(2, 3)
        kind = nn.AvgPool1d if self.spatial == 1 else nn.AvgPool2d
        return kind(
            kernel, self.pick(1, 2, 3), self.pick(0, 1), ceil_mode=self.pick(False, True),
            count_include_pad=self.pick(False, True),
        )  # fmt: skip

    def adaptive_pool(self) -> nn.Module:
        """An adaptive average pool."""
        kind = nn.AdaptiveAvgPool1d if self.spatial == 1 else nn.AdaptiveAvgPool2d
        return kind(self.pick(1, 2, 3, 5))

    def max_pool(self) -> nn.Module:
        """A max-pool with overlap, padding, dilation or ceil_mode."""
        kind = nn.MaxPool1d if self.spatial == 1 else nn.MaxPool2d
        return kind(
            self.pick(2, 3), self.pick(1, 2, 3), self.pick(0, 1), self.pick(1, 1, 2),
            ceil_mode=self.pick(False, True),
        )  # fmt: skip

    def activation(self) -> nn.Module:
        """An activation."""
        return self.pick(
            nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.ELU(1.5),
            nn.Hardswish(), nn.PReLU(self.shape[0]), nn.Softsign(), nn.Mish(),
        )  # fmt: skip

    def body(self) -> nn.Module:
        """A convolution that keeps the shape, with an activation where that is allowed."""
        kind = nn.Conv1d if self.spatial == 1 else nn.Conv2d
        kernel = self.pick(1, 3, 5)
        layer = self.scaled(kind(self.shape[0], self.shape[0], kernel, padding=kernel // 2))
        return layer if self.linear else nn.Sequential(layer, self.activation())

    def residual(self) -> nn.Module:
        """A residual addition."""
        return Residual(self.body(), self.pick(False, True))

    def branches(self) -> nn.Module:
        """A concatenation of two bodies."""
        return Branches(self.body(), self.body())

    def identity_bits(self) -> nn.Module:
        """Padding, dropout in eval mode, upsampling or a shuffle of channels."""
        flat = [nn.Dropout(0.5), nn.Upsample(scale_factor=2)]
        if self.spatial == 2:
            flat += [nn.ZeroPad2d((1, 0, 2, 1)), nn.ReflectionPad2d(1), nn.ReplicationPad2d(2)]
        return self.pick(*flat)


DIGITS: dict[str, Callable[[], nn.Module]] = {
    "digits, linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "digits, MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    ),
    "digits, deep MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.LeakyReLU(0.1),
        nn.Linear(24, 10),
    ),
    "digits, CNN": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        Residual(nn.Conv2d(6, 6, 3, padding=1), minus=False), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 10),
    ),
}  # fmt: skip


def trained_digits(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Train one of `DIGITS` with weight decay: the network in eval mode, and all inputs."""
    pixels, truth = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(truth).long()
    torch.manual_seed(SimulationRandomness(seed, name).torch_seed())
    model = DIGITS[name]()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        decay = sum((parameter**2).sum() for parameter in model.parameters())
        optimiser.zero_grad()
        (loss + 2e-3 * decay).backward()
        optimiser.step()
    return model.eval(), inputs
