"""LipSDP: the Lipschitz bound of linear maps joined by activations with slopes in [0, 1].

Let v = (x, h) be a change of the input and of all activations, p = A v the change before them and
y = C v the change of the output. A slope between 0 and 1 means h_i (p_i - h_i) >= 0. For any
multipliers lambda_i >= 0 and F > 0, if the symmetric matrix of the form

    |x|^2 - F |C v|^2 - sum_i lambda_i h_i (p_i - h_i)                                     (1)

is positive definite, then |y|^2 <= |x|^2 / F: the Lipschitz constant is at most 1 / sqrt(F)
(Fazlyab et al., NeurIPS 2019, theorem 1, neuron by neuron). Layers that follow each other make (1)
block tridiagonal and its Cholesky factorisation is the recursion of ECLipsE (Xu & Sivaranjani,
NeurIPS 2024); written this way, skip connections fit as well. The multipliers begin where
ECLipsE-Fast has them, lambda = 2 / |A M^-1 A^T| layer by layer, and are improved by Newton steps
on -tau F - log det (1), whose minimiser is within n / tau of the best F.

No number of the search is trusted. A bound is accepted only if (1), built in float64 with a bound
on the error of every entry, has a Cholesky factor after everything that could be wrong is taken off
its diagonal: the entries' error in norm, and 8 (n + 8) eps times the trace for the factorisation
itself (Higham, "Accuracy and Stability of Numerical Algorithms", theorem 10.3; Rump, BIT 2006).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from fedprune.robustness.rounding import EPSILON, TINY, Floats, gamma, quotient_up, sqrt_up, up
from fedprune.robustness.spectral import ENTRY_ERROR, Norm

MAX_STEPS = 80
"""Newton steps at most."""

DEFAULT_WORK = 2e10
"""Floating point operations that a search may take, about; fewer steps for larger systems."""

GAP = 1e-7
"""Relative distance of F from the best one at which the search stops."""


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


def chain_bound(weights: list[Floats], *, work: float = DEFAULT_WORK) -> Norm:
    """Bound the Lipschitz constant of a multilayer perceptron; see `chain` and `slope_bound`."""
    return slope_bound(chain(weights), work=work)


def slope_bound(system: SlopeSystem, *, work: float = DEFAULT_WORK) -> Norm:
    """Bound the Lipschitz constant of a system rigorously.

    Args:
        system: linear maps and activations.
        work: floating point operations for the search; 0 keeps the ECLipsE-Fast multipliers.

    Returns:
        The bound and its name; infinite where no multipliers were found.
    """
    system = _without_constants(system)
    name = "LipSDP" if len(system.inner) else "explicit"
    if not system.outer.any() and not system.outer_error.any():
        return Norm(TINY, name)
    search = _Search.of(system)
    multipliers = search.start()
    if multipliers is None:
        return Norm(math.inf, name)
    steps = min(MAX_STEPS, int(work / (6.0 * search.variables**3 + 1.0)))
    if len(multipliers):
        multipliers = search.improve(multipliers, steps)
    return Norm(_verified(system, multipliers * search.unscale), name)


def _without_constants(system: SlopeSystem) -> SlopeSystem:
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


class _Newton(NamedTuple):
    """A step in the multipliers and in F, and the squared decrement."""

    multipliers: Floats
    square: float
    decrement: float


class _Search:
    """The search for multipliers: rescaled by powers of two, input and output rotated to fit."""

    def __init__(self, inner: Floats, outer: Floats, groups: tuple[int, ...], unscale: Floats):
        self.inner, self.outer, self.groups, self.unscale = inner, outer, groups, unscale
        self.units = len(inner)
        self.inputs = outer.shape[1] - self.units
        self.variables = outer.shape[1]
        self._reads = -inner
        self._reads[:, self.inputs :] += np.eye(self.units)  # rows e_i - a_i
        self._outer_square = outer.T @ outer

    @classmethod
    def of(cls, system: SlopeSystem) -> _Search:
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
        length = _length(outer) or 1.0
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
            factor = _factor(matrix)
            if factor is None:
                return None
            solved = linalg.solve_triangular(factor, reads.T, lower=True)
            multipliers[first : first + size] = 2.0 / max(_length(solved) ** 2, 1e-300)
            first += size
        return multipliers if np.isfinite(multipliers).all() else None

    def best_square(self, multipliers: Floats) -> float:
        """The largest F that these multipliers allow."""
        factor = _factor(self.matrix(multipliers, 0.0))
        if factor is None:
            return 0.0
        solved = linalg.solve_triangular(factor, self.outer.T, lower=True)
        return 1.0 / max(_length(solved) ** 2, 1e-300)

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
        factor = _factor(self.matrix(multipliers, square))
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
            if (moved > 0).all() and _factor(self.matrix(moved, further)) is not None:
                return moved, further, True
            length *= 0.5
        return multipliers, square, False


def _triangle(matrix: Floats) -> Floats:
    """A smaller matrix with the same A^T A."""
    triangle: Floats = np.linalg.qr(matrix)[1]
    return triangle


def _length(matrix: Floats) -> float:
    return float(np.linalg.norm(matrix, 2))


def _factor(matrix: Floats) -> Floats | None:
    try:
        factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return factor if np.isfinite(np.diagonal(factor)).all() else None


def _verified(system: SlopeSystem, multipliers: Floats) -> float:
    """Find the least bound for which the form (1) provably is positive definite."""
    certificate = _Certificate(system, multipliers)
    guess = certificate.guess()
    margin = 1e-10
    while margin < 0.5 and guess > 0:
        square = guess * (1 - margin)
        if certificate.holds(square):
            return sqrt_up(quotient_up(1.0, square))
        margin *= 4.0
    return math.inf


class _Certificate:
    """The form (1) of the system as it was given, with the error of every entry."""

    def __init__(self, system: SlopeSystem, multipliers: Floats) -> None:
        inputs, variables = system.inputs, system.variables
        lower = np.zeros((variables, variables))
        lower[inputs:] = -0.5 * multipliers[:, None] * system.inner
        self._form = lower + lower.T
        wrong = np.zeros((variables, variables))
        wrong[inputs:] = (
            0.5 * multipliers[:, None] * (system.inner_error + 2 * EPSILON * np.abs(system.inner))
        )
        self._form[np.diag_indices(variables)] += np.append(np.ones(inputs), multipliers)
        size, error = np.abs(system.outer), system.outer_error
        self._square = system.outer.T @ system.outer
        self._square_error = (size.T @ error) + (error.T @ size) + (error.T @ error)
        self._square_error += gamma(len(size) + 8) * (size.T @ size)
        self._error = wrong + wrong.T
        self._outer = system.outer

    def guess(self) -> float:
        """The largest F, roughly: 1 / |C M^-1 C^T|."""
        scale = _powers(np.diagonal(self._form))
        factor = _factor(self._form * scale[:, None] * scale)
        if factor is None:
            return 0.0
        solved = linalg.solve_triangular(factor, (self._outer * scale).T, lower=True)
        length = _length(solved)
        return 1.0 / length**2 if 0 < length < 1e150 else 0.0

    def holds(self, square: float) -> bool:
        """Prove that the form is positive definite for this F."""
        matrix = self._form - square * self._square
        diagonal = np.diagonal(matrix)
        if not (np.isfinite(diagonal).all() and (diagonal > 0).all()):
            return False
        size = np.abs(self._form) + square * np.abs(self._square)
        error = (self._error + square * self._square_error + 8 * EPSILON * size) * (1 + 1e-9) + TINY
        scale = _powers(diagonal)
        matrix = matrix * scale[:, None] * scale  # exact: powers of two
        error = error * scale[:, None] * scale
        count = len(matrix)
        entries = float(np.maximum(error.sum(axis=1), error.sum(axis=0)).max())
        trace = float(np.abs(np.diagonal(matrix)).sum())
        shift = up(entries * (1 + 1e-9)) + 8 * (count + 8) * EPSILON * trace * (1 + 1e-9)
        matrix[np.diag_indices(count)] -= shift
        return _factor(matrix) is not None


def _powers(diagonal: NDArray[np.float64]) -> Floats:
    """Powers of two that bring a positive diagonal near 1."""
    return np.asarray(2.0 ** -np.round(0.5 * np.log2(np.maximum(diagonal, 1e-250))))
