"""The proof behind a LipSDP bound: a Cholesky factor after everything that could be wrong.

See `dense_sdp` for the form (1) and what is taken off its diagonal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from fedprune.robustness.rounding import EPSILON, TINY, Floats, gamma, quotient_up, sqrt_up, up
from fedprune.robustness.slope_systems import SlopeSystem


def verified_bound(system: SlopeSystem, multipliers: Floats) -> float:
    """Find the least bound for which the form (1) provably is positive definite."""
    certificate = Certificate(system, multipliers)
    guess = certificate.guess()
    margin = 1e-10
    while margin < 0.5 and guess > 0:
        square = guess * (1 - margin)
        if certificate.holds(square):
            return sqrt_up(quotient_up(1.0, square))
        margin *= 4.0
    return math.inf


class Certificate:
    """The form (1) of the system as it was given, with the error of every entry."""

    def __init__(self, system: SlopeSystem, multipliers: Floats) -> None:
        """Build the form for multipliers [units], not negative."""
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
        factor = cholesky_factor(self._form * scale[:, None] * scale)
        if factor is None:
            return 0.0
        solved = linalg.solve_triangular(factor, (self._outer * scale).T, lower=True)
        length = spectral_length(solved)
        return 1.0 / length**2 if 1e-150 < length < 1e150 else 0.0

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
        return cholesky_factor(matrix) is not None


def _powers(diagonal: NDArray[np.float64]) -> Floats:
    """Powers of two that bring a positive diagonal near 1."""
    return np.asarray(2.0 ** -np.round(0.5 * np.log2(np.maximum(diagonal, 1e-250))))


def spectral_length(matrix: Floats) -> float:
    """Estimate the largest singular value."""
    return float(np.linalg.norm(matrix, 2))


def cholesky_factor(matrix: Floats) -> Floats | None:
    """Give the lower Cholesky factor, None where there is none in floating point."""
    try:
        factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return factor if np.isfinite(np.diagonal(factor)).all() else None
