"""Lipschitz bounds and certificates that hold inside a ball around given points.

Inside a small ball most ReLUs are dead or always active. What remains is nearly one matrix: its
norm, plus what the undecided activations can add, bounds the network's slope there (as in RecurJac,
Zhang et al., AAAI 2019, in spectral norm), and affine forms bound its logits (see `regions`). A
local bound holds for every pair of points of the ball; the global one is used where it is less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness.lipschitz import bound_network
from fedprune.robustness.network import Evaluation, Network, Std, input_scale
from fedprune.robustness.operations import Dense
from fedprune.robustness.regions import (
    FLOOR,
    SAFE,
    Region,
    Regions,
    follow,
    lower,
    row_lengths,
    spectral_norms,
)
from fedprune.robustness.rounding import EPSILON, Floats, gamma

MAX_ENTRIES = 24_000_000
"""Entries of one node's Jacobians that are held at a time, over a batch of points."""

HALVINGS = 12
"""Steps of the search for the largest radius that is certified."""


@dataclass(frozen=True)
class LocalBounds:
    """Lipschitz bounds inside balls, beside the global one.

    Attributes:
        radius: of the balls, in units of the unnormalised input.
        upper: [n] certified bound of the network's slope inside each ball; never above `overall`.
        overall: the global bound.
        decided: [n] share of ReLUs that are dead or always active in the ball.
    """

    radius: float
    upper: Floats
    overall: float
    decided: Floats

    @property
    def gain(self) -> float:
        """The global bound over the median local one."""
        return self.overall / float(np.median(self.upper))


def local_lipschitz(
    model: nn.Module, inputs: Tensor, radius: float, *, input_std: Std | None = None
) -> LocalBounds:
    """Bound the slope of a network inside an l2 ball around each of many points.

    Args:
        model: eval mode, linear operations, ReLU, pools; it is not changed.
        inputs: [n, ...] as the model receives them.
        radius: of the balls, positive, in units of the unnormalised input.
        input_std: [channels] of the normalisation in front of the model, or None.

    Raises:
        RobustnessError: as for `lipschitz`; no inputs, values or a radius that are not finite.
        UnsupportedOpError: an operation without a global or a local rule.
    """
    certifier = LocalCertifier.of(model, inputs[:1], input_std=input_std)
    return certifier.bounds(inputs, radius)


