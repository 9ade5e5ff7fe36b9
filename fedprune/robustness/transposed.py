"""Transposed convolutions: the adjoints of convolutions, with their norms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedprune.robustness.affine import Affine, by_channel, cached_convolution_norm
from fedprune.robustness.layer_norms import Geometry, absolute_norm
from fedprune.robustness.operations import FOLD_STEPS, Diagonal, Rounding
from fedprune.robustness.rounding import TINY, gamma, norm_up, product_up, sqrt_up, up
from fedprune.robustness.spectral import Norm


@dataclass(frozen=True, eq=False)
class TransposedConvolution(Affine):
    """A transposed convolution: weight [in, out / groups, *kernel], float64.

    `geometry` is that of the convolution whose adjoint it is: its map is this one's output. With
    more output padding than stride - 1 that convolution has windows to which no input belongs;
    leaving them out cannot raise the norm.
    """

    weight: Tensor
    bias: Tensor
    magnitude: Tensor
    geometry: Geometry
    output_padding: tuple[int, ...]
    folded: str = ""

    @property
    def kind(self) -> str:
        """The convolution and what was folded into it."""
        return f"conv_transpose{len(self.geometry.axes)}d{self.folded}"

    @cached_property
    def norm(self) -> Norm:
        """The norm of the convolution, of which this is the adjoint."""
        return cached_convolution_norm(self.weight, self.geometry)

    @cached_property
    def rounding(self) -> Rounding:
        """gamma_n |W| |x| for inner products of at most n terms, plus the bias's terms."""
        groups = self.geometry.groups
        terms = self.weight.shape[0] // groups * math.prod(self.weight.shape[2:])
        steps = gamma(terms + FOLD_STEPS)
        positions = math.prod(axis.length for axis in self.geometry.axes)
        size = float(norm_up(self.magnitude.numpy()))
        slope = product_up(steps, absolute_norm(self.weight.numpy(), self.geometry))
        return Rounding(slope, 0.0, up(product_up(steps, size, sqrt_up(positions)) + TINY))

    def run(self, *inputs: Tensor) -> Tensor:
        """Convolve in float64 on the CPU."""
        axes = self.geometry.axes
        result: Tensor = TRANSPOSED[len(axes)](
            inputs[0],
            self.weight,
            self.bias,
            [axis.stride for axis in axes],
            [axis.low for axis in axes],
            list(self.output_padding),
            self.geometry.groups,
            [axis.dilation for axis in axes],
        )
        return result

    def fold(self, after: Diagonal) -> TransposedConvolution:
        """Fold a scaling of the output channels."""
        groups = self.geometry.groups
        grouped = self.weight.reshape(groups, -1, *self.weight.shape[1:])
        ones = [1] * (self.weight.ndim - 2)
        scale = after.scale.expand(len(self.bias)).reshape(groups, 1, -1, *ones)
        return replace(
            self,
            weight=(grouped * scale).reshape(self.weight.shape),
            bias=self.bias * after.scale + after.shift,
            magnitude=self.magnitude * after.scale.abs() + after.magnitude,
            folded=f"{self.folded}+{after.kind}",
        )

    def scale_input(self, scale: Tensor) -> TransposedConvolution | None:
        """Fold a scaling [in, *map] that is constant over the map."""
        channels = by_channel(scale, len(self.weight))
        if channels is None:
            return None
        factors = channels.reshape(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=self.weight * factors)


TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
