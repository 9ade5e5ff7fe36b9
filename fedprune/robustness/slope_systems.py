"""Linear maps joined by activations, as the matrices that LipSDP bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedprune.errors import RobustnessError
from fedprune.robustness.arguments import kind
from fedprune.robustness.rounding import Floats
from fedprune.robustness.spectral import ENTRY_ERROR


@dataclass(frozen=True)
class SlopeSystem:
    """Linear maps joined by activations whose slopes lie in [0, 1]; errors are entry by entry.

    Attributes:
        inner: [units, inputs + units], what each activation reads; an activation reads the input
            and activations of earlier groups only.
        inner_error: the same shape; the true entry is at most so far away.
        outer: [outputs, inputs + units], what the output reads.
        outer_error: the same shape.
        groups: units of each group, in order.
    """

    inner: Floats
    inner_error: Floats
    outer: Floats
    outer_error: Floats
    groups: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """Length of x."""
        return int(self.outer.shape[1] - self.inner.shape[0])

    @property
    def variables(self) -> int:
        """Length of (x, h)."""
        return int(self.outer.shape[1])


def chain(weights: list[Floats]) -> SlopeSystem:
    """Describe a multilayer perceptron W_l phi(... phi(W_1 x)) with phi's slopes in [0, 1].

    Args:
        weights: [out, in] each, at least one; their entries carry a few rounding errors.

    Raises:
        RobustnessError: if there are none, one is no matrix of finite numbers, or two do not fit.
    """
    _check_chain(weights)
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights)]
    starts = np.cumsum([0, *sizes])
    inner = np.zeros((sum(sizes[1:-1]), starts[-2]))
    row = 0
    for place, weight in enumerate(weights[:-1]):
        inner[row : row + len(weight), starts[place] : starts[place + 1]] = weight
        row += len(weight)
    outer = np.zeros((sizes[-1], starts[-2]))
    outer[:, starts[-3] :] = weights[-1]
    return SlopeSystem(
        inner, ENTRY_ERROR * np.abs(inner), outer, ENTRY_ERROR * np.abs(outer), tuple(sizes[1:-1])
    )


def _check_chain(weights: list[Floats]) -> None:
    if not isinstance(weights, Sequence) or len(weights) == 0:
        raise RobustnessError(f"a chain needs at least one weight matrix, got {weights!r:.60}")
    for place, weight in enumerate(weights):
        if not isinstance(weight, np.ndarray) or weight.ndim != 2 or weight.size == 0:
            what = list(weight.shape) if isinstance(weight, np.ndarray) else kind(weight)
            raise RobustnessError(f"weights[{place}] must be a numpy array [out, in], got {what}")
        real = np.issubdtype(weight.dtype, np.floating) or np.issubdtype(weight.dtype, np.integer)
        if not real or not np.isfinite(weight).all():
            raise RobustnessError(f"weights[{place}] has values that are not finite real numbers")
    for place, (before, after) in enumerate(itertools.pairwise(weights)):
        if after.shape[1] != len(before):
            raise RobustnessError(
                f"weights[{place + 1}] reads {after.shape[1]} values, but weights[{place}] gives "
                f"{len(before)}"
            )


def without_constants(system: SlopeSystem) -> SlopeSystem:
    """Drop units that read nothing: they never change."""
    inner, groups = system, list(system.groups)
    while True:
        alive = (inner.inner != 0).any(axis=1) | (inner.inner_error != 0).any(axis=1)
        if alive.all():
            return inner
        kept = np.concatenate([np.ones(inner.inputs, dtype=bool), alive])
        edges = np.cumsum([0, *groups])
        groups = [int(alive[a:b].sum()) for a, b in itertools.pairwise(edges.tolist())]
        inner = SlopeSystem(
            inner.inner[alive][:, kept], inner.inner_error[alive][:, kept],
            inner.outer[:, kept], inner.outer_error[:, kept], tuple(groups),
        )  # fmt: skip
