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
from fedprune.robustness.arguments import check_inputs, check_labels, check_radius, check_whole
from fedprune.robustness.dense_sdp import slope_bound
from fedprune.robustness.forms import local_system
from fedprune.robustness.lipschitz import bound_network
from fedprune.robustness.local_pairs import Head, Pairs, head_of
from fedprune.robustness.lower import confirmed_slopes, differentiating, jacobian_norms
from fedprune.robustness.model_checks import private_copy
from fedprune.robustness.network import Evaluation, Network, Std, input_scale
from fedprune.robustness.region import SAFE, spectral_norms
from fedprune.robustness.region_activations import Switches
from fedprune.robustness.regions import Regions, follow
from fedprune.robustness.rounding import Floats
from fedprune.robustness.spectral import Norm

MAX_ENTRIES = 24_000_000
"""Entries of one node's Jacobians that are held at a time, over a batch of points."""

LOCAL_WORK = 5e9
"""Floating point operations for LipSDP at one point."""

CERTIFICATE_WORK = 2e8
"""The same in a search for certified radii, which looks at many balls."""

CERTIFICATE_VARIABLES = 400
"""Inputs and undecided activations up to which LipSDP is applied in that search."""

MAX_VARIABLES = 1500
"""Inputs and undecided activations up to which LipSDP is applied at a point."""

OVERALL = "global bound"
ENCLOSURE = "enclosure of the Jacobians"
REMAINDER = "LipSDP of the undecided activations"

HALVINGS = 12
"""Steps of the search for the largest radius that is certified."""


@dataclass(frozen=True)
class LocalBounds:
    """Lipschitz bounds inside balls, beside the global one.

    Attributes:
        radius: of the balls, in units of the unnormalised input.
        upper: [n] certified bound of the network's slope inside each ball; never above `overall`.
        methods: [n] names of the bounds that were least.
        lower: [n] the slope found at each point itself; 0 where it was not looked for.
        overall: the global bound.
        decided: [n] share of ReLUs that are dead or always active in the ball.
    """

    radius: float
    upper: Floats
    methods: tuple[str, ...]
    lower: Floats
    overall: float
    decided: Floats

    @property
    def gain(self) -> float:
        """The global bound over the median local one."""
        return self.overall / float(np.median(self.upper))


def local_lipschitz(
    model: nn.Module,
    inputs: Tensor,
    radius: float,
    *,
    input_std: Std | None = None,
    work: float = LOCAL_WORK,
) -> LocalBounds:
    """Bound the slope of a network inside an l2 ball around each of many points.

    Args:
        model: eval mode, linear operations, ReLU, pools; it is not changed.
        inputs: [n, ...] as the model receives them.
        radius: of the balls, positive, in units of the unnormalised input.
        input_std: [channels] of the normalisation in front of the model, or None.
        work: floating point operations for LipSDP's search at each point; 0 keeps its first
            multipliers, which cost a factorisation or two.

    Raises:
        RobustnessError: as for `lipschitz`; no inputs, values or a radius that are not finite.
        UnsupportedOpError: an operation without a global or a local rule.
    """
    check_inputs(inputs, "inputs")
    certifier = LocalCertifier.of(model, inputs[:1], input_std=input_std)
    bounds = certifier.bounds(inputs, radius, work=work)
    return replace(bounds, lower=_slopes_found(model, inputs, certifier.scale))


def _slopes_found(model: nn.Module, inputs: Tensor, scale: Tensor) -> Floats:
    """Jacobian norms at the points themselves, from below."""
    with differentiating():
        double = private_copy(model)
        points = inputs.detach().to(device="cpu", dtype=torch.float64, copy=True)
        start = torch.ones_like(points)
        norms, directions = jacobian_norms(double, points, start, scale, iterations=20)
        return confirmed_slopes(double, points, directions * scale, norms).numpy()


