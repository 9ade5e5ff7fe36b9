"""The networks that can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fedprune.errors import ModelError
from fedprune.models.checks import check_runs
from fedprune.models.cifar_resnet import CifarResNet
from fedprune.models.lenet import LeNet
from fedprune.models.mlp import mlp
from fedprune.models.own import build_own
from fedprune.models.torchvision_names import (
    INPUT_SHAPE,
    build_torchvision,
    torchvision_names,
    without_auxiliary_heads,
)
from fedprune.models.weights import fitted_state, read_state
from fedprune.named import is_reference


@dataclass(frozen=True)
class Family:
    """How to build a network, and the input shape it takes unless told otherwise.

    `input_shape` is None where only the caller can know it.
    """

    build: Callable[[tuple[int, ...], int], nn.Module]
    input_shape: tuple[int, ...] | None


FAMILIES: dict[str, Family] = {
    "lenet": Family(LeNet, (1, 8, 8)),
    "mlp": Family(mlp, (1, 8, 8)),
    "resnet20": Family(partial(CifarResNet, blocks_per_stage=3), (3, 32, 32)),
    "resnet32": Family(partial(CifarResNet, blocks_per_stage=5), (3, 32, 32)),
    "resnet44": Family(partial(CifarResNet, blocks_per_stage=7), (3, 32, 32)),
    "resnet56": Family(partial(CifarResNet, blocks_per_stage=9), (3, 32, 32)),
}


def load(
    name: str,
    *,
    weights: str | Path = "",
    num_classes: int = 10,
    input_shape: Sequence[int] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build the network called `name`, in evaluation mode, with weights from a file or fresh ones.

    Networks of this package can be traced by `torch.fx`, and they and torchvision's overwrite no
    layer's output in place. Nothing is ever downloaded.

    Args:
        name: a key of `FAMILIES`, a classifier of torchvision, or "package.module:function", a
            function of the user's own: `build(input_shape: tuple[int, ...], num_classes: int) ->
            torch.nn.Module`.
        weights: a `.th`, `.pth`, `.pt` or `.safetensors` file; empty for initial weights. It must
            fit, the head of `num_classes` outputs too.
        num_classes: width of the output [batch, num_classes].
        input_shape: [C, H, W] or [features] of one example; None for the network's default, which
            a user's own network has not.
        seed: makes the initial weights reproducible; None draws them afresh. The process's own
            random state is left as it was.

    Raises:
        ModelError: if the name is unknown, the shape does not suit, the weights do not fit, or the
            network does not turn one example into one row of finite logits.
        ConfigError: if a user's own function cannot be imported.
    """
    family = _family(name)
    shape = _checked_shape(name, default_input_shape(name) if input_shape is None else input_shape)
    if num_classes < 2:
        raise ModelError(f"num_classes must be at least 2, got {num_classes} (model {name!r})")
    with _own_random_state(seed):
        model = family.build(shape, num_classes)
        if name not in FAMILIES:
            check_runs(model, shape, num_classes, f"model.name = {name!r}")
    if weights:
        state = without_auxiliary_heads(name, read_state(weights))
        model.load_state_dict(fitted_state(model, state, str(weights)))
    return model.eval()


def names() -> list[str]:
    """List the networks of this package; `load` knows `torchvision_names()` too."""
    return list(FAMILIES)


def default_input_shape(name: str) -> tuple[int, ...]:
    """Tell the shape of one example that the network called `name` takes unless told otherwise.

    Raises:
        ModelError: if the name is unknown or of a user's own network, which has no default.
    """
    shape = _family(name).input_shape
    if shape is None:
        raise ModelError(f"input_shape must be given for a network of one's own, model {name!r}")
    return shape


def _family(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    if is_reference(name):
        return Family(partial(build_own, name), None)
    if name in torchvision_names():
        return Family(partial(build_torchvision, name), INPUT_SHAPE)
    raise ModelError(
        f"model.name must be one of {', '.join(FAMILIES)}, a classifier of torchvision such as "
        f'resnet18, or a function of your own, "package.module:function", got {name!r}'
    )


def _checked_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if not shape or any(side < 1 for side in shape):
        raise ModelError(
            f"input_shape must be [C, H, W] or [features] of positive sides, got {list(shape)} "
            f"(model {name!r})"
        )
    return tuple(int(side) for side in shape)


@contextmanager
def _own_random_state(seed: int | None) -> Iterator[None]:
    # Networks are built on the processor, so its generator is all there is to put back; seeding
    # through torch.manual_seed would also reseed every accelerator.
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.default_generator.seed()
        else:
            torch.default_generator.manual_seed(seed)
        yield
