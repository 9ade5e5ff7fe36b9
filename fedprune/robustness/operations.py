"""The operations of a lowered network: how each runs, how far it stretches, how it rounds.

A network is lowered to these few kinds. Each can run in float64 on a batch, bounds its own l2
Lipschitz constant, says how bounds of its inputs compose, and bounds the rounding error that one
evaluation in float64 adds. A new kind of analysis is one more method here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedprune.robustness.rounding import (
    EPSILON,
    TINY,
    Floats,
    add_up,
    gamma,
    multiply_up,
    norm_up,
    product_up,
    sqrt_up,
    up,
)
from fedprune.robustness.spectral import Norm

FOLD_STEPS = 16
"""Roundings allowed in a folded weight or bias, added to the length of each inner product."""


@dataclass(frozen=True)
class Rounding:
    """Forward error of one float64 evaluation, in l2 norm for one example.

    At most `per_input` times the norm of the inputs, plus `per_output` times the norm of the
    output, plus `constant`.
    """

    per_input: float = 0.0
    per_output: float = 0.0
    constant: float = 0.0


class Operation(ABC):
    """One operation of a lowered network, acting on batches [n, ...]."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the operation is called in tables and errors."""

    @property
    @abstractmethod
    def norm(self) -> Norm:
        """Upper bound on its l2 Lipschitz constant as a real function."""

    @property
    def rounding(self) -> Rounding:
        """Error of one evaluation in float64; exact unless said otherwise."""
        return Rounding()

    @abstractmethod
    def run(self, *inputs: Tensor) -> Tensor:
        """Evaluate on a batch in float64."""

    def compose(self, bounds: Floats) -> Floats:
        """Bound the output's distance from its inputs' distances: [inputs, ...] -> [...]."""
        return multiply_up(self.norm.value, bounds[0])


@dataclass(frozen=True, eq=False)
class Function(Operation):
    """A unary operation without weights whose Lipschitz constant is known in closed form."""

    name: str
    function: Callable[[Tensor], Tensor]
    bound: Norm
    error: Rounding = field(default_factory=Rounding)
    keeps_entries: bool = False
    """True where the output is the input's entries in the same order (identity, flatten)."""
    moves_entries: bool = False
    """True where every output entry is an input entry or 0 (indexing, flips, upsampling)."""

    @property
    def kind(self) -> str:
        """The function's name."""
        return self.name

    @property
    def norm(self) -> Norm:
        """The bound it was made with."""
        return self.bound

    @property
    def rounding(self) -> Rounding:
        """The error it was made with."""
        return self.error

    def run(self, *inputs: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(inputs[0])


@dataclass(frozen=True, eq=False)
class Diagonal(Operation):
    """Scale and shift channel by channel: batch norm in eval mode, or a constant factor.

    `scale`, `shift` and `magnitude` are [channels] along axis 1, or of one entry. `magnitude`
    bounds the terms whose sum is `shift`, before any cancellation.
    """

    name: str
    scale: Tensor
    shift: Tensor
    magnitude: Tensor
    entries: int
    """Entries of one example, to bound the norm of what is added to them."""

    @property
    def kind(self) -> str:
        """What the scaling was called in the model."""
        return self.name

    @cached_property
    def norm(self) -> Norm:
        """Largest |scale|, with the rounding of the folding."""
        largest = float(self.scale.abs().max()) * (1 + FOLD_STEPS * EPSILON)
        return Norm(up(largest), "largest scale")

    @property
    def rounding(self) -> Rounding:
        """A few roundings of |scale x| + |terms of the shift|."""
        steps = gamma(FOLD_STEPS)
        constant = product_up(steps, float(self.magnitude.max()), sqrt_up(self.entries))
        return Rounding(product_up(steps, self.norm.value), 0.0, up(constant + TINY))

    def run(self, *inputs: Tensor) -> Tensor:
        """Compute scale * x + shift."""
        shape = [-1] + [1] * (inputs[0].ndim - 2)
        return inputs[0] * self.scale.reshape(shape) + self.shift.reshape(shape)


@dataclass(frozen=True, eq=False)
class Sum(Operation):
    """A weighted sum of branches: skip connections, differences, a constant added."""

    weights: Sequence[float]
    constant: Tensor | None = None

    @property
    def kind(self) -> str:
        """Always "add"."""
        return "add"

    @property
    def norm(self) -> Norm:
        """The factor of the largest branch; bounds of the branches are added up in `compose`."""
        return Norm(max(abs(weight) for weight in self.weights), "sum of branches")

    @property
    def rounding(self) -> Rounding:
        """One product a branch and one sum each."""
        steps = gamma(2 * len(self.weights) + 2)
        slope = product_up(steps, self.norm.value)
        size = 0.0 if self.constant is None else entries_norm(self.constant)
        return Rounding(slope, steps, product_up(2 * steps, size))

    def run(self, *inputs: Tensor) -> Tensor:
        """Add the weighted branches."""
        total = inputs[0] * self.weights[0]
        for weight, branch in zip(self.weights[1:], inputs[1:], strict=True):
            total = total + weight * branch
        return total if self.constant is None else total + self.constant

    def compose(self, bounds: Floats) -> Floats:
        """Sum |weight| L over the branches."""
        total: Floats = np.zeros_like(bounds[0])
        for weight, bound in zip(self.weights, bounds, strict=True):
            total = add_up(total, multiply_up(abs(weight), bound))
        return total


@dataclass(frozen=True, eq=False)
class Concatenation(Operation):
    """Branches side by side along an axis other than the batch's."""

    axis: int

    @property
    def kind(self) -> str:
        """Always "concat"."""
        return "concat"

    @property
    def norm(self) -> Norm:
        """1 for each branch; `compose` takes the root of the sum of squares."""
        return Norm(1.0, "root of the sum of squares")

    def run(self, *inputs: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(inputs, dim=self.axis)

    def compose(self, bounds: Floats) -> Floats:
        """Take sqrt(sum L^2) over the branches."""
        return root_of_squares(bounds)


def root_of_squares(bounds: Floats) -> Floats:
    """Take sqrt(sum L^2) over the first axis, never below the exact value."""
    scale = np.maximum(bounds.max(axis=0), TINY)  # squares must neither overflow nor vanish
    ratios: Floats = np.nextafter(bounds / scale, np.inf)
    squares = np.square(ratios).sum(axis=0) * (1 + (len(bounds) + 4) * EPSILON)
    roots: Floats = np.nextafter(np.sqrt(squares), np.inf)
    return multiply_up(roots, scale)


def copy_entries(name: str, function: Callable[[Tensor], Tensor]) -> Function:
    """Make an operation that hands its input's entries on unchanged and in order."""
    return Function(name, function, Norm(1.0, "exact"), keeps_entries=True)


def entries_norm(values: Tensor) -> float:
    """The l2 norm of all entries, rounded up."""
    return float(norm_up(values.numpy()))
