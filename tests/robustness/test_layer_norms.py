"""Every layer norm is at least that of the explicit matrix, and close to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.robustness import spectral
from fedprune.robustness.layer_norms import (
    Axis,
    Geometry,
    absolute_norm,
    convolution_norm,
    convolve,
    explicit_matrix,
    padding_norm,
    torus_norm,
    unfolding_norm,
)
from fedprune.robustness.lipschitz import bound_network
from fedprune.robustness.spectral import cholesky_bound, gram_bound, matrix_norm, stack_norm


def matrix_of(layer: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The linear part of a layer as an explicit float64 matrix: column i is layer(e_i)."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        images = layer(basis) - layer(torch.zeros_like(basis))
    return images.reshape(size, -1).numpy().T


def true_norm(layer: Any, shape: tuple[int, ...]) -> float:
    return float(np.linalg.svd(matrix_of(layer, shape), compute_uv=False)[0])


def certified(layer: nn.Module, shape: tuple[int, ...]) -> float:
    bounded = bound_network(layer.eval(), torch.zeros(1, *shape))
    return bounded.bounds[bounded.network.output]


def random_geometry(rng: np.random.Generator) -> tuple[np.ndarray, Geometry]:
    """A random convolution of one or two axes with every option drawn."""
    spatial = int(rng.integers(1, 3))
    groups = int(rng.integers(1, 3))
    axes = []
    for _ in range(spatial):
        kernel, dilation = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        low, high = (int(p) for p in rng.integers(0, 5, size=2))
        reach = dilation * (kernel - 1) + 1
        length = int(rng.integers(max(1, reach - low - high), reach + 5))
        axes.append(Axis(length, kernel, int(rng.integers(1, 5)), dilation, low, high))
    shape = (2 * groups, int(rng.integers(1, 4)), *(axis.kernel for axis in axes))
    return rng.standard_normal(shape), Geometry(tuple(axes), groups)


@pytest.mark.parametrize("seed", range(12))
def test_every_bound_is_at_least_the_norm_of_the_explicit_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(40):
        weight, geometry = random_geometry(rng)
        truth = np.linalg.norm(explicit_matrix(weight, geometry), 2)
        for bound in (torus_norm, unfolding_norm, convolution_norm):
            assert bound(weight, geometry).value >= truth, (bound, geometry)
        assert convolution_norm(weight, geometry).value <= truth * (1 + 1e-9) + 1e-9
        absolute = np.linalg.norm(explicit_matrix(np.abs(weight), geometry), 2)
        assert absolute_norm(weight, geometry) >= absolute


@pytest.mark.parametrize("seed", range(4))
def test_the_explicit_matrix_is_what_torch_does_to_every_basis_vector(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    for _ in range(40):
        weight, geometry = random_geometry(rng)
        channels = weight.shape[1] * geometry.groups
        shape = (channels, *(axis.length for axis in geometry.axes))
        layer = partial(convolve, weight=torch.from_numpy(weight), bias=None, geometry=geometry)
        assert np.array_equal(explicit_matrix(weight, geometry), matrix_of(layer, shape))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_other_paddings_are_bounded_too(mode: str, stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride, 1, padding_mode=mode, dtype=torch.float64)
    truth = true_norm(layer, (2, 6, 6))
    assert truth <= certified(layer, (2, 6, 6)) <= 3 * truth
    if mode == "circular" and stride == 1:
        assert certified(layer, (2, 6, 6)) <= truth * (1 + 1e-9)


def test_the_torus_of_the_maps_own_size_would_lie_below_the_truth() -> None:
    line = np.array([-1.0, 2.0, -1.0])
    weight = np.outer(line, line)[None, None]
    geometry = Geometry((Axis(3, 3, low=1, high=1),) * 2)
    truth = np.linalg.norm(explicit_matrix(weight, geometry), 2)
    assert truth == pytest.approx(11.657, abs=1e-3)
    assert torus_norm(weight, geometry, (3, 3)).value == pytest.approx(9.0)
    assert torus_norm(weight, geometry).value >= truth
    assert truth <= convolution_norm(weight, geometry).value <= truth * (1 + 1e-9)


def found_norm(weight: np.ndarray, stride: int, padding: int, length: int) -> float:
    """A lower bound on the norm by power iteration, with torch's own adjoint convolution."""
    kernel = torch.from_numpy(weight)
    options = {"stride": stride, "padding": padding}
    generator = torch.Generator().manual_seed(0)
    shape = (1, weight.shape[1], length, length)
    vector = torch.randn(shape, generator=generator, dtype=torch.float64)
    for _ in range(1500):
        image = torch.nn.functional.conv2d(vector / vector.norm(), kernel, **options)
        vector = torch.nn.grad.conv2d_input(vector.shape, kernel, image, **options)
    return float(image.norm())


