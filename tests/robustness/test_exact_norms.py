"""Bounds of convolutions in exact arithmetic: bound^2 I - A A^T is positive definite in rationals.

Nothing here trusts floating point: weights are integers, or floats taken as the rationals that
they are; the matrix is written by its definition; and definiteness is decided by the signs of all
leading principal minors, which Bareiss's elimination gives as whole numbers.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from fedprune.robustness.geometry import Axis, Geometry
from fedprune.robustness.layer_norms import (
    convolution_norm,
    schur_norm,
    torus_norm,
    unfolding_norm,
)
from fedprune.robustness.spectral import gram_bound, least_shift, matrix_norm, shift_bound

Integers = list[list[int]]
MAX_SIDE = 14


def whole(value: float, exponent: int) -> int:
    """value * 2^exponent, which must be a whole number."""
    scaled = Fraction(value) * 2**exponent
    assert scaled.denominator == 1
    return scaled.numerator


def by_definition(weight: np.ndarray, geometry: Geometry, exponent: int) -> Integers:
    """The operator, entry by entry: output position o reads o * stride + tap * dilation - low."""
    axes = geometry.axes
    share, outputs = weight.shape[0] // geometry.groups, [range(a.outputs) for a in axes]
    matrix = []
    for channel, place in itertools.product(range(len(weight)), itertools.product(*outputs)):
        row: dict[tuple[int, ...], int] = {}
        for source, tap in itertools.product(range(weight.shape[1]), np.ndindex(*weight.shape[2:])):
            point = tuple(
                o * a.stride + t * a.dilation - a.low
                for o, t, a in zip(place, tap, axes, strict=True)
            )
            if all(0 <= p < a.length for p, a in zip(point, axes, strict=True)):
                plane = channel // share * weight.shape[1] + source
                row[(plane, *point)] = whole(float(weight[(channel, source, *tap)]), exponent)
        planes = range(weight.shape[1] * geometry.groups)
        columns = itertools.product(planes, *(range(a.length) for a in axes))
        matrix.append([row.get(column, 0) for column in columns])
    return matrix


def is_above_the_norm(bound: float, matrix: Integers, exponent: int) -> bool:
    """Whether bound^2 I - A A^T is positive definite, A = matrix / 2^exponent."""
    if len(matrix) > len(matrix[0]):
        matrix = [list(column) for column in zip(*matrix, strict=True)]
    square = Fraction(bound) ** 2 * 4**exponent
    size = len(matrix)
    shifted = [
        [
            square.numerator * (i == j)
            - square.denominator * sum(a * b for a, b in zip(matrix[i], matrix[j], strict=True))
            for j in range(size)
        ]
        for i in range(size)
    ]
    previous = 1
    for pivot in range(size):  # Bareiss: shifted[pivot][pivot] is a leading principal minor
        if shifted[pivot][pivot] <= 0:
            return False
        for i in range(pivot + 1, size):
            for j in range(pivot + 1, size):
                shifted[i][j] = (
                    shifted[i][j] * shifted[pivot][pivot] - shifted[i][pivot] * shifted[pivot][j]
                ) // previous
        previous = shifted[pivot][pivot]
    return True


def small_geometry(rng: np.random.Generator) -> tuple[tuple[int, ...], Geometry]:
    """A random small convolution: one or two axes, any stride, dilation, padding and groups."""
    while True:
        spatial, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        axes = []
        for _ in range(spatial):
            kernel, dilation = int(rng.integers(1, 4)), int(rng.integers(1, 3))
            low, high = (int(p) for p in rng.integers(0, 4, size=2))
            reach = dilation * (kernel - 1) + 1
            length = int(rng.integers(max(1, reach - low - high), reach + 4))
            axes.append(Axis(length, kernel, int(rng.integers(1, 4)), dilation, low, high))
        shape = (groups * int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        rows = shape[0] * int(np.prod([a.outputs for a in axes]))
        columns = shape[1] * groups * int(np.prod([a.length for a in axes]))
        if 1 <= min(rows, columns) <= MAX_SIDE and max(rows, columns) <= 80:
            return (*shape, *(a.kernel for a in axes)), Geometry(tuple(axes), groups)


BOUNDS = (convolution_norm, torus_norm, unfolding_norm, schur_norm)


@pytest.mark.parametrize("seed", range(6))
def test_every_bound_exceeds_the_norm_in_exact_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        shape, geometry = small_geometry(rng)
        weight = rng.integers(-9, 10, size=shape).astype(np.float64)
        matrix = by_definition(weight, geometry, 0)
        for bound in BOUNDS:
            assert is_above_the_norm(bound(weight, geometry).value, matrix, 0), (bound, geometry)


def test_bounds_of_weights_with_all_their_digits_hold_exactly_too() -> None:
    rng = np.random.default_rng(10)
    for _ in range(12):
        shape, geometry = small_geometry(rng)
        weight = rng.standard_normal(shape).astype(np.float32).astype(np.float64)
        matrix = by_definition(weight, geometry, 80)
        for bound in BOUNDS:
            assert is_above_the_norm(bound(weight, geometry).value, matrix, 80)


def test_the_check_itself_tells_a_norm_from_less() -> None:
    rng = np.random.default_rng(11)
    for _ in range(12):
        shape, geometry = small_geometry(rng)
        weight = rng.integers(1, 10, size=shape).astype(np.float64)
        matrix = by_definition(weight, geometry, 0)
        truth = float(np.linalg.norm(np.array(matrix, dtype=np.float64), 2))
        assert convolution_norm(weight, geometry).value == pytest.approx(truth, rel=1e-9, abs=1e-9)
        if truth == 0:  # every window reads padding only
            continue
        assert is_above_the_norm(truth * (1 + 1e-9), matrix, 0)
        assert not is_above_the_norm(truth * (1 - 1e-9), matrix, 0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_symmetric_kernels_whose_norm_the_torus_meets_are_bounded_exactly(stride: int) -> None:
    """A 1-tap kernel has the norm of its matrix: nothing but rounding keeps the bound above it."""
    weight = np.array([[3.0, 4.0], [0.0, 5.0]])[:, :, None]
    geometry = Geometry((Axis(4, 1, stride),))
    matrix = by_definition(weight, geometry, 0)
    for bound in BOUNDS[:2]:
        assert is_above_the_norm(bound(weight, geometry).value, matrix, 0)


def test_matrix_and_stack_bounds_hold_exactly() -> None:
    rng = np.random.default_rng(12)
    for _ in range(40):
        rows, columns = (int(n) for n in rng.integers(1, 9, size=2))
        entries = rng.integers(-9, 10, size=(rows, columns)).astype(np.float64)
        matrix = [[int(value) for value in row] for row in entries]
        assert is_above_the_norm(matrix_norm(entries).value, matrix, 0)
        if entries.any():
            assert is_above_the_norm(gram_bound(entries[None]), matrix, 0)
            grams = (entries @ entries.T)[None].astype(np.complex128)
            square = shift_bound(least_shift(grams), rows)
            root = np.nextafter(np.sqrt(square), np.inf)
            assert is_above_the_norm(float(root), matrix, 0)
