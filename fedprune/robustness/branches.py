"""Ways in which branches of a network meet, besides `Sum` and `Concatenation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.robustness.operations import Operation, root_of_squares
from fedprune.robustness.rounding import Floats
from fedprune.robustness.spectral import Norm


@dataclass(frozen=True, eq=False)
class Stack(Operation):
    """Branches side by side along a new axis: entries as in a concatenation."""

    axis: int

    @property
    def kind(self) -> str:
        """Always "stack"."""
        return "stack"

    @property
    def norm(self) -> Norm:
        """1 for each branch; `compose` takes the root of the sum of squares."""
        return Norm(1.0, "root of the sum of squares")

    def run(self, *inputs: Tensor) -> Tensor:
        """Stack."""
        return torch.stack(inputs, dim=self.axis)

    def compose(self, bounds: Floats) -> Floats:
        """Take sqrt(sum L^2) over the branches."""
        return root_of_squares(bounds)


@dataclass(frozen=True, eq=False)
class Extremum(Operation):
    """The entrywise larger (torch.maximum) or smaller (torch.minimum) of two branches.

    |max(a, b) - max(c, d)| <= max(|a - c|, |b - d|) entry by entry, so the distance is at most
    that of the two branches side by side.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def kind(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def norm(self) -> Norm:
        """1 for each branch; `compose` takes the root of the sum of squares."""
        return Norm(1.0, "root of the sum of squares")

    def run(self, *inputs: Tensor) -> Tensor:
        """Take the larger or smaller entries."""
        return self.function(inputs[0], inputs[1])

    def compose(self, bounds: Floats) -> Floats:
        """Take sqrt(L1^2 + L2^2)."""
        return root_of_squares(bounds)
