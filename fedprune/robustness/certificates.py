"""Certificates: radii inside which no perturbation can change a prediction.

If a network is z = body(x), logits = W z + b, and the body's l2 Lipschitz constant is at most L,
then logit y stays above logit j for every perturbation shorter than

    (f_y - f_j) / (||w_y - w_j|| L)

and the least of these over j is the certified radius (Tsuzuku et al., NeurIPS 2018, with the
head's own rows in place of sqrt(2) ||W||). The margin, everything but L, depends on the data; L
depends on the weights only: an auditor who has stored margins and the model recomputes the rest.

What is covered: the network as a function over the real numbers whose weights, buffers and inputs
are the stored floats. Logits are computed in float64 and an a-priori bound on the error of that
computation is subtracted. An implementation in float32 has rounding errors of its own, which the
certificate does not cover.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness.affine import Dense
from fedprune.robustness.arguments import check_inputs, check_labels, check_whole
from fedprune.robustness.certified_shares import certified_radii
from fedprune.robustness.composition import PRODUCT
from fedprune.robustness.lipschitz import bound_network
from fedprune.robustness.network import Network, Std
from fedprune.robustness.rounding import (
    EPSILON,
    TINY,
    Floats,
    divide_down,
    gamma,
    norm_up,
    sqrt_up,
)

ARITHMETIC = (
    "the network over the real numbers with its stored weights and inputs; margins computed in "
    "float64 with an a-priori bound on their error subtracted"
)
PAIRWISE = "pairwise differences of the rows of the linear head"
SQRT2 = "sqrt(2) times the bound of the whole network"


@dataclass(frozen=True)
class Certifier:
    """Turns inputs into margins and margins into certified radii.

    Attributes:
        network: the lowered model.
        split: name of the node that the margins are taken over: the head's input, or the output.
        body_upper: certified Lipschitz bound of that node with respect to the (unnormalised)
            input; it needs no data.
        num_classes: number of logits.
        method: how margins are normalised, in words.
        body_method: how the body was bounded, in words.
        arithmetic: what the certificate covers, in words.
    """

    network: Network
    split: str
    body_upper: float
    num_classes: int
    method: str
    arithmetic: str = ARITHMETIC
    body_method: str = PRODUCT

    @classmethod
    def of(
        cls, model: nn.Module, example_input: Tensor, *, input_std: Std | None = None
    ) -> Certifier:
        """Bound a model's body and keep its head.

        Args:
            model: a classifier in eval mode that gives logits [n, classes]; it is not changed.
            example_input: [1, ...], for its shape.
            input_std: [channels] of the normalisation in front of the model; with it radii are in
                units of the unnormalised input (pixels).

        Raises:
            RobustnessError: as for `lipschitz`, or if the output is not at least two logits.
            UnsupportedOpError: an operation without a rigorous rule.
        """
        bounded = bound_network(model, example_input, input_std=input_std, keep_head=True)
        network = bounded.network
        shape = network.steps[network.output].shape if network.steps else network.input_shape
        if len(shape) != 2 or shape[1] < 2:
            raise RobustnessError(
                f"a certificate needs logits [n, classes] with at least 2 classes, "
                f"got shape {list(shape)}"
            )
        head = network.head
        split = network.output if head is None else network.steps[head].inputs[0]
        method = SQRT2 if head is None else PAIRWISE
        return cls(
            network,
            split,
            bounded.bounds[split],
            shape[1],
            method,
            body_method=bounded.composition.method(split),
        )

    def margins(self, inputs: Tensor, labels: Tensor, *, batch_size: int = 250) -> Floats:
        """Compute how far each example's body output may move before its label may change.

        Args:
            inputs: [n, ...] as the model receives them (normalised if it expects that).
            labels: [n] integer classes.
            batch_size: examples evaluated at a time.

        Returns:
            [n] float64, rounded down; not above 0 where the label is not certified at all.

        Raises:
            RobustnessError: no examples, wrong shapes, values that are not finite, or labels
                outside the classes.
        """
        batch_size = check_whole(batch_size, "batch_size", 1)
        check_inputs(inputs, "inputs", tuple(self.network.input_shape[1:]))
        labels = check_labels(labels, len(inputs), self.num_classes)
        parts = [
            self._margins(part.detach().to(device="cpu", dtype=torch.float64), truth.cpu())
            for part, truth in zip(
                torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True
            )
        ]
        margins = np.concatenate(parts)
        if np.isnan(margins).any():
            raise RobustnessError(
                "the margin of an example is not a number: its values are too large for float64"
            )
        return margins

    def certified_radii(self, margins: Floats) -> Floats:
        """Divide margins [n] by `body_upper`; see `certified_radii`."""
        return certified_radii(margins, self.body_upper)

    def _margins(self, inputs: Tensor, labels: Tensor) -> Floats:
        with torch.no_grad(), np.errstate(invalid="ignore"):  # what is no number is refused later
            body = Network(
                self.network.input, self.network.input_shape, self.network.steps, self.split
            ).trimmed()
            evaluation = body.evaluate(inputs)
        features = evaluation.outputs.numpy()
        if not np.isfinite(features).all():
            raise RobustnessError("the model gives values that are not finite on these inputs")
        gaps = _logit_gaps if self.method == SQRT2 else _HeadGaps(self.network)
        return gaps(features, evaluation.errors, labels.numpy())


Gaps = Callable[[Floats, Floats, NDArray[np.int64]], Floats]


def _logit_gaps(logits: Floats, errors: Floats, labels: NDArray[np.int64]) -> Floats:
    """Margins over the logits themselves: (f_y - max f_j) / sqrt(2) - error."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, labels] = -np.inf
    gap = np.nextafter(logits[rows, labels] - others.max(axis=1), -np.inf)
    return np.nextafter(divide_down(gap, sqrt_up(2.0)) - errors, -np.inf)