@dataclass(frozen=True)
class LocalCertifier:
    """Certifies predictions inside balls of a given radius, batch by batch.

    Attributes:
        network: the lowered model.
        scale: [...] of the input's shape, from the unnormalised to the model's input.
        overall: global bound of the whole network.
        body: nodes before the linear head, or the whole network if it has none.
        head: what turns the body into logits.
    """

    network: Network
    scale: Tensor
    overall: float
    body: Network
    head: _Head

    @classmethod
    def of(
        cls, model: nn.Module, example_input: Tensor, *, input_std: Std | None = None
    ) -> LocalCertifier:
        """Lower a model and bound it globally; arguments and errors as for `Certifier.of`."""
        bounded = bound_network(model, example_input, input_std=input_std)
        network = bounded.network
        scale = input_scale(input_std, network.input_shape)
        ones = torch.ones(network.input_shape[1:], dtype=torch.float64)
        shape = network.steps[network.output].shape if network.steps else network.input_shape
        head, split = _head(network, math.prod(shape))
        body = replace(network, output=split).trimmed()
        return cls(
            network, ones if scale is None else scale, bounded.bounds[network.output], body, head
        )

    def bounds(self, inputs: Tensor, radius: float) -> LocalBounds:
        """Bound the network's slope in balls of one radius around inputs [n, ...]."""
        points = self._checked(inputs)
        radii = self._radii(len(points), radius)
        upper, decided = [], []
        for rows in self._parts(len(points)):
            regions = follow(self.network, points[rows], radii[rows], self.scale)
            upper.append(torch.clamp_max(_slope(regions), self.overall))
            decided.append(regions.decided)
        return LocalBounds(
            radius, torch.cat(upper).numpy(), self.overall, torch.cat(decided).numpy()
        )

    def certified(self, inputs: Tensor, labels: Tensor, radius: float) -> NDArray[np.bool_]:
        """Say [n] whether no perturbation of at most `radius` changes the label.

        True is a proof: over the real numbers, the label's logit stays strictly above every other
        one in the whole closed ball. False says nothing.

        Raises:
            RobustnessError: wrong shapes, labels outside the classes, values not finite.
        """
        points = self._checked(inputs)
        truth = self._labels(labels, len(points))
        return self._certified(points, truth, self._radii(len(points), radius))

    def certified_radii(self, inputs: Tensor, labels: Tensor, largest: float) -> Floats:
        """Search [n] the largest radius up to `largest` at which each input is certified.

        Every radius given back was certified itself; 0 where none was.
        """
        points = self._checked(inputs)
        truth = self._labels(labels, len(points))
        known = torch.zeros(len(points), dtype=torch.float64)
        top = self._radii(len(points), largest)
        sure = torch.from_numpy(self._certified(points, truth, top))
        known = torch.where(sure, top, known)
        above = top.clone()
        for _ in range(HALVINGS):
            left = ~sure
            if not bool(left.any()):
                break
            middle = (known + above) / 2
            holds = torch.zeros_like(sure)
            holds[left] = torch.from_numpy(
                self._certified(points[left], truth[left], middle[left])
            )
            known = torch.where(holds, middle, known)
            above = torch.where(left & ~holds, middle, above)
        return known.numpy()

    def _certified(self, points: Tensor, labels: Tensor, radii: Tensor) -> NDArray[np.bool_]:
        found = []
        for rows in self._parts(len(points)):
            regions = follow(self.body, points[rows], radii[rows], self.scale)
            exact = self.body.evaluate(points[rows])
            pairs = _Pairs.of(self.head, labels[rows])
            by_form = pairs.least_over_form(regions.region, radii[rows])
            by_slope = pairs.least_over_slope(regions.region, radii[rows], exact)
            least = torch.maximum(by_form, by_slope).scatter(1, labels[rows][:, None], torch.inf)
            found.append((least > 0).all(dim=1))
        return torch.cat(found).numpy()

    def _parts(self, count: int) -> list[slice]:
        entries = self.scale.numel() * max(
            [self.scale.numel(), *(math.prod(step.shape) for step in self.network.steps.values())]
        )
        size = max(1, MAX_ENTRIES // entries)
        return [slice(first, first + size) for first in range(0, count, size)]

    def _checked(self, inputs: Tensor) -> Tensor:
        wanted = self.network.input_shape[1:]
        if len(inputs) == 0 or tuple(inputs.shape[1:]) != wanted:
            raise RobustnessError(
                f"inputs must be [n, {', '.join(map(str, wanted))}] with n at least 1, "
                f"got {list(inputs.shape)}"
            )
        if not bool(torch.isfinite(inputs).all()):
            raise RobustnessError("the inputs have values that are not finite")
        return inputs.detach().to(device="cpu", dtype=torch.float64)

    def _radii(self, count: int, radius: float) -> Tensor:
        if not (math.isfinite(radius) and radius > 0):
            raise RobustnessError(f"radius must be positive and finite, got {radius}")
        return torch.full((count,), float(radius), dtype=torch.float64)

    def _labels(self, labels: Tensor, count: int) -> Tensor:
        classes = len(self.head.bias)
        if classes < 2 or labels.shape != (count,) or labels.is_floating_point():
            raise RobustnessError(
                f"a certificate needs one integer label for each of {count} inputs and at least "
                f"2 classes, got labels {list(labels.shape)} and {classes} classes"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise RobustnessError(
                f"labels must be integers in [0, {classes}), "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
        return labels.cpu().long()


@dataclass(frozen=True)
class _Head:
    """The linear head, or the identity where there is none: float64 as lowered.

    Attributes:
        weight: [classes, features].
        bias: [classes].
        magnitude: [classes], the size of the terms behind the bias.
    """

    weight: Tensor
    bias: Tensor
    magnitude: Tensor


def _head(network: Network, outputs: int) -> tuple[_Head, str]:
    """The head and the node that it reads."""
    if network.head is None:
        zeros = torch.zeros(outputs, dtype=torch.float64)
        return _Head(torch.eye(outputs, dtype=torch.float64), zeros, zeros), network.output
    step = network.steps[network.head]
    assert isinstance(step.operation, Dense)
    dense = step.operation
    return _Head(dense.weight, dense.bias, dense.magnitude), step.inputs[0]


def _slope(regions: Regions) -> Tensor:
    """Bound the spectral norm of every Jacobian in the ball: [n]."""
    region = regions.region
    return (spectral_norms(region.jacobian.flatten(2)) + region.spread) * SAFE


@dataclass(frozen=True)
class _Pairs:
    """Differences of the label's logit and every other one: what a ball leaves of them at least.

    Attributes:
        weight: [n, classes, features], the label's row minus each row.
        size: the same shape, the sum of both rows' absolute values, which rounding follows.
        bias, magnitude: [n, classes], as `_Head`.
        steps: relative error of an inner product, folding and differences included.
    """

    weight: Tensor
    size: Tensor
    bias: Tensor
    magnitude: Tensor
    steps: float

    @classmethod
    def of(cls, head: _Head, labels: Tensor) -> _Pairs:
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

    def least_over_slope(self, region: Region, radii: Tensor, exact: Evaluation) -> Tensor:
        """From the value at the point itself, less radius times the steepest slope in the ball."""
        jacobian = region.jacobian.flatten(2)
        lengths = torch.linalg.vector_norm(self.weight, dim=2) * SAFE + FLOOR
        lengths = lengths + 64 * EPSILON * torch.linalg.vector_norm(self.size, dim=2)
        spread = torch.minimum(
            lengths * region.spread[:, None],
            self._sum(self.weight.abs() + 64 * EPSILON * self.size, region.spreads.flatten(1)),
        )
        lost = self.steps * self._sum(self.size, row_lengths(jacobian))
        slope = row_lengths(self._of_columns(jacobian)) + spread + lost
        centre = exact.outputs.flatten(1)
        wrong = self._wrong(centre.abs()) + lengths * torch.from_numpy(exact.errors)[:, None]
        return lower(self._middle(centre) - (radii[:, None] * slope + wrong) * SAFE)

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
