"""The search for LipSDP's multipliers; nothing that it finds is trusted, see `dense_sdp`."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from fedprune.robustness.primal_dual import FeasiblePoint
from fedprune.robustness.rounding import Floats
from fedprune.robustness.sdp_certificate import cholesky_factor, spectral_length
from fedprune.robustness.slope_systems import SlopeSystem

GAP = 1e-7
"""Relative distance of F from the best one at which the search stops."""


class MultiplierSearch:
    """The search for multipliers: rescaled by powers of two, input and output rotated to fit."""

    def __init__(self, inner: Floats, outer: Floats, groups: tuple[int, ...], unscale: Floats):
        """Keep the rescaled maps; use `of`."""
        self.inner, self.outer, self.groups, self.unscale = inner, outer, groups, unscale
        self.units = len(inner)
        self.inputs = outer.shape[1] - self.units
        self.variables = outer.shape[1]
        self.reads = -inner
        self.reads[:, self.inputs :] += np.eye(self.units)  # rows e_i - a_i
        self.outer_square = outer.T @ outer

    @classmethod
    def of(cls, system: SlopeSystem) -> MultiplierSearch:
        """Rescale a system; multipliers found for it are turned back by `unscale` [units]."""
        inner, outer, inputs = system.inner.copy(), system.outer.copy(), system.inputs
        unscale = np.ones(len(inner))
        first = 0
        for size in system.groups:  # a unit's change is told in units of what it reads
            rows = slice(first, first + size)
            lengths = np.linalg.norm(inner[rows], axis=1)
            sizes = 2.0 ** -np.round(np.log2(np.where(lengths > 0, lengths, 1.0)))
            inner[rows] *= sizes[:, None]
            columns = slice(inputs + first, inputs + first + size)
            inner[:, columns] /= sizes
            outer[:, columns] /= sizes
            unscale[rows] = sizes**2
            first += size
        length = spectral_length(outer) or 1.0
        outer = outer / length
        reads = np.concatenate([inner[:, :inputs], outer[:, :inputs]])
        used = reads.any(axis=1)
        if inputs > used.sum():  # only the span of what is read matters
            corner = np.zeros((len(reads), int(used.sum())))
            corner[used] = _triangle(reads[used].T).T
            inner = np.concatenate([corner[: len(inner)], inner[:, inputs:]], axis=1)
            outer = np.concatenate([corner[len(inner) :], outer[:, inputs:]], axis=1)
        if len(outer) > outer.shape[1]:
            outer = _triangle(outer)
        return cls(inner, outer, system.groups, unscale)

    def matrix(self, multipliers: Floats, square: float) -> Floats:
        """The matrix of (1)."""
        full = self.change(multipliers, square)
        full[np.arange(self.inputs), np.arange(self.inputs)] += 1.0
        return full

    def change(self, multipliers: Floats, square: float) -> Floats:
        """What is linear in multipliers and F in the matrix of (1)."""
        lower = np.zeros((self.variables, self.variables))
        lower[self.inputs :] = 0.5 * multipliers[:, None] * self.reads
        full: Floats = lower + lower.T - square * self.outer_square
        return full

    def start(self) -> Floats | None:
        """ECLipsE-Fast: group by group the largest multiplier's half, None if it breaks down."""
        multipliers = np.zeros(self.units)
        first = 0
        for size in self.groups:
            if size == 0:
                continue
            before = self.inputs + first
            matrix = self.matrix(multipliers, 0.0)[:before, :before]
            reads = self.inner[first : first + size, :before]
            factor = cholesky_factor(matrix)
            if factor is None:
                return None
            solved = linalg.solve_triangular(factor, reads.T, lower=True)
            multipliers[first : first + size] = 2.0 / max(spectral_length(solved) ** 2, 1e-300)
            first += size
        return multipliers if np.isfinite(multipliers).all() else None

    def best_square(self, multipliers: Floats) -> float:
        """The largest F that these multipliers allow."""
        factor = cholesky_factor(self.matrix(multipliers, 0.0))
        if factor is None:
            return 0.0
        solved = linalg.solve_triangular(factor, self.outer.T, lower=True)
        return 1.0 / max(spectral_length(solved) ** 2, 1e-300)

    def improve(self, multipliers: Floats, steps: int) -> Floats:
        """Take so many steps towards the best multipliers; never hand back what is worse."""
        best_square = self.best_square(multipliers)
        point = FeasiblePoint.of(self, multipliers, 0.5 * best_square) if best_square > 0 else None
        best = point
        while point is not None and steps > 0 and point.gap > GAP * point.square:
            point, steps = point.next(), steps - 1
            if point is not None and best is not None and point.square > best.square:
                best = point
        if best is None or self.best_square(best.multipliers) <= best_square:
            return multipliers
        return best.multipliers


def _triangle(matrix: Floats) -> Floats:
    """A smaller matrix with the same A^T A."""
    triangle: Floats = np.linalg.qr(matrix)[1]
    return triangle