@dataclass(frozen=True)
class LocalCertifier:
    """Certifies predictions inside balls of a given radius, batch by batch.

    Attributes:
        network: the lowered model.
        scale: [...] of the input's shape, from the unnormalised to the model's input.
        overall: global bound of the whole network.
        body: nodes before the linear head, or the whole network if it has none.
        head: what turns the body into logits.
        work: floating point operations for LipSDP where the cheaper enclosures do not certify an
            example; 0 keeps its first multipliers, a negative number leaves LipSDP out.
    """

    network: Network
    scale: Tensor
    overall: float
    body: Network
    head: Head
    work: float = CERTIFICATE_WORK

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_input: Tensor,
        *,
        input_std: Std | None = None,
        work: float = CERTIFICATE_WORK,
    ) -> LocalCertifier:
        """Lower a model and bound it globally; arguments and errors as for `Certifier.of`."""
        bounded = bound_network(model, example_input, input_std=input_std)
        network = bounded.network
        scale = input_scale(input_std, network.input_shape)
        ones = torch.ones(network.input_shape[1:], dtype=torch.float64)
        shape = network.steps[network.output].shape if network.steps else network.input_shape
        head, split = head_of(network, math.prod(shape))
        body = replace(network, output=split).trimmed()
        overall = bounded.bounds[network.output]
        return cls(network, ones if scale is None else scale, overall, body, head, work)

    def bounds(self, inputs: Tensor, radius: float, *, work: float = LOCAL_WORK) -> LocalBounds:
        """Bound the network's slope in balls of one radius around inputs [n, ...]."""
        points = self._checked(inputs)
        radii = self._radii(len(points), radius)
        found: list[Norm] = []
        decided = []
        for rows in self._parts(len(points)):
            regions = follow(self.network, points[rows], radii[rows], self.scale)
            decided.append(regions.decided)
            found += [
                self._least(regions, row, slope, work)
                for row, slope in enumerate(_slope(regions).tolist())
            ]
        return LocalBounds(
            radius,
            np.array([norm.value for norm in found]),
            tuple(norm.method for norm in found),
            np.zeros(len(found)),
            self.overall,
            torch.cat(decided).numpy(),
        )

    def _least(self, regions: Regions, row: int, slope: float, work: float) -> Norm:
        """The least of the global bound, the enclosure of Jacobians, and LipSDP of what is left."""
        ways = [Norm(slope, ENCLOSURE), Norm(self.overall, OVERALL)]
        remainder = self._remainder(self.network, regions, row, work, MAX_VARIABLES)
        ways += [] if remainder is None else [remainder]
        return min(ways, key=lambda norm: norm.value)

    def _remainder(
        self, network: Network, regions: Regions, row: int, work: float, most: int
    ) -> Norm | None:
        """LipSDP of what the ball leaves undecided, None where that is too much."""
        open_units = self.scale.numel() + sum(
            int(one.undecided[row].sum() if isinstance(one, Switches) else one.rival[row].sum())
            for one in regions.patterns.values()
        )
        if open_units > most:
            return None
        system = local_system(network, regions, row, self.scale)
        return Norm(slope_bound(system, work=work).value, REMAINDER)

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

    def certified_radii(
        self, inputs: Tensor, labels: Tensor, largest: float, *, halvings: int = HALVINGS
    ) -> Floats:
        """Search [n] the largest radius up to `largest` at which each input is certified.

        Every radius given back was certified itself; 0 where none was. The search halves the
        interval `halvings` times.
        """
        halvings = check_whole(halvings, "halvings", 0)
        points = self._checked(inputs)
        truth = self._labels(labels, len(points))
        known = torch.zeros(len(points), dtype=torch.float64)
        top = self._radii(len(points), largest)
        sure = torch.from_numpy(self._certified(points, truth, top))
        known = torch.where(sure, top, known)
        above = top.clone()
        for _ in range(halvings):
            left = ~sure
            if not bool(left.any()):
                break
            middle = (known + above) / 2
            holds = torch.zeros_like(sure)
            holds[left] = torch.from_numpy(self._certified(points[left], truth[left], middle[left]))
            known = torch.where(holds, middle, known)
            above = torch.where(left & ~holds, middle, above)
        return known.numpy()

    def _certified(self, points: Tensor, labels: Tensor, radii: Tensor) -> NDArray[np.bool_]:
        found = []
        for rows in self._parts(len(points)):
            regions = follow(self.body, points[rows], radii[rows], self.scale)
            exact = self.body.evaluate(points[rows])
            pairs = Pairs.of(self.head, labels[rows])
            by_form = pairs.least_over_form(regions.region, radii[rows])
            by_slope = pairs.least_over_slope(regions.region, radii[rows], exact)
            least = torch.maximum(by_form, by_slope).scatter(1, labels[rows][:, None], torch.inf)
            sure = (least > 0).all(dim=1)
            for row in torch.nonzero(~sure)[:, 0].tolist() if self.work >= 0 else ():
                sure[row] = self._bound_certifies(
                    regions, row, exact, pairs, radii[rows], labels[rows]
                )
            found.append(sure)
        return torch.cat(found).numpy()

    def _bound_certifies(
        self, regions: Regions, row: int, exact: Evaluation, pairs: Pairs, radii: Tensor,
        labels: Tensor,
    ) -> bool:  # fmt: skip
        """Try LipSDP of what the ball leaves undecided of the body, for one example."""
        here = pairs.least_over_bound(exact, radii, torch.zeros_like(radii))[row]
        here[labels[row]] = torch.inf
        if not bool((here > 0).all()):  # the point itself is not classified as its label
            return False
        norm = self._remainder(self.body, regions, row, self.work, CERTIFICATE_VARIABLES)
        if norm is None or not math.isfinite(norm.value):
            return False
        least = pairs.least_over_bound(exact, radii, torch.full_like(radii, norm.value))[row]
        least[labels[row]] = torch.inf
        return bool((least > 0).all())

    def _parts(self, count: int) -> list[slice]:
        entries = self.scale.numel() * max(
            [self.scale.numel(), *(math.prod(step.shape) for step in self.network.steps.values())]
        )
        size = max(1, MAX_ENTRIES // entries)
        return [slice(first, first + size) for first in range(0, count, size)]

    def _checked(self, inputs: Tensor) -> Tensor:
        check_inputs(inputs, "inputs", tuple(self.network.input_shape[1:]))
        return inputs.detach().to(device="cpu", dtype=torch.float64)

    def _radii(self, count: int, radius: float) -> Tensor:
        return torch.full((count,), check_radius(radius), dtype=torch.float64)

    def _labels(self, labels: Tensor, count: int) -> Tensor:
        classes = len(self.head.bias)
        if classes < 2:
            raise RobustnessError(f"a certificate needs at least 2 classes, got {classes}")
        return check_labels(labels, count, classes).cpu()


def _slope(regions: Regions) -> Tensor:
    """Bound the spectral norm of every Jacobian in the ball: [n]."""
    region = regions.region
    return (spectral_norms(region.jacobian.flatten(2)) + region.spread) * SAFE
