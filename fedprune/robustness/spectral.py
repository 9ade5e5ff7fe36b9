"""Upper bounds on the largest singular value of stacks of matrices that hold in floating point.

Two ways, both in float64:

* SVD. LAPACK's computed singular values satisfy |computed - true| <= p(m, n) eps sigma_max with a
  modest polynomial p (LAPACK Users' Guide, section 4.9); the allowance here is p = 32 max(m, n).
* Gram iteration with Frobenius rescaling (Delattre et al., ICML 2023): the norm of A is
  ||A A*||^(1/2), repeated, closed by the Frobenius norm. It uses matrix products only, so its
  rounding is bounded a priori and no convergence is assumed: with k inner terms a computed complex
  product differs from the exact one by at most 4 k eps ||A||_F^2 in norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.robustness.rounding import (
    EPSILON,
    TINY,
    Floats,
    add_up,
    norm_up,
    power_of_two,
    up,
)

Matrices = NDArray[np.float64] | NDArray[np.complex128]

MAX_SVD_WORK = 2e7
"""count * m * n * min(m, n) above which Gram iteration replaces the SVD of larger matrices."""

MAX_SVD_SIDE = 64
"""Shorter side up to which a stack of any length is left to the SVD."""

ENTRY_ERROR = 16 * EPSILON
"""Relative error allowed in every weight: folding and input scaling round a few times."""


@dataclass(frozen=True)
class Norm:
    """An upper bound on an operation's l2 Lipschitz constant, and how it was found."""

    value: float
    method: str


def stack_norm(matrices: Matrices, floor: float = 0.0) -> Norm:
    """Bound the largest singular value over a stack: [count, m, n].

    Args:
        matrices: float64 or complex128, taken as exact.
        floor: a bound that the caller has already met elsewhere; matrices that provably stay
            below it are not refined, and the result may be as large as it.
    """
    count, rows, columns = matrices.shape
    if matrices.size == 0 or not np.any(matrices):
        return Norm(floor, "zero")
    side = min(rows, columns)
    if side <= MAX_SVD_SIDE or count * rows * columns * side <= MAX_SVD_WORK:
        try:
            return Norm(max(floor, _svd_bound(matrices)), "svd")
        except np.linalg.LinAlgError:  # no convergence: the Gram bound needs none
            pass
    return Norm(gram_bound(matrices, floor), "gram")


def matrix_norm(matrix: Floats) -> Norm:
    """Bound ||W|| for a weight matrix [m, n] whose entries carry a few rounding errors."""
    norm = stack_norm(matrix[None])
    slack = up(ENTRY_ERROR * float(norm_up(matrix)))
    return Norm(up(norm.value + slack), norm.method)


def _svd_bound(matrices: Matrices) -> float:
    largest = float(np.linalg.svd(matrices, compute_uv=False)[:, 0].max())
    allowance = 32 * max(matrices.shape[1:]) * EPSILON
    return up(up(largest * (1 + allowance)) + TINY)


def gram_bound(
    matrices: Matrices, floor: float = 0.0, *, iterations: int = 12, tolerance: float = 1e-4
) -> float:
    """Bound the largest singular value over a stack by Gram iteration: [count, m, n].

    Matrices whose bound falls below a value that another one already reaches are retired with
    the bound they have, so that most of the work goes to the few that decide.

    Args:
        matrices: float64 or complex128, taken as exact.
        floor: as in `stack_norm`.
        iterations: squarings at most.
        tolerance: relative gap between upper and lower estimate at which to stop.
    """
    exponent = power_of_two(np.abs(matrices))
    current = matrices * 2.0**-exponent
    if current.shape[1] > current.shape[2]:
        current = np.conj(np.swapaxes(current, 1, 2))
    reached = floor * 2.0**-exponent
    result = reached
    scales: list[Floats] = []
    errors: list[Floats] = []
    bounds = norm_up(current, axis=(1, 2))
    for _ in range(iterations):
        product = current @ np.conj(np.swapaxes(current, 1, 2))
        squares = np.square(norm_up(current, axis=(1, 2)))
        errors.append((4 * current.shape[2] * EPSILON * squares + TINY) * (1 + 8 * EPSILON))
        scales.append(np.maximum(norm_up(product, axis=(1, 2)), TINY))
        bounds = _unroll(scales, errors, np.ones_like(squares))
        trace = np.real(np.trace(product, axis1=1, axis2=2))
        shares = scales[-1] / np.maximum(trace, TINY)  # ||H||_F^2 / tr H <= lambda_max(H)
        lower = _unroll(scales, errors, np.minimum(shares, 1.0))
        reached = max(reached, float(lower.max()) * (1 - tolerance))
        active = bounds > reached
        result = max(result, float(bounds[~active].max(initial=0.0)))
        if not active.any() or float(bounds.max()) <= reached * (1 + 2 * tolerance):
            break
        current = (product / scales[-1][:, None, None])[active]
        scales = [scale[active] for scale in scales]
        errors = [error[active] for error in errors]
        bounds = bounds[active]
    result = max(result, float(bounds.max()))
    return up(up(result) * 2.0**exponent)


def _unroll(scales: list[Floats], errors: list[Floats], last: Floats) -> Floats:
    """Turn a bound on the last rescaled matrix into one on the first: b <- sqrt(s b + e)."""
    bound = last * (1 + 4 * EPSILON)
    for scale, error in zip(reversed(scales), reversed(errors), strict=True):
        bound = np.sqrt(add_up(scale * (bound + 4 * EPSILON), error)) * (1 + 4 * EPSILON)
    return bound