class _HeadGaps:
    """Margins over the features: min over j of (f_y - f_j) / ||w_y - w_j||, minus the error.

    The head's difference (w_y - w_j) z + b_y - b_j is computed with at most gamma_(n + 8) times the
    sum of |terms| of error; the features themselves are off by at most `errors` in norm, which the
    division by ||w_y - w_j|| turns into just that.
    """

    def __init__(self, network: Network) -> None:
        operation = network.steps[network.head or ""].operation
        assert isinstance(operation, Dense)
        self._weight = operation.weight.numpy()
        self._bias = operation.bias.numpy()
        self._magnitude = operation.magnitude.numpy()

    def __call__(self, features: Floats, errors: Floats, labels: NDArray[np.int64]) -> Floats:
        margins = np.empty(len(features))
        for label in np.unique(labels):
            rows = labels == label
            margins[rows] = self._of_class(int(label), features[rows], errors[rows])
        return margins

    def _of_class(self, label: int, features: Floats, errors: Floats) -> Floats:
        others = np.arange(len(self._weight)) != label
        weight, bias = self._weight[others], self._bias[others]
        difference = self._weight[label] - weight  # [classes - 1, features]
        gaps = features @ difference.T + (self._bias[label] - bias)
        sizes = np.abs(self._weight[label]) + np.abs(weight)
        terms = np.abs(features) @ sizes.T + self._magnitude[label] + self._magnitude[others]
        slack = gamma(features.shape[1] + 24) * terms * (1 + 1e-9) + TINY
        safe = np.nextafter(gaps - slack, -np.inf)
        lengths = norm_up(difference, axis=1)
        lengths = lengths + 32 * EPSILON * norm_up(sizes, axis=1)  # rounding of fold and difference
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.nextafter(safe / lengths, -np.inf)
        same = lengths == 0  # equal rows: the gap is constant, whatever the features do
        ratios = np.where(same, np.where(safe > 0, np.inf, -np.inf), ratios)
        least = ratios.min(axis=1)
        result: Floats = np.nextafter(least - errors, -np.inf)
        return np.where(np.isfinite(least), result, least)
