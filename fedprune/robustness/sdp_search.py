"""The search for LipSDP's multipliers; nothing that it finds is trusted, see `dense_sdp`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import linalg

from fedprune.robustness.rounding import Floats
from fedprune.robustness.sdp_certificate import cholesky_factor, spectral_length
from fedprune.robustness.slope_systems import SlopeSystem

GAP = 1e-7
"""Relative distance of F from the best one at which the search stops."""


class _Newton(NamedTuple):
    """A step in the multipliers and in F, and the squared decrement."""

    multipliers: Floats
    square: float
    decrement: float


class MultiplierSearch:
    """The search for multipliers: rescaled by powers of two, input and output rotated to fit."""

    def __init__(self, inner: Floats, outer: Floats, groups: tuple[int, ...], unscale: Floats):
        """Keep the rescaled maps; use `of`."""
        self.inner, self.outer, self.groups, self.unscale = inner, outer, groups, unscale
        self.units = len(inner)
        self.inputs = outer.shape[1] - self.units
        self.variables = outer.shape[1]
        self._reads = -inner
        self._reads[:, self.inputs :] += np.eye(self.units)  # rows e_i - a_i
        self._outer_square = outer.T @ outer

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
        lower = np.zeros((self.variables, self.variables))
        lower[self.inputs :] = 0.5 * multipliers[:, None] * self._reads
        full = lower + lower.T - square * self._outer_square
        full[np.arange(self.inputs), np.arange(self.inputs)] += 1.0
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
        """Follow the central path for so many Newton steps; never hand back what is worse."""
        best, best_square = multipliers, self.best_square(multipliers)
        current, square = multipliers, 0.5 * best_square
        weight = self.variables / max(square, 1e-300)
        for _ in range(steps):
            step = self._newton(current, square, weight)
            if step is None:
                break
            current, square, moved = self._advance(current, square, step)
            if not moved:
                break
            if step.decrement < 0.3:
                reached = self.best_square(current)
                if reached > best_square:
                    best, best_square = current, reached
                if self.variables / weight < GAP * best_square:
                    break
                weight *= 12.0
        reached = self.best_square(current)
        return current if reached > best_square else best

    def _newton(self, multipliers: Floats, square: float, weight: float) -> _Newton | None:
        factor = cholesky_factor(self.matrix(multipliers, square))
        if factor is None:
            return None
        root = linalg.solve_triangular(factor, np.eye(self.variables), lower=True)
        reads, outer = root @ self._reads.T, root @ self.outer.T  # columns L^-1 u_i and L^-1 c_k
        units = root[:, self.inputs :]
        crossed, gram = units.T @ reads, outer.T @ outer
        gradient = np.append(-np.diagonal(crossed), np.trace(gram) - weight)
        hessian = np.empty((self.units + 1, self.units + 1))
        hessian[:-1, :-1] = 0.5 * ((units.T @ units) * (reads.T @ reads) + crossed * crossed.T)
        hessian[-1, :-1] = -((units.T @ outer) * (reads.T @ outer)).sum(axis=1)
        hessian[:-1, -1] = hessian[-1, :-1]
        hessian[-1, -1] = float(np.square(gram).sum())
        scale = 1.0 / np.sqrt(np.maximum(np.diagonal(hessian), 1e-300))
        scaled = hessian * scale[:, None] * scale
        scaled[np.diag_indices_from(scaled)] += 1e-13
        try:
            solved = linalg.cho_solve(linalg.cho_factor(scaled), -gradient * scale) * scale
        except linalg.LinAlgError:
            return None
        decrement = math.sqrt(max(0.0, -float(gradient @ solved)))
        return _Newton(solved[:-1], float(solved[-1]), decrement)

    def _advance(
        self, multipliers: Floats, square: float, step: _Newton
    ) -> tuple[Floats, float, bool]:
        length = 1.0 if step.decrement < 0.25 else 1.0 / (1.0 + step.decrement)
        for _ in range(30):
            moved = multipliers + length * step.multipliers
            further = square + length * step.square
            if (moved > 0).all() and cholesky_factor(self.matrix(moved, further)) is not None:
                return moved, further, True
            length *= 0.5
        return multipliers, square, False


def _triangle(matrix: Floats) -> Floats:
    """A smaller matrix with the same A^T A."""
    triangle: Floats = np.linalg.qr(matrix)[1]
    return triangle
