"""Linear maps joined by activations, as the matrices that LipSDP bounds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

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
    """
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
