"""What a ball leaves of the differences between the label's logit and every other one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.robustness.affine import Dense
from fedprune.robustness.network import Evaluation, Network
from fedprune.robustness.region import FLOOR, SAFE, Region, lower, row_lengths
from fedprune.robustness.rounding import EPSILON, gamma


@dataclass(frozen=True)
class Head:
    """The linear head, or the identity where there is none: float64 as lowered.

    Attributes:
        weight: [classes, features].
        bias: [classes].
        magnitude: [classes], the size of the terms behind the bias.
    """

    weight: Tensor
    bias: Tensor
    magnitude: Tensor


def head_of(network: Network, outputs: int) -> tuple[Head, str]:
    """The head and the node that it reads."""
    if network.head is None:
        zeros = torch.zeros(outputs, dtype=torch.float64)
        return Head(torch.eye(outputs, dtype=torch.float64), zeros, zeros), network.output
    step = network.steps[network.head]
    assert isinstance(step.operation, Dense)
    dense = step.operation
    return Head(dense.weight, dense.bias, dense.magnitude), step.inputs[0]


@dataclass(frozen=True)
class Pairs:
    """Differences of the label's logit and every other one: what a ball leaves of them at least.

    Attributes:
        weight: [n, classes, features], the label's row minus each row.
        size: the same shape, the sum of both rows' absolute values, which rounding follows.
        bias, magnitude: [n, classes], as `Head`.
        steps: relative error of an inner product, folding and differences included.
    """

    weight: Tensor
    size: Tensor
    bias: Tensor
    magnitude: Tensor
    steps: float

    @classmethod
    def of(cls, head: Head, labels: Tensor) -> Pairs:
        """Pair each example's label with every class: labels [n]."""
        return cls(
            head.weight[labels][:, None] - head.weight,
            head.weight[labels].abs()[:, None] + head.weight.abs(),
            head.bias[labels][:, None] - head.bias,
            head.magnitude[labels][:, None] + head.magnitude,
            gamma(head.weight.shape[1] + 96),
        )

    def least_over_form(self, region: Region, radii: Tensor) -> Tensor:
        """From the affine form: its value at the centre, less the reach of the perturbation."""
        centre, rest = region.centre.flatten(1), region.rest.flatten(1)
        slope = region.slope.flatten(2)
        reach = radii[:, None] * row_lengths(slope)
        lost = radii[:, None] * row_lengths(self._of_columns(slope)) + self._sum(
            self.weight.abs(), rest
        )
        wrong = self._wrong(centre.abs() + reach + rest)
        return lower(self._middle(centre) - (lost + wrong) * SAFE)

    def least_over_bound(self, exact: Evaluation, radii: Tensor, upper: Tensor) -> Tensor:
        """From the value at the point, less radius times a bound [n] of the body's slope."""
        centre = exact.outputs.flatten(1)
        wrong = (
            self._wrong(centre.abs()) + self._lengths() * torch.from_numpy(exact.errors)[:, None]
        )
        lost = radii[:, None] * upper[:, None] * self._lengths()
        return lower(self._middle(centre) - (lost + wrong) * SAFE)

    def least_over_slope(self, region: Region, radii: Tensor, exact: Evaluation) -> Tensor:
        """From the value at the point itself, less radius times the steepest slope in the ball."""
        jacobian = region.jacobian.flatten(2)
        lengths = self._lengths()
        spread = torch.minimum(
            lengths * region.spread[:, None],
            self._sum(self.weight.abs() + 64 * EPSILON * self.size, region.spreads.flatten(1)),
        )
        lost = self.steps * self._sum(self.size, row_lengths(jacobian))
        slope = row_lengths(self._of_columns(jacobian)) + spread + lost
        centre = exact.outputs.flatten(1)
        wrong = self._wrong(centre.abs()) + lengths * torch.from_numpy(exact.errors)[:, None]
        return lower(self._middle(centre) - (radii[:, None] * slope + wrong) * SAFE)

    def _lengths(self) -> Tensor:
        """Lengths of the differences of rows, rounding of folded weights included."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight, dim=2)
        sizes: Tensor = torch.linalg.vector_norm(self.size, dim=2)
        return lengths * SAFE + 64 * EPSILON * sizes + FLOOR

    def _middle(self, features: Tensor) -> Tensor:
        return self._sum(self.weight, features) + self.bias

    def _wrong(self, terms: Tensor) -> Tensor:
        return self.steps * (self._sum(self.size, terms) + self.magnitude) + FLOOR

    def _of_columns(self, matrix: Tensor) -> Tensor:
        """[n, directions, features] -> [n, directions, classes]."""
        return torch.einsum("ncf,ndf->ndc", self.weight, matrix)

    @staticmethod
    def _sum(weight: Tensor, features: Tensor) -> Tensor:
        return torch.einsum("ncf,nf->nc", weight, features)
