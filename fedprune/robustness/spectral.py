"""Upper bounds on the largest singular value of stacks of matrices that hold in floating point.

Three ways, all in float64; the tests check them in exact rational arithmetic:

* SVD. LAPACK's computed singular values satisfy |computed - true| <= p(m, n) eps sigma_max with a
  modest polynomial p (LAPACK Users' Guide, section 4.9); the allowance here is p = 32 max(m, n).
* Cholesky. If mu I - A A* has a factorisation in floating point, it is positive semidefinite but
  for an error of at most 8 (m + 8) eps times its trace, at most m mu (Higham, "Accuracy and
  Stability of Numerical Algorithms", theorem 10.3; Rump, BIT 2006), so that
  ||A||^2 <= mu (1 + 8 m (m + 8) eps). Where mu comes from does not matter: any estimate will do,
  and one that is too small finds no factor.
* Gram iteration with Frobenius rescaling (Delattre et al., ICML 2023): the norm of A is
  ||A A*||^(1/2), repeated, closed by the Frobenius norm. It uses matrix products only, so its
  rounding is bounded a priori and no convergence is assumed.

With k inner terms a computed complex product A A* differs from the exact one by at most
4 k eps ||A||_F^2 in norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.robustness.rounding import (
    EPSILON,
    TINY,
    Floats,
    add_up,
    norm_up,
    power_of_two,
    sqrt_up,
    times_power,
    up,
)

Matrices = NDArray[np.float64] | NDArray[np.complex128]

MAX_SVD_WORK = 2e7
"""count * m * n * min(m, n) above which Cholesky replaces the SVD of larger matrices."""

MAX_SVD_SIDE = 64
"""Shorter side up to which a stack of any length is left to the SVD."""

MAX_LANCZOS = 160
"""Steps of an estimate at most."""

SPENT = 1e-12
"""Of the largest quotient so far: a new direction that is shorter is rounding."""

CHECKED = 8
"""Steps of an estimate between two looks at its residual."""

RESIDUAL = 1e-4
"""Relative residual of a Ritz value at which an estimate ends: its error is the square of it."""

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
        except np.linalg.LinAlgError:  # no convergence: the others need none
            pass
    try:
        return Norm(cholesky_bound(matrices, floor), "cholesky")
    except np.linalg.LinAlgError:
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


def cholesky_bound(matrices: Matrices, floor: float = 0.0, *, tolerance: float = 1e-4) -> float:
    """Bound the largest singular value over a stack by factorisations that exist: [count, m, n].

    The largest matrices come first; one whose Frobenius norm is below the bound that others have
    already needed is done, and most of the rest need one factorisation each.

    Args:
        matrices: float64 or complex128, taken as exact.
        floor: as in `stack_norm`.
        tolerance: by how much the square is first taken above its estimate, relatively.

    Raises:
        numpy.linalg.LinAlgError: if no estimate leads to a factorisation.
    """
    exponent = power_of_two(np.abs(matrices))
    scaled = times_power(matrices, -exponent)
    if scaled.shape[1] > scaled.shape[2]:
        scaled = np.conj(np.swapaxes(scaled, 1, 2))
    _, side, inner = scaled.shape
    squares = np.square(norm_up(scaled, axis=(1, 2)))
    reached = times_power(floor, -exponent)
    if math.isinf(reached):  # far above every matrix
        return floor
    square, product_error = reached**2, 0.0
    for index in np.argsort(-squares):
        if squares[index] <= square:
            break
        matrix = scaled[index]
        square = _least_square(matrix @ matrix.conj().T, square, tolerance)
        product_error = max(product_error, 4 * inner * EPSILON * float(squares[index]))
    factor_error = 8 * (side + 8) * side * EPSILON * square
    bound = sqrt_up(up(up(square * (1 + 8 * EPSILON)) + up(factor_error + product_error + TINY)))
    return max(floor, up(times_power(bound, exponent)))


def _least_square(gram: Matrices, square: float, tolerance: float) -> float:
    """Raise `square` as little as needed for square I - gram to have a factor."""
    if _has_factor(gram, square):
        return square
    estimate = _largest_eigenvalue(gram)
    while tolerance < 1:
        square = max(square, estimate * (1 + tolerance))
        if _has_factor(gram, square):
            return square
        tolerance *= 4
    raise np.linalg.LinAlgError("no shift makes the matrix definite")


def _has_factor(gram: Matrices, square: float) -> bool:
    shifted = -gram
    shifted[np.diag_indices_from(shifted)] += square
    try:
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(np.diagonal(factor)).all())


def _largest_eigenvalue(gram: Matrices) -> float:
    """Estimate it; nothing depends on how well."""
    if len(gram) <= MAX_SVD_SIDE:
        return float(np.linalg.eigvalsh(gram)[-1])
    return float(leading_vectors(gram[None], MAX_LANCZOS)[0][0])


def shift_bound(shift: float, side: int) -> float:
    """Bound the eigenvalues of all n x n Hermitian matrices that `least_shift` gave this for."""
    if side == 1:
        return shift
    return up(up(shift * (1 + 8 * side * (side + 8) * EPSILON)) + TINY)


def least_shift(grams: Matrices, floor: float = 0.0, ceiling: float = math.inf) -> float:
    """Raise `floor` as little as needed for shift I - gram to have a factor, for all of a stack.

    The largest eigenvalue is estimated; every matrix that has a factorisation with a shift just
    above it is bounded, and only those that have none raise the shift.

    Args:
        grams: [count, n, n], positive semidefinite but for rounding, taken as exact (the lower
            triangles are).
        floor: where to begin; with a good guess each matrix is factorised once.
        ceiling: inf is returned as soon as the result is seen to be above it.

    Raises:
        numpy.linalg.LinAlgError: if no estimate leads to factorisations.
    """
    count, side, _ = grams.shape
    if side == 1:
        shift = max(floor, float(grams.real.max()))
        return shift if shift <= ceiling else math.inf
    if floor > ceiling:
        return math.inf
    left, shift = torch.from_numpy(grams), floor
    tolerance = estimate_error(side)
    for rounds in range(count + 16):
        if shift > 0:
            left = left[~_have_factors(left, shift)]
        if len(left) == 0:
            return shift
        estimate = largest_estimate(left.numpy(), 4 + 2 * rounds, 1)
        if estimate * (1 + tolerance) >= ceiling:
            return math.inf
        if estimate * (1 + tolerance) <= shift:  # it should have had a factor
            tolerance = max(8 * tolerance, shift / max(estimate, TINY) - 1 + tolerance)
            if tolerance > 1:
                break
        shift = max(shift, estimate * (1 + tolerance), TINY)
    raise np.linalg.LinAlgError("no shift makes the matrices definite")


def estimate_error(side: int) -> float:
    """By how much an estimate of the largest eigenvalue is first raised, relatively."""
    return 1e-10 if side <= MAX_SVD_SIDE else 2e-6


def largest_estimate(grams: Matrices, iterations: int, wanted: int) -> float:
    """Estimate the largest eigenvalue over a stack from the few that a rough one names."""
    if len(grams) > wanted:
        grams = grams[np.argsort(leading_vectors(grams, iterations)[0])[-wanted:]]
    return max(_largest_eigenvalue(gram) for gram in grams)


def _have_factors(grams: torch.Tensor, square: float) -> torch.Tensor:
    """Say which of square I - gram have a Cholesky factor: [count] bool."""
    shifted = grams.neg()
    shifted.diagonal(dim1=1, dim2=2).add_(square)
    factors, failed = torch.linalg.cholesky_ex(shifted)
    finite = torch.isfinite(factors.diagonal(dim1=1, dim2=2).real).all(dim=1)
    found: torch.Tensor = (failed == 0) & finite
    return found


def leading_vectors(grams: Matrices, most: int) -> tuple[Floats, Matrices]:
    """Estimate largest eigenvalues, never from above but for rounding, and their vectors.

    Lanczos iteration with all vectors kept orthogonal; a Ritz value is off by no more than the
    square of its residual over the gap to the next eigenvalue (Parlett, "The Symmetric Eigenvalue
    Problem", section 11.7).

    Args:
        grams: [count, n, n], positive semidefinite but for rounding.
        most: steps at most; fewer are made if all residuals are small before.

    Returns:
        The estimates [count] and unit vectors [count, n].
    """
    count, side, _ = grams.shape
    most = min(most, side)
    basis = np.zeros((count, most, side), dtype=grams.dtype)
    projected = np.zeros((count, most, most))
    image = np.random.default_rng(0).standard_normal((1, side, 1)).astype(grams.dtype)
    lengths = np.linalg.norm(image, axis=1, keepdims=True)
    for step in range(most):
        basis[:, step] = (image / np.maximum(lengths, TINY))[:, :, 0]
        known = basis[:, : step + 1].swapaxes(1, 2)
        turned = known.conj().swapaxes(1, 2)
        image = grams @ known[:, :, -1:]
        overlaps = turned @ image
        projected[:, step, step] = overlaps[:, -1, 0].real
        image -= known @ overlaps
        image -= known @ (turned @ image)  # once leaves rounding behind
        lengths = np.linalg.norm(image, axis=1, keepdims=True)
        # what is left of a space that the matrix keeps to itself is rounding: no direction
        known_size = np.abs(projected).max(axis=(1, 2))[:, None, None]
        spent = lengths <= SPENT * known_size
        image, lengths = np.where(spent, 0.0, image), np.where(spent, 0.0, lengths)
        if step + 1 == most or step % CHECKED == CHECKED - 1:
            values, vectors = np.linalg.eigh(projected[:, : step + 1, : step + 1])
            residuals = lengths[:, 0, 0] * np.abs(vectors[:, -1, -1])
            if step + 1 == most or (residuals <= RESIDUAL * np.abs(values[:, -1])).all():
                break
        projected[:, step + 1, step] = projected[:, step, step + 1] = lengths[:, 0, 0]
    traces = np.maximum(np.trace(grams, axis1=1, axis2=2).real, 0.0)
    return np.minimum(values[:, -1], traces), (known @ vectors[:, :, -1:])[:, :, 0]


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
    current = times_power(matrices, -exponent)
    if current.shape[1] > current.shape[2]:
        current = np.conj(np.swapaxes(current, 1, 2))
    reached = times_power(floor, -exponent)
    if math.isinf(reached):
        return floor
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
    return up(times_power(up(result), exponent))


def _unroll(scales: list[Floats], errors: list[Floats], last: Floats) -> Floats:
    """Turn a bound on the last rescaled matrix into one on the first: b <- sqrt(s b + e)."""
    bound = last * (1 + 4 * EPSILON)
    for scale, error in zip(reversed(scales), reversed(errors), strict=True):
        bound = np.sqrt(add_up(scale * (bound + 4 * EPSILON), error)) * (1 + 4 * EPSILON)
    return bound
