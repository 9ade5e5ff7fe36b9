"""Small networks of many shapes, with random weights and statistics, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainCnn(nn.Module):
    """Biases, no batch norm, a flatten that spreads a channel over 4 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2)
        self.hidden = nn.Linear(5 * 4, 7)
        self.out = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.relu(self.conv2(x)).flatten(1)
        return self.out(functional.relu(self.hidden(x)))


class Residual(nn.Module):
    """Two producers of the same channels, added in place; a projection; PReLU slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_bn = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.back, self.back_bn = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.down, self.down_bn = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.skip = nn.Conv2d(6, 8, 1, 2)
        self.slopes = nn.PReLU(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(self.stem(x)), inplace=True)
        y = self.back_bn(self.back(functional.relu(self.inner_bn(self.inner(x)), inplace=True)))
        y += x
        y = functional.relu_(y)
        z = self.slopes(self.down_bn(self.down(y)) + self.skip(y))
        return self.out(z.mean((2, 3)))


class Concat(nn.Module):
    """Two branches and their input side by side, then a norm over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.mix = nn.Conv2d(13, 5, 3)
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(torch.cat([self.left(x), x, self.right(x)], 1)))
        return self.out(functional.adaptive_avg_pool2d(functional.relu(self.mix(x)), 1).flatten(1))


class Grouped(nn.Module):
    """A grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.groups, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.depth, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 5, 1)
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.expand(x)))
        x = functional.relu(self.bn2(self.groups(x)))
        x = functional.relu6(self.bn3(self.depth(x)))
        return self.out(functional.relu(self.point(x)).mean((2, 3)))


class Sigmoid(nn.Module):
    """Activations that do not map zero to zero, a norm without affine, a flattened norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.flat_bn = nn.BatchNorm1d(6 * 9)
        self.hidden = nn.Linear(6 * 9, 9)
        self.out = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.sigmoid(self.bn(self.conv(x))), 2)
        return self.out(functional.softplus(self.hidden(self.flat_bn(x.flatten(1)))))


class Gate(nn.Module):
    """Squeeze and excitation, a transposed convolution and an instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        scale = torch.sigmoid(
            self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        )
        return self.out(torch.tanh(self.up(x * scale)).mean((2, 3)))


class Signal(nn.Module):
    """One-dimensional convolutions that see their own input again."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv1d(3, 3, 3, padding=1)
        self.conv, self.bn = nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)
        self.out = nn.Linear(6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.same(x)
        return self.out(functional.relu(self.bn(self.conv(x))).flatten(1))


class Recurrent(nn.Module):
    """One layer used three times, whose inputs and outputs are therefore tied."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        for _ in range(3):
            x = torch.relu(self.again(x)) + x
        return self.out(x)


class PreActivation(nn.Module):
    """Batch norm before the convolutions: no norm follows the stem directly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, padding=1)
        self.last = nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(functional.relu(self.bn2(self.conv1(functional.relu(self.bn1(x))))))
        return self.out(functional.relu(self.last(x)).mean((2, 3)))


IMAGE, SIGNAL, ROW = (3, 8, 8), (3, 8), (5,)
NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "plain": (PlainCnn, (3, 10, 10)),
    "residual": (Residual, IMAGE),
    "concat": (Concat, IMAGE),
    "grouped": (Grouped, IMAGE),
    "sigmoid": (Sigmoid, IMAGE),
    "gate": (Gate, IMAGE),
    "signal": (Signal, SIGNAL),
    "recurrent": (Recurrent, ROW),
    "pre_activation": (PreActivation, IMAGE),
}

Build = Callable[[str], tuple[nn.Module, Tensor]]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights and statistics under which nothing cancels by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() or "shortcut" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(0.6 + noise.abs())
            else:
                tensor.copy_(noise * (1.5 / max(tensor[0].numel(), 4)) ** 0.5)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these only lose by threads, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def build() -> Build:
    """Make a network by name, with an example batch of 6."""

    def make(name: str) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        kind, shape = NETS[name]
        return randomise(kind()), torch.randn(6, *shape)

    return make


@pytest.fixture(scope="session")
def randomised() -> Callable[[nn.Module], nn.Module]:
    return randomise
