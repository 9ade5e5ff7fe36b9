"""What a sliding window is: map sizes, kernels, strides, dilations and paddings, axis by axis."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a sliding window: `low` and `high` are the padding on either side."""

    length: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    @property
    def outputs(self) -> int:
        """How many windows fit."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.length + self.low + self.high - reach) // self.stride + 1

    @property
    def torus(self) -> int:
        """Polyphase points of a torus of which the zero-padded operator is a compression.

        Reads run from -low to length + high - 1, so with stride * torus >= length + max(low, high)
        every read outside the map meets a zero; distinct outputs need torus >= outputs.
        """
        zeros = max(self.low, self.high)
        return max(-(-(self.length + zeros) // self.stride), self.outputs)

    @property
    def multiplicity(self) -> int:
        """How many windows one input position can fall in, at most: ceil(k gcd(d, s) / s)."""
        return -(-self.kernel * math.gcd(self.dilation, self.stride) // self.stride)


@dataclass(frozen=True)
class Geometry:
    """The axes of a convolution, its groups, and what its padding is made of."""

    axes: tuple[Axis, ...]
    groups: int = 1
    padding_mode: str = "zeros"
