"""Networks with a trap each: what a layout promises holds for every mask, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fedprune import hardware
from fedprune.errors import FedpruneError, ModelError, PruningError
from fedprune.pruning import UnitLayout, mask_model, shrink

IMAGE = (3, 8, 8)
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Layers by name and a function of them."""

    def __init__(self, run: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _slices() -> nn.Module:
    """Each half of the channels has a reader of its own; how many are left says where it begins."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.enter(x)
        half = x.shape[1] // 2
        left, right = net.left(x[:, :half]), net.right(x[:, half:])
        return net.out(functional.relu(left + right).mean((2, 3)))

    return Net(run, enter=nn.Conv2d(3, 6, 3), left=nn.Conv2d(3, 5, 1), right=nn.Conv2d(3, 5, 1),
               out=nn.Linear(5, 4))  # fmt: skip


def _squeezes() -> nn.Module:
    """With one channel left, one axis more disappears."""
    return Net(
        lambda net, x: net.out(
            functional.relu(net.last(net.enter(x))).mean((2, 3), True).squeeze()
        ),
        enter=nn.Conv2d(3, 6, 3), last=nn.Conv2d(6, 8, 1), out=nn.Linear(8, 4),
    )  # fmt: skip


def _changes_when_thin() -> nn.Module:
    """A very thin layer is treated in another way."""

    def run(net: Any, x: Tensor) -> Tensor:
        y = functional.relu(net.last(functional.relu(net.enter(x))))
        return net.out(y.mean((2, 3))) * (1 if net.enter.out_channels > 2 else 2)

    return Net(run, enter=nn.Conv2d(3, 9, 3), last=nn.Conv2d(9, 6, 3), out=nn.Linear(6, 4))


def _silent_without_input() -> nn.Module:
    """No bias: on an example of zeros nothing is seen of the flipped channels."""
    return Net(
        lambda net, x: net.out(functional.relu(net.last(functional.relu(net.enter(x)).flip(1)))
                               .mean((2, 3))),
        enter=nn.Conv2d(3, 6, 3, bias=False), last=nn.Conv2d(6, 5, 3, bias=False),
        out=nn.Linear(5, 4, bias=False),
    )  # fmt: skip


def _circular() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3, padding="same", dilation=2), nn.GELU(),
        nn.Conv1d(6, 5, 3, padding=1, padding_mode="circular"), nn.Sigmoid(),
        nn.Conv1d(5, 7, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(56, 4),
    )  # fmt: skip


def _one_slope() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.PReLU(), nn.Flatten(), nn.BatchNorm1d(216), nn.Linear(216, 4)
    )


def _grouped_transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=4), nn.Conv2d(4, 7, 3), nn.Flatten(), nn.Linear(252, 4),
    )  # fmt: skip


def _gate_for_all() -> nn.Module:
    """One channel multiplies all others, as in attention gates of U-Nets."""

    def run(net: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(net.norm(net.gate(functional.relu(net.mix(x)))))
        return net.out((functional.relu(net.enter(x)) * gate).mean((2, 3)))

    return Net(run, enter=nn.Conv2d(3, 8, 1), mix=nn.Conv2d(3, 5, 1), gate=nn.Conv2d(5, 1, 1),
               norm=nn.BatchNorm2d(1), out=nn.Linear(8, 4))  # fmt: skip


def _value_and_advantage() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = torch.relu(net.enter(x))
        return net.value(torch.relu(net.state(x))) + net.advantage(torch.relu(net.action(x)))

    return Net(run, enter=nn.Linear(6, 9), state=nn.Linear(9, 5), value=nn.Linear(5, 1),
               action=nn.Linear(9, 7), advantage=nn.Linear(7, 4))  # fmt: skip


def _overwrites_input() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2.0
        return net.out(functional.relu(net.enter(x)).mean((2, 3)))

    return Net(run, enter=nn.Conv2d(3, 8, 3), out=nn.Linear(8, 4))


def _parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


class _Product(nn.Module):
    """The last layer is a matrix product with a parameter of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.matrix = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.last(functional.relu(self.enter(x))))
        found: Tensor = x.mean((2, 3)) @ self.matrix
        return found


def _up_and_down() -> nn.Module:
    """A U-Net: what was found at full size joins what comes back from half of it."""

    def run(net: Any, x: Tensor) -> Tensor:
        fine = functional.relu(net.enter(x))
        coarse = net.up(functional.relu(net.down(fine)))
        return net.out(functional.relu(net.merge(torch.cat([coarse, fine], 1)))).mean((2, 3))

    return Net(
        run, enter=nn.Conv2d(3, 8, 3, padding=1), down=nn.Conv2d(8, 12, 3, 2, 1),
        up=nn.ConvTranspose2d(12, 6, 2, 2), merge=nn.Conv2d(14, 7, 3), out=nn.Conv2d(7, 4, 1),
    )  # fmt: skip


def _gated_block() -> nn.Module:
    """The feed-forward block of today's language models (SwiGLU)."""
    return Net(
        lambda net, x: net.out(x + net.down(functional.silu(net.gate(x)) * net.up(x))),
        gate=nn.Linear(10, 24, bias=False), up=nn.Linear(10, 24, bias=False),
        down=nn.Linear(24, 10, bias=False), out=nn.Linear(10, 4),
    )  # fmt: skip


