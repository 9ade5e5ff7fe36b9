"""Measured times of single layers over a grid of widths, and what they say between its points."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.hardware.layers import MATRICES, drawn_like
from fedprune.hardware.timing import time_in_turns

Floats = NDArray[np.float64]

_LEAST_MS = 0.2


@dataclass(frozen=True, eq=False)
class Grid:
    """Milliseconds of one layer at some numbers of inputs and outputs.

    Attributes:
        ins: Numbers of inputs, rising; a single 0 where every output has just its own input.
        outs: Numbers of outputs, rising.
        ms: Medians, [ins, outs].
    """

    ins: Floats
    outs: Floats
    ms: Floats

    def at(self, n_in: NDArray[Any], n_out: NDArray[Any]) -> Floats:
        """Bilinear between grid points; outside, the nearest edge.

        Args:
            n_in: Numbers of inputs, [...].
            n_out: Numbers of outputs, [...].

        Returns:
            Milliseconds, [...].
        """
        low, above, part = _between(self.outs, n_out)
        if len(self.ins) == 1:
            return np.asarray(self.ms[0, low] * (1 - part) + self.ms[0, above] * part)
        left, right, share = _between(self.ins, n_in)
        first = self.ms[left, low] * (1 - part) + self.ms[left, above] * part
        last = self.ms[right, low] * (1 - part) + self.ms[right, above] * part
        return np.asarray(first * (1 - share) + last * share)

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"ins": self.ins.tolist(), "outs": self.outs.tolist(), "ms": self.ms.tolist()}

    @classmethod
    def described(cls, stored: Mapping[str, Any]) -> Grid:
        """Read what `describe` gave.

        Raises:
            KeyError: if a key is missing.
            ValueError: if shapes do not fit, widths do not rise or a time is not positive.
        """
        ins, outs, ms = (np.array(stored[key], dtype=np.float64) for key in ("ins", "outs", "ms"))
        rising = all(axis.ndim == 1 and len(axis) and (np.diff(axis) > 0).all()
                     for axis in (ins, outs))  # fmt: skip
        positive = (ms > 0).all() and np.isfinite(ms).all()
        if not rising or ms.shape != (len(ins), len(outs)) or not positive:
            raise ValueError("a grid needs rising widths and a positive time for each pair of them")
        return cls(ins, outs, ms)


def _between(axis: Floats, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    """Neighbouring grid points of each value and how far it is on the way to the upper one."""
    inside = np.clip(np.asarray(values, dtype=np.float64), axis[0], axis[-1])
    above = np.minimum(np.searchsorted(axis, inside, side="left"), len(axis) - 1)
    low = np.maximum(above - 1, 0)
    gap = np.where(above > low, axis[above] - axis[low], 1.0)
    return low, above, np.where(above > low, (inside - axis[low]) / gap, 0.0)


def axis_of(widest: int, points: int, multiple: int = 1) -> list[int]:
    """Widths to measure up to `widest`: evenly spread multiples of 8 where there is room for them.

    Args:
        widest: The largest width.
        points: How many widths at most.
        multiple: All widths must be multiples of this.
    """
    step = multiple * (8 // np.gcd(8, multiple)) if widest >= 8 * multiple * points else multiple
    raw = {max(step, round(widest * k / points / step) * step) for k in range(1, points)}
    return sorted({width for width in raw if width < widest} | {widest})


def widened_to(layer: Any, inputs: Tensor, n_in: int, n_out: int) -> tuple[nn.Module, Tensor]:
    """A fresh layer of the same kind with other widths, and an input for it.

    Args:
        layer: A convolution, linear layer, norm or slope; one whose inputs are its outputs takes
            `n_out`.
        inputs: What the layer reads, [batch, ...].
        n_in: Inputs.
        n_out: Outputs.
    """
    if isinstance(layer, nn.Linear):
        return nn.Linear(n_in, n_out, layer.bias is not None), _cut(inputs, -1, n_in)
    if isinstance(layer, MATRICES):
        one: Any = layer
        alike = one.groups == one.in_channels == one.out_channels and one.groups > 1
        groups, n_in = (n_out, n_out) if alike else (one.groups, n_in)
        kind = _plain_class(layer)
        options: dict[str, Any] = (
            {"output_padding": layer.output_padding} if layer.transposed else {}
        )
        made = kind(
            n_in,
            n_out,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            **options,
        )
        return made, _cut(inputs, 1, n_in)
    return _norm_of(layer, n_out), _cut(inputs, 1, n_out)


def _plain_class(layer: object) -> Any:
    return next(kind for kind in MATRICES if isinstance(layer, kind))


def _norm_of(layer: Any, width: int) -> nn.Module:
    """A copy of a norm or slope whose vectors are cut or repeated to a width."""
    made: Any = copy.deepcopy(layer)
    for key in ("num_features", "num_channels", "num_parameters"):
        if hasattr(made, key):
            setattr(made, key, width)
    if isinstance(layer, nn.GroupNorm):
        made.num_groups = max(1, width // (layer.num_channels // layer.num_groups))
    for name, vector in [*made.named_parameters(), *made.named_buffers()]:
        if vector.ndim == 1:
            fitted = vector.detach()[torch.arange(width) % len(vector)]
            parameter = isinstance(vector, nn.Parameter)
            setattr(made, name, nn.Parameter(fitted) if parameter else fitted)
    return made  # type: ignore[no-any-return]


def _cut(inputs: Tensor, dim: int, width: int) -> Tensor:
    """An input of another width, laid out without gaps."""
    shape = list(inputs.shape)
    shape[dim] = width
    return drawn_like(inputs, shape)


def measure_grids(
    layers: Mapping[str, tuple[nn.Module, Tensor, list[int], list[int]]],
    *,
    repeats: int,
    threads: int,
) -> dict[str, Grid]:
    """Time layers at every pair of some widths; the pairs of one layer take turns.

    Args:
        layers: By name a layer, its input, the numbers of inputs and those of outputs.
        repeats: Timed turns; medians count.
        threads: Processor threads that torch may use.

    Raises:
        ConfigError: if a count is out of range.
    """
    grids = {}
    for name, (layer, inputs, ins, outs) in layers.items():
        works: dict[str, Callable[[], Any]] = {}
        cuts: dict[torch.Size, Tensor] = {}
        for n_in in ins:
            for n_out in outs:
                made, cut = widened_to(layer, inputs, n_in, n_out)
                made.to(inputs.device, inputs.dtype).eval().requires_grad_(False)
                cut = cuts.setdefault(cut.shape, cut)  # one input serves all numbers of outputs
                works[f"{n_in},{n_out}"] = partial(made, cut)
        times = time_in_turns(
            works, repeats=repeats, warmup=1, threads=threads, least_ms=_LEAST_MS, shuffled=True
        )
        medians = [[float(np.median(times[f"{i},{o}"])) for o in outs] for i in ins]
        grids[name] = Grid(*(np.array(part, dtype=np.float64) for part in (ins, outs, medians)))
    return grids
