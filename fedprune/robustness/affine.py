"""Linear maps with a bias that a batch norm is folded into: convolutions and matrices."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedprune.robustness.cache import NORMS
from fedprune.robustness.layer_norms import (
    Geometry,
    absolute_norm,
    convolution_norm,
    convolve,
)
from fedprune.robustness.operations import FOLD_STEPS, Diagonal, Operation, Rounding, entries_norm
from fedprune.robustness.rounding import (
    TINY,
    gamma,
    product_up,
    sqrt_up,
    up,
)
from fedprune.robustness.spectral import Norm, matrix_norm


class Affine(Operation):
    """A linear map with a bias into which a following batch norm can be folded."""

    folded: str
    """What was folded into it: "+" and a name each."""

    @abstractmethod
    def fold(self, after: Diagonal) -> Affine:
        """Give the affine map that equals this one followed by `after`."""

    @abstractmethod
    def scale_input(self, scale: Tensor) -> Affine | None:
        """Give this map after an entrywise scaling of its input [...], None if it cannot."""


def cached_convolution_norm(weight: Tensor, geometry: Geometry) -> Norm:
    """Bound the norm of a convolution, and so of its adjoint, by the rules of `layer_norms`."""
    kernel = weight.numpy()
    return NORMS.norm(f"convolution {geometry}", kernel, lambda: convolution_norm(kernel, geometry))


def by_channel(scale: Tensor, channels: int) -> Tensor | None:
    """Give a scaling [channels, *map] as one factor a channel, None if it varies over the map."""
    flat = scale.flatten(1)
    if len(scale) != channels or not torch.equal(flat, flat[:, :1].expand_as(flat)):
        return None
    return flat[:, 0]


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A convolution of 1 to 3 spatial axes: weight [out, in / groups, *kernel], float64."""

    weight: Tensor
    bias: Tensor
    magnitude: Tensor
    geometry: Geometry
    folded: str = ""

    @property
    def kind(self) -> str:
        """The convolution and what was folded into it."""
        return f"conv{len(self.geometry.axes)}d{self.folded}"

    @cached_property
    def norm(self) -> Norm:
        """Bound by the rules of `layer_norms`."""
        return cached_convolution_norm(self.weight, self.geometry)

    @cached_property
    def rounding(self) -> Rounding:
        """gamma_n |W| |x| for inner products of n terms in any order, plus the bias's terms."""
        steps = gamma(math.prod(self.weight.shape[1:]) + FOLD_STEPS)
        positions = math.prod(axis.outputs for axis in self.geometry.axes)
        constant = product_up(steps, entries_norm(self.magnitude), sqrt_up(positions))
        slope = product_up(steps, absolute_norm(self.weight.numpy(), self.geometry))
        return Rounding(slope, 0.0, up(constant + TINY))

    def run(self, *inputs: Tensor) -> Tensor:
        """Convolve in float64 on the CPU: direct inner products, no transform algorithms."""
        return convolve(inputs[0], self.weight, self.bias, self.geometry)

    def fold(self, after: Diagonal) -> Convolution:
        """Fold a scaling of the output channels."""
        rows = [-1] + [1] * (self.weight.ndim - 1)
        return replace(
            self,
            weight=self.weight * after.scale.reshape(rows),
            bias=self.bias * after.scale + after.shift,
            magnitude=self.magnitude * after.scale.abs() + after.magnitude,
            folded=f"{self.folded}+{after.kind}",
        )

    def scale_input(self, scale: Tensor) -> Convolution | None:
        """Fold a scaling [in, *map] that is constant over the map."""
        channels = by_channel(scale, self.weight.shape[1] * self.geometry.groups)
        if channels is None:
            return None
        by_group = channels.reshape(self.geometry.groups, 1, -1)
        grouped = self.weight.reshape(self.geometry.groups, -1, *self.weight.shape[1:])
        shape = by_group.shape + (1,) * (self.weight.ndim - 2)
        return replace(self, weight=(grouped * by_group.reshape(shape)).reshape(self.weight.shape))


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """A matrix [out, in] on the last axis, float64; `positions` is how often it is applied."""

    weight: Tensor
    bias: Tensor
    magnitude: Tensor
    positions: int = 1
    folded: str = ""

    @property
    def kind(self) -> str:
        """The linear map and what was folded into it."""
        return f"linear{self.folded}"

    @cached_property
    def norm(self) -> Norm:
        """Largest singular value of the weight."""
        weight = self.weight.numpy()
        return NORMS.norm("linear", weight, lambda: matrix_norm(weight))

    @cached_property
    def rounding(self) -> Rounding:
        """gamma_n |W| |x| for inner products of n terms in any order, plus the bias's terms."""
        steps = gamma(self.weight.shape[1] + FOLD_STEPS)
        constant = product_up(steps, entries_norm(self.magnitude), sqrt_up(self.positions))
        return Rounding(product_up(steps, entries_norm(self.weight)), 0.0, up(constant + TINY))

    def run(self, *inputs: Tensor) -> Tensor:
        """Compute x W^T + b."""
        return torch.nn.functional.linear(inputs[0], self.weight, self.bias)

    def fold(self, after: Diagonal) -> Dense:
        """Fold a scaling of the outputs."""
        return replace(
            self,
            weight=self.weight * after.scale.reshape(-1, 1),
            bias=self.bias * after.scale + after.shift,
            magnitude=self.magnitude * after.scale.abs() + after.magnitude,
            folded=f"{self.folded}+{after.kind}",
        )

    def scale_input(self, scale: Tensor) -> Dense | None:
        """Fold a scaling [in]."""
        return replace(self, weight=self.weight * scale) if scale.ndim == 1 else None
