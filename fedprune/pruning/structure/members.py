"""What a layout knows of each layer: which channel belongs to which unit, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
PARAMETRIC = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.PReLU)

DEPTHWISE_MARK = "is_depthwise"


def has_channels(module: nn.Module) -> bool:
    """Whether a layer owns parameters or statistics of its channels, one by one."""
    one_slope = isinstance(module, nn.PReLU) and module.num_parameters == 1
    return isinstance(module, PARAMETRIC) and not one_slope


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer with its channels' units; -1 stands for a channel that no unit owns.

    Attributes:
        name: The module's dotted name.
        kind: `conv`, `depthwise`, `linear`, `norm` or `prelu`.
        in_units: Unit of each input channel, [in_channels]; the same as `out_units` where every
            output channel has just its own input channel.
        out_units: Unit of each output channel, [out_channels].
        kernel: Weights for each pair of an input and an output channel.
        groups: Groups of a grouped convolution, else 1.
        vectors: Further parameters for each output channel (bias, affine).
        positions: How often each weight multiplies, for one example.
        is_selection: A frozen matrix of zeros and ones, free of parameters and operations.
    """

    name: str
    kind: str
    in_units: NDArray[np.int64]
    out_units: NDArray[np.int64]
    kernel: int
    groups: int
    vectors: int
    positions: int
    is_selection: bool

    @classmethod
    def of(
        cls,
        name: str,
        module: Any,
        positions: int,
        in_units: NDArray[np.int64],
        out_units: NDArray[np.int64],
    ) -> Layer:
        """Describe a module whose channels have been given units."""
        kind = kind_of(module)
        sizes: tuple[int, ...] = getattr(module, "kernel_size", ()) if kind != "norm" else ()
        vectors = sum(
            parameter.ndim == 1 and len(parameter) == len(out_units)
            for _, parameter in module.named_parameters(recurse=False)
        )
        return cls(
            name=name,
            kind=kind,
            in_units=in_units,
            out_units=out_units,
            kernel=math.prod(sizes) if kind in ("conv", "depthwise", "linear") else 0,
            groups=int(getattr(module, "groups", 1)) if kind == "conv" else 1,
            vectors=vectors,
            positions=positions,
            is_selection=is_selection(module),
        )

    @staticmethod
    def channels_of(module: Any) -> tuple[int, int]:
        """Input and output channels of a module; the same number where each has its own."""
        if isinstance(module, nn.Linear):
            return module.in_features, module.out_features
        if isinstance(module, CONVOLUTIONS):
            return module.in_channels, module.out_channels
        if isinstance(module, nn.GroupNorm):
            return module.num_channels, module.num_channels
        width = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
        return int(width), int(width)


@dataclass(frozen=True)
class Frozen:
    """Channels that stay because they cannot be removed one by one without changing the rest.

    Attributes:
        name: The first layer that produces them.
        channels: How many there are, tied ones counted once.
        reason: What stops them, as the end of a sentence.
    """

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Site:
    """Where a gate stands: after a batch norm, or after a layer that no batch norm follows.

    Attributes:
        name: The module whose output is gated.
        units: Unit of each of its output channels, [channels], -1 for none.
        folds_into: The convolution that this batch norm can be folded into, or "".
    """

    name: str
    units: NDArray[np.int64]
    folds_into: str


def kind_of(module: Any) -> str:
    """Say which kind of layer a module is.

    A depthwise convolution that is down to one channel looks like any other; `shrink` marks it.
    """
    if isinstance(module, CONVOLUTIONS):
        alike = module.groups == module.in_channels == module.out_channels
        marked = getattr(module, DEPTHWISE_MARK, module.groups > 1)
        return "depthwise" if alike and marked else "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    return "prelu" if isinstance(module, nn.PReLU) else "norm"


def is_selection(module: nn.Module) -> bool:
    """Whether a layer is a frozen selection of channels, which costs nothing."""
    return bool(getattr(module, "is_selection", False))