@pytest.mark.parametrize(
    ("shape", "stride", "padding", "length", "ratio"),
    [
        ((16, 16, 3, 3), 1, 1, 16, 1.01),
        ((16, 8, 3, 3), 2, 1, 32, 1.01),
        ((16, 3, 7, 7), 2, 3, 32, 1.03),
    ],
)
def test_the_torus_bound_is_close_to_the_truth(
    shape: tuple[int, ...], stride: int, padding: int, length: int, ratio: float
) -> None:
    weight = np.random.default_rng(0).standard_normal(shape)
    axis = Axis(length, shape[2], stride, low=padding, high=padding)
    bound = torus_norm(weight, Geometry((axis, axis))).value
    found = found_norm(weight, stride, padding, length)
    assert found <= bound <= ratio * found


Bound = Callable[..., float]
ITERATED = pytest.mark.parametrize("bound", [gram_bound, cholesky_bound])


@ITERATED
def test_bounds_of_stacks_are_above_the_svd_and_close_to_it(bound: Bound) -> None:
    rng = np.random.default_rng(0)
    for shape in [(1, 5, 5), (30, 4, 9), (30, 9, 4), (3, 1, 7), (2, 40, 40), (3, 70, 90)]:
        real, imaginary = rng.standard_normal((2, *shape))
        for stack in (real, real + 1j * imaginary):
            truth = np.linalg.svd(stack, compute_uv=False).max()
            for scale in (1.0, 1e-120, 1e120):
                assert truth * scale <= bound(stack * scale) <= truth * scale * (1 + 1e-3)


@ITERATED
def test_bounds_of_a_multiple_of_an_isometry_still_bound(bound: Bound) -> None:
    stack = 3 * np.eye(50)[None]
    assert 3.0 <= bound(stack) <= 3.0 * 1.001


@ITERATED
def test_a_bound_exceeds_the_largest_matrix_wherever_it_stands_in_the_stack(bound: Bound) -> None:
    rng = np.random.default_rng(1)
    spread = rng.standard_normal((8, 12, 12))  # large Frobenius norms, no direction stands out
    sharp = 9.0 * np.outer(*np.linalg.qr(rng.standard_normal((12, 2)))[0].T)[None]
    assert np.linalg.norm(sharp) < np.linalg.norm(spread, axis=(1, 2)).min()
    assert np.linalg.norm(spread, 2, axis=(1, 2)).max() < 9.0
    for order in (np.concatenate([spread, sharp]), np.concatenate([sharp, spread])):
        assert 9.0 <= bound(order) <= 9.0 * 1.001


def test_a_bad_estimate_makes_a_cholesky_bound_loose_and_never_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = np.random.default_rng(2).standard_normal((4, 20, 20))
    truth = np.linalg.svd(stack, compute_uv=False).max()
    estimate = spectral._largest_eigenvalue
    for factor in (0.9, 1.2):
        monkeypatch.setattr(spectral, "_largest_eigenvalue", lambda g, f=factor: f * estimate(g))
        assert truth <= cholesky_bound(stack) <= 1.25 * truth
    monkeypatch.setattr(spectral, "_largest_eigenvalue", lambda _: 0.0)
    with pytest.raises(np.linalg.LinAlgError):
        cholesky_bound(stack)
    large = np.random.default_rng(3).standard_normal((20, 100, 120))
    assert stack_norm(large).method == "gram"
    monkeypatch.undo()
    assert stack_norm(large).method == "cholesky"


@ITERATED
def test_a_floor_is_never_lost(bound: Bound) -> None:
    assert bound(np.eye(3)[None], floor=5.0) >= 5.0
    assert bound(6 * np.eye(3)[None], floor=5.0) >= 6.0
    assert stack_norm(np.eye(3)[None], floor=5.0).value >= 5.0


