"""Steps of a primal-dual interior-point method for LipSDP.

The program is to maximise F over multipliers lambda such that S = J + sum_i lambda_i E_i - F G is
positive semidefinite, with J the identity on the inputs, E_i = (e_i r_i^T + r_i e_i^T) / 2 for unit
i, which reads r_i, and G = C^T C. Its dual asks for Z with <E_i, Z> = 0 and <G, Z> = 1; then F is
at most <J, Z>. Both are followed at once along Z S = mu I: Newton's direction after Helmberg,
Rendl, Vanderbei & Wolkowicz (SIAM J. Optim. 1996), with the predictor and corrector of Mehrotra
(SIAM J. Optim. 1992). S is positive definite from the beginning and stays so; Z becomes feasible
on the way. Some 10 to 30 steps were enough for a hundred variables whatever the sizes of the units,
where a barrier method on S alone crawls along a bent valley of them.

Every E_i has rank two, so that the system of the multipliers costs a few products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from fedprune.robustness.rounding import Floats
from fedprune.robustness.sdp_certificate import cholesky_factor

_BOUNDARY = 0.98
"""Share of the way to where a matrix would no longer be positive definite."""

_SMALL = 120
"""Order of a matrix up to which all of its eigenvalues are had in no time."""

_BACKTRACKS = 25


class Program(Protocol):
    """What has to be known of a LipSDP."""

    @property
    def inputs(self) -> int:
        """Variables that no unit stands for; they come first."""

    @property
    def reads(self) -> Floats:
        """[units, variables]: r_i."""

    @property
    def outer(self) -> Floats:
        """[outputs, variables]: C."""

    @property
    def outer_square(self) -> Floats:
        """[variables, variables]: G."""

    def matrix(self, multipliers: Floats, square: float) -> Floats:
        """S for these multipliers and F."""

    def change(self, multipliers: Floats, square: float) -> Floats:
        """S without J."""


@dataclass(frozen=True)
class _Direction:
    multipliers: Floats
    square: float
    form: Floats
    dual: Floats


@dataclass(frozen=True)
class FeasiblePoint:
    """Multipliers and F whose form is positive definite, and a dual matrix.

    Attributes:
        program: what is solved.
        multipliers: [units].
        square: F.
        form: S, positive definite.
        root: the inverse of its lower Cholesky factor.
        dual: Z, positive definite.
    """

    program: Program
    multipliers: Floats
    square: float
    form: Floats
    root: Floats
    dual: Floats

    @classmethod
    def of(cls, program: Program, multipliers: Floats, square: float) -> FeasiblePoint | None:
        """Begin with Z proportional to the inverse of S; None if S is not positive definite."""
        with np.errstate(all="ignore"):
            form = program.matrix(multipliers, square)
            root = _inverse_root(form)
            if root is None:
                return None
            dual = root.T @ root / float(np.square(root @ program.outer.T).sum())
        if not np.isfinite(dual).all():
            return None
        return cls(program, multipliers, square, form, root, dual)

    @property
    def gap(self) -> float:
        """<Z, S>: what is left to gain in F at most, once Z is feasible."""
        return float((self.dual * self.form).sum())

    def next(self) -> FeasiblePoint | None:
        """Take a step; None where rounding, or overflow, allows no more."""
        try:
            with np.errstate(all="ignore"):
                return self._next()
        except (np.linalg.LinAlgError, ValueError):  # what is not finite has no factor
            return None

    def _next(self) -> FeasiblePoint | None:
        dual_root = _inverse_root(self.dual)
        if dual_root is None:
            return None
        system = _System.of(self)
        ahead = system.direction(0.0)
        further = self.form + _longest(self.root, ahead.form) * ahead.form
        behind = self.dual + _longest(dual_root, ahead.dual) * ahead.dual
        left = max(0.0, float((behind * further).sum())) / self.gap
        step = system.direction(min(1.0, max(1e-6, left**3)), ahead)
        moved = self._moved(step, _longest(self.root, step.form))
        dual = _still_positive(self.dual, step.dual, _longest(dual_root, step.dual))
        if moved is None or dual is None:
            return None
        return FeasiblePoint(self.program, *moved, dual)

    def _moved(
        self, step: _Direction, length: float
    ) -> tuple[Floats, float, Floats, Floats] | None:
        for _ in range(_BACKTRACKS):
            multipliers = self.multipliers + length * step.multipliers
            square = self.square + length * step.square
            form = self.program.matrix(multipliers, square)
            root = _inverse_root(form)
            if root is not None and (multipliers > 0).all():
                return multipliers, square, form, root
            length *= 0.7
        return None


@dataclass(frozen=True)
class _System:
    """The linear system of one step, factored once for predictor and corrector.

    Attributes:
        point: where the step begins.
        inverse: S^-1.
        factor: Cholesky factor of the scaled system, as `cho_factor` gives it.
        scale: [units + 1] of its rows and columns.
        pull: what S^-1 adds to the right side, a unit of centering and of the mean.
    """

    point: FeasiblePoint
    inverse: Floats
    factor: tuple[Floats, bool]
    scale: Floats
    pull: Floats

    @classmethod
    def of(cls, point: FeasiblePoint) -> _System:
        """Build and factor it.

        Raises:
            LinAlgError: where it is not positive definite in floating point.
            ValueError: where it is not finite.
        """
        program, dual = point.program, point.dual
        units, reads, outer = slice(program.inputs, None), program.reads, program.outer
        inverse = point.root.T @ point.root
        dual_reads, inverse_reads = dual @ reads.T, inverse @ reads.T
        dual_outer, inverse_outer = dual @ outer.T, inverse @ outer.T
        crossed = dual_reads[units].T * inverse_reads[units]
        inner = crossed + crossed.T
        inner += (reads @ dual_reads) * inverse[units, units]
        inner += dual[units, units] * (reads @ inverse_reads)
        edge = ((reads @ dual_outer) * inverse_outer[units]).sum(axis=1)
        edge += (dual_outer[units] * (reads @ inverse_outer)).sum(axis=1)
        corner = float(((outer @ dual_outer) * (outer @ inverse_outer)).sum())
        matrix = np.block([[0.25 * inner, -0.5 * edge[:, None]], [-0.5 * edge, corner]])
        scale = 1.0 / np.sqrt(np.maximum(np.diagonal(matrix), 1e-300))
        matrix = matrix * scale[:, None] * scale
        matrix[np.diag_indices_from(matrix)] += 1e-14
        factor = linalg.cho_factor(matrix)
        pull = np.append(np.diagonal(inverse_reads[units]), -float((outer.T * inverse_outer).sum()))
        return cls(point, inverse, factor, scale, pull)

    def direction(self, centering: float, ahead: _Direction | None = None) -> _Direction:
        """Newton's direction to Z S = centering mu I, with the predictor's second-order term."""
        program, dual = self.point.program, self.point.dual
        mean = centering * self.point.gap / len(dual)
        right = mean * self.pull
        right[-1] += 1.0
        corrected = mean * self.inverse - dual
        if ahead is not None:
            bent = _symmetric(ahead.dual @ ahead.form @ self.inverse)
            corrected -= bent
            right[:-1] -= (bent[program.inputs :] * program.reads).sum(axis=1)
            right[-1] += float((bent * program.outer_square).sum())
        found = linalg.cho_solve(self.factor, right * self.scale) * self.scale
        multipliers, square = found[:-1], float(found[-1])
        form = program.change(multipliers, square)
        return _Direction(
            multipliers, square, form, corrected - _symmetric(dual @ form @ self.inverse)
        )


def _symmetric(matrix: Floats) -> Floats:
    return 0.5 * (matrix + matrix.T)


def _inverse_root(matrix: Floats) -> Floats | None:
    """The inverse of the lower Cholesky factor; None if there is none."""
    factor = cholesky_factor(matrix)
    if factor is None:
        return None
    root: Floats = linalg.solve_triangular(factor, np.eye(len(matrix)), lower=True)
    return root if np.isfinite(root).all() else None


def _longest(root: Floats, change: Floats) -> float:
    """How far one may go along a change, at most 1; `root` is that of where it begins."""
    least = _least_eigenvalue(root, change)
    return min(1.0, _BOUNDARY / -least) if least < 0 else 1.0


def _least_eigenvalue(root: Floats, change: Floats) -> float:
    """The least eigenvalue of root change root^T, roughly where that is large."""
    if len(root) <= _SMALL:
        return float(np.linalg.eigvalsh(root @ change @ root.T)[0])
    turned = LinearOperator(
        root.shape, matvec=lambda vector: root @ (change @ (root.T @ vector)), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(len(root))
    try:
        found = eigsh(turned, 1, which="SA", v0=start, tol=1e-2, return_eigenvectors=False)
    except ArpackError:
        return float(np.linalg.eigvalsh(root @ change @ root.T)[0])
    return float(found[0])


def _still_positive(matrix: Floats, change: Floats, length: float) -> Floats | None:
    """Go along a change as far as the sum has a Cholesky factor."""
    for _ in range(_BACKTRACKS):
        moved = _symmetric(matrix + length * change)
        if cholesky_factor(moved) is not None:
            return moved
        length *= 0.7
    return None