def _interleaved() -> nn.Module:
    """Channels of two layers lie by turns in what a third one reads: they go in pairs."""

    def run(net: Any, x: Tensor) -> Tensor:
        pairs = torch.stack([net.left(x), net.right(x)], 2).flatten(1, 2)
        return net.out(functional.relu(net.mix(functional.relu(pairs))).mean((2, 3)))

    return Net(run, left=nn.Conv2d(3, 8, 3), right=nn.Conv2d(3, 8, 3), mix=nn.Conv2d(16, 6, 1),
               out=nn.Linear(6, 4))  # fmt: skip


# What can go, by group, and what of the frozen reasons must be said.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int], str]] = {
    "slices": (_slices, IMAGE, {"left": 5}, "slice"),
    "squeezes": (_squeezes, IMAGE, {"enter": 6}, "all channels but one of last"),
    "changes when thin": (_changes_when_thin, IMAGE, {"last": 6}, "all channels but one of enter"),
    "silent without input": (_silent_without_input, IMAGE, {"last": 5}, "flip"),
    "circular": (_circular, (3, 8), {"0": 6, "2": 5, "4": 7}, ""),
    "one slope": (_one_slope, IMAGE, {"0": 6}, ""),
    "grouped transposed": (_grouped_transposed, IMAGE, {"5": 7}, "ConvTranspose2d"),
    "gate for all": (_gate_for_all, IMAGE, {"enter": 8, "mix": 5}, ""),
    "value and advantage": (_value_and_advantage, (6,), {"enter": 9, "state": 5, "action": 7}, ""),
    "overwrites input": (_overwrites_input, IMAGE, {"enter": 8}, ""),
    "parametrized": (_parametrized, IMAGE, {"2": 6}, "0 computes its weight"),
    "product": (_Product, IMAGE, {"enter": 8}, ""),
    "up and down": (_up_and_down, IMAGE, {"enter": 8, "down": 12, "up": 6, "merge": 7}, ""),
    "gated block": (_gated_block, (10,), {"gate": 24}, ""),
    "interleaved": (_interleaved, IMAGE, {"left": 8, "mix": 6}, ""),
}


def masks_of(layout: UnitLayout) -> list[Tensor]:
    """Many densities, and one unit alone in each group: the first one, the last one."""
    random = torch.Generator().manual_seed(7)
    masks = [torch.rand(len(layout), generator=random) < keep for keep in (0.15, 0.5, 0.5, 0.85)]
    masks += [torch.zeros(len(layout), dtype=torch.bool) for _ in range(2)]
    for mask in masks:
        for group in layout.groups:
            if not mask[group.units].any():
                mask[group.start if mask is masks[-2] else group.stop - 1] = True
    return masks


@pytest.mark.parametrize("name", NETS)
def test_what_is_called_a_unit_can_go_with_any_others_and_what_stays_is_explained(
    name: str, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    build, shape, groups, reason = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build()
        model = built.eval() if name == "parametrized" else randomised(built)
        inputs = torch.randn(5, *shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example = torch.zeros(4, *shape)
    layout = UnitLayout.of(model, example)
    assert {group.name: len(group) for group in layout.groups} == groups
    assert reason in "; ".join(frozen.reason for frozen in layout.frozen)
    for mask in masks_of(layout):
        small = shrink(model, layout, mask)
        with torch.no_grad():
            masked, shrunk = mask_model(model, layout, mask)(inputs.clone()), small(inputs.clone())
        assert float((masked - shrunk).abs().max()) <= 1e-5 * float(masked.abs().max())
        cost = hardware.cost(small, inputs)
        assert (cost.params, cost.macs) == (layout.params(mask), layout.macs(mask))
        assert cost.params == sum(parameter.numel() for parameter in small.parameters())
    assert torch.equal(example, torch.zeros(4, *shape))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Noisy(nn.Module):
    """It draws something in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(torch.relu(self.enter(x)), 0.5))


def _channels_swapped() -> nn.Module:
    return Net(
        lambda net, x: net.out(functional.glu(net.enter(x), 1).mean((2, 3))),
        enter=nn.Conv2d(3, 8, 3), out=nn.Linear(4, 4),
    )  # fmt: skip


ROWS = torch.zeros(3, 5)
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, type[FedpruneError], str]] = {
    "noisy": (Noisy, ROWS, ModelError, r"Noisy gives other outputs each time"),
    "two inputs": (Noisy, (ROWS, ROWS), ModelError, r"must be one tensor .*, got tuple"),
    "no example": (Noisy, ROWS[:0], ModelError, r"at least one example, got shape \[0, 5\]"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(6), nn.LazyLinear(4)), ROWS, ModelError,
        r"0\.weight has no shape yet",
    ),
    "glu": (
        _channels_swapped, torch.zeros(2, *IMAGE), PruningError,
        r"cannot be pruned exactly: .*operations glu move channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_in_one_sentence_that_says_why(name: str) -> None:
    build, example, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words) as refused:
        UnitLayout.of(build(), example)
    assert "\n" not in str(refused.value)