def test_matrix_norms_exceed_those_in_twice_the_precision() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        rows, columns = rng.integers(1, 9, size=2)
        entries = rng.integers(-9, 10, size=(rows, columns))
        exact = entries.astype(np.float64)
        # ||A||^2 is the largest eigenvalue of an integer matrix: t^2 I - A^T A is positive
        # definite in exact arithmetic for every rational t above the norm
        assert _is_positive_definite(matrix_norm(exact).value, entries)
        assert _is_positive_definite(cholesky_bound(exact[None], tolerance=1e-15), entries)


def _is_positive_definite(bound: float, entries: np.ndarray) -> bool:
    square = Fraction(bound) ** 2
    gram = (entries.T @ entries).tolist()
    size = len(gram)
    matrix = [
        [square * (i == j) - Fraction(int(gram[i][j])) for j in range(size)] for i in range(size)
    ]
    for pivot in range(size):
        if matrix[pivot][pivot] <= 0:
            return False
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[pivot], strict=True)]
    return True


AVERAGES = [
    nn.AvgPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d((2, 3), (1, 2), (1, 0)),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveAvgPool2d((None, 4)),
]  # fmt: skip


@pytest.mark.parametrize("pool", AVERAGES, ids=repr)
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 6, 6)])
def test_average_pools_have_the_norm_of_their_matrix(
    pool: nn.Module, shape: tuple[int, ...]
) -> None:
    truth = true_norm(pool, shape)
    assert truth <= certified(pool, shape) <= truth * (1 + 1e-9)


def test_an_average_pool_with_ceil_mode_on_an_odd_map_has_norm_one() -> None:
    assert certified(nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5)) == pytest.approx(1.0)
    assert certified(nn.AvgPool2d(2), (1, 6, 6)) == pytest.approx(0.5)


MAXIMA = [
    nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1), nn.MaxPool2d(2, 2, dilation=2),
    nn.MaxPool2d(3, 2, 1, dilation=2), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d(3),
    nn.MaxPool2d((3, 2), (1, 3), (1, 0)),
]  # fmt: skip


@pytest.mark.parametrize("pool", MAXIMA, ids=repr)
def test_max_pools_reach_their_bound_on_one_bright_entry_and_never_pass_it(
    pool: nn.Module,
) -> None:
    shape = (1, 7, 8)
    bound = certified(pool, shape)
    generator = torch.Generator().manual_seed(0)
    dark = torch.zeros(56, *shape, dtype=torch.float64)
    single = torch.eye(56, dtype=torch.float64).reshape(56, *shape)
    reached = float((pool(single) - pool(dark)).flatten(1).norm(dim=1).max())
    assert reached == pytest.approx(bound)
    a, b = torch.randn(2, 500, *shape, generator=generator, dtype=torch.float64)
    ratios = (pool(a) - pool(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert float(ratios.max()) <= bound


def test_dilated_max_pools_follow_the_closed_form() -> None:
    for kernel, stride, dilation in [(2, 2, 2), (3, 2, 2), (3, 2, 1), (4, 3, 3), (3, 3, 1)]:
        windows = Axis(60, kernel, stride, dilation).multiplicity
        pool = nn.MaxPool2d(kernel, stride, dilation=dilation)
        assert certified(pool, (1, 60, 60)) == pytest.approx(windows)


def test_paddings_copy_entries_at_most_as_often_as_said() -> None:
    for mode in ("circular", "reflect", "replicate"):
        layer = torch.nn.functional.pad
        truth = true_norm(partial(layer, pad=(2, 1, 1, 2), mode=mode), (1, 4, 5))
        geometry = Geometry((Axis(4, 1, low=1, high=2), Axis(5, 1, low=2, high=1)), 1, mode)
        assert truth <= padding_norm(geometry) * (1 + 1e-12)
        assert padding_norm(geometry) <= truth * (1 + 1e-12)


def test_convolutions_of_three_axes_and_same_padding_are_bounded() -> None:
    torch.manual_seed(0)
    layers = [
        (nn.Conv3d(1, 2, 2, 1, 1, dtype=torch.float64), (1, 3, 3, 3)),
        (nn.Conv2d(2, 2, (4, 3), padding="same", dilation=(2, 2), dtype=torch.float64), (2, 6, 6)),
        (nn.Conv1d(2, 4, 3, 2, 1, groups=2, dtype=torch.float64), (2, 9)),
        (nn.Conv2d(4, 4, 3, 1, 1, groups=4, dtype=torch.float64), (4, 5, 5)),
    ]
    for layer, shape in layers:
        truth = true_norm(layer, shape)
        assert truth <= certified(layer, shape) <= truth * (1 + 1e-9)
