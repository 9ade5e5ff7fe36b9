"""Certified l2 norms of convolutions: the least of the rigorous bounds that are affordable.

* As the explicit (block Toeplitz) matrix that it is, where that is small.
* On a torus of which it is a compression: n + max(padding) points an axis, ceil((n + padding) / s)
  with stride s; see `torus`. At size n it is no compression, and the spectrum can lie below the
  truth.
* sqrt(taps) times the smallest of the unfoldings, and Schur's test: both in closed form and never
  below the torus, so they decide only where the torus had to be bounded by Gram iteration. The
  tensor norm between torus and unfoldings (Grishina et al., 2024) has no certified algorithm.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.robustness.geometry import Axis, Geometry
from fedprune.robustness.rounding import (
    EPSILON,
    Floats,
    norm_up,
    product_up,
    sqrt_up,
    up,
)
from fedprune.robustness.spectral import Norm, matrix_norm
from fedprune.robustness.torus import absolute_blocks, torus_norm

__all__ = [
    "Axis",
    "Geometry",
    "absolute_blocks",
    "absolute_norm",
    "convolution_norm",
    "convolve",
    "explicit_matrix",
    "padding_norm",
    "schur_norm",
    "torus_norm",
    "unfolding_norm",
]

MAX_EXPLICIT_WORK = 4e7
"""m * n * min(m, n) up to which a convolution is bounded as the explicit matrix that it is."""


def convolution_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound the norm of a convolution: the least of the rigorous bounds that are affordable.

    Args:
        weight: [out, in / groups, *kernel] float64.
        geometry: map sizes, strides, paddings, dilations, groups and what the padding is made of.
    """
    if _explicit_work(weight, geometry) <= MAX_EXPLICIT_WORK:
        return _explicit_norm(weight, geometry)
    if geometry.padding_mode != "zeros":
        return _padded_norm(weight, geometry)
    torus = torus_norm(weight, geometry)
    if torus.method == "torus gram":
        others = (unfolding_norm(weight, geometry), schur_norm(weight, geometry))
        return min(torus, *others, key=lambda norm: norm.value)
    return torus


def schur_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound by Schur's test: sqrt of the largest row sum times the largest column sum of |W|.

    A row of the operator meets every weight of its output channel; a column those taps whose
    remainder modulo the stride is that of its position. Padding may drop some of either.
    """
    blocks = absolute_blocks(weight, geometry)
    growth = 1 + (sum(blocks.shape[1:]) + weight[0].size + 8) * EPSILON
    rows = product_up(float(blocks.sum(axis=2).max()), growth)
    columns = product_up(float(blocks.sum(axis=1).max()), growth)
    value = product_up(sqrt_up(rows), sqrt_up(columns), padding_norm(geometry))
    return Norm(up(value * (1 + 32 * EPSILON)), "schur")


def unfolding_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound by sqrt(taps) times the smallest norm of the unfoldings (Singla & Feizi, ICLR 2021).

    A Fourier block is a row of phases, times an unfolding, times a column of phases; whichever
    kernel axes go left or right, the phases contribute sqrt(taps) in all.
    """
    spatial = weight.ndim - 2
    taps = math.prod(weight.shape[2:])
    grouped = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    best = math.inf
    for chosen in range(2**spatial):
        left = [3 + axis for axis in range(spatial) if chosen >> axis & 1]
        right = [axis for axis in range(3, 3 + spatial) if axis not in left]
        order = [0, 1, *left, 2, *right]
        rows = grouped.shape[1] * math.prod(grouped.shape[axis] for axis in left)
        unfolded = grouped.transpose(order).reshape(geometry.groups, rows, -1)
        best = min(best, max(matrix_norm(matrix).value for matrix in unfolded))
    return Norm(product_up(sqrt_up(taps), best), "unfolding")


def explicit_matrix(weight: Floats, geometry: Geometry) -> Floats:
    """Write a zero-padded convolution as a matrix: [out * positions, in * map points].

    A pair of an output and an input position is joined by one tap at most, so weights are copied
    and never added: the matrix is exact.
    """
    out, inputs = weight.shape[:2]
    rows = math.prod(axis.outputs for axis in geometry.axes)
    columns = math.prod(axis.length for axis in geometry.axes)
    share = out // geometry.groups
    matrix = np.zeros((geometry.groups, share, rows, geometry.groups, inputs, columns))
    taps = weight.reshape(geometry.groups, share, inputs, -1)
    for tap, place in enumerate(np.ndindex(weight.shape[2:])):
        reads = [_joined(axis, k) for axis, k in zip(geometry.axes, place, strict=True)]
        position = _flat([outputs for outputs, _ in reads], [a.outputs for a in geometry.axes])
        point = _flat([inputs for _, inputs in reads], [a.length for a in geometry.axes])
        for group in range(geometry.groups):
            matrix[group, :, position, group, :, point] = taps[group, :, :, tap]
    return matrix.reshape(out * rows, -1)


def _joined(axis: Axis, tap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Outputs whose window reads the map with this tap, and the map points they read."""
    outputs = np.arange(axis.outputs)
    points = outputs * axis.stride + tap * axis.dilation - axis.low
    inside = (points >= 0) & (points < axis.length)
    return outputs[inside], points[inside]


def _flat(places: list[NDArray[np.int64]], sizes: list[int]) -> NDArray[np.int64]:
    """Number every combination of one place an axis, the last axis fastest."""
    grid = np.meshgrid(*places, indexing="ij")
    return np.ravel_multi_index([axis.ravel() for axis in grid], sizes).astype(np.int64)


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Run the convolution that `geometry` describes."""
    padding = [side for axis in reversed(geometry.axes) for side in (axis.low, axis.high)]
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    padded = torch.nn.functional.pad(inputs, padding, mode=mode) if any(padding) else inputs
    function = CONVOLUTIONS[len(geometry.axes)]
    stride = [axis.stride for axis in geometry.axes]
    dilation = [axis.dilation for axis in geometry.axes]
    result: Tensor = function(padded, weight, bias, stride, 0, dilation, geometry.groups)
    return result


CONVOLUTIONS = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}


def absolute_norm(weight: Floats, geometry: Geometry) -> float:
    """Bound the norm of the convolution whose weights are |weight|: it governs forward errors.

    |M(w)| <= A entry by entry at every frequency, so ||A|| bounds all blocks; ||A|| is at most the
    Frobenius norm and at most sqrt(||A||_1 ||A||_inf) (Schur).
    """
    frobenius = float(norm_up(absolute_blocks(weight, geometry), (1, 2)).max())
    return min(product_up(frobenius, padding_norm(geometry)), schur_norm(weight, geometry).value)


def padding_norm(geometry: Geometry) -> float:
    """Bound the norm of the padding alone: each map point is copied so many times."""
    if geometry.padding_mode == "zeros":
        return 1.0
    copies = 1
    for axis in geometry.axes:
        line = torch.arange(axis.length, dtype=torch.float64).reshape(1, 1, -1)
        sides = (axis.low, axis.high)
        padded = torch.nn.functional.pad(line, sides, mode=geometry.padding_mode)
        copies *= int(torch.bincount(padded.flatten().long()).max())
    return 1.0 if copies == 1 else sqrt_up(copies)


def _explicit_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound the operator as a matrix; padding that copies entries adds up columns."""
    if geometry.padding_mode == "zeros":
        norm = matrix_norm(explicit_matrix(weight, geometry))
        return Norm(norm.value, f"explicit {norm.method}")
    wide = explicit_matrix(weight, _padded_map(geometry))
    rows, inputs = len(wide), weight.shape[1] * geometry.groups
    columns = math.prod(axis.length for axis in geometry.axes)
    sources = _sources(geometry)
    matrix = np.zeros((columns, rows, inputs))
    np.add.at(matrix, sources, wide.reshape(rows, inputs, -1).transpose(2, 0, 1))
    norm = matrix_norm(matrix.transpose(1, 2, 0).reshape(rows, -1))
    copies = int(np.bincount(sources).max())
    slack = up((2 * copies + 16) * EPSILON * product_up(sqrt_up(copies), float(norm_up(wide))))
    return Norm(up(norm.value + slack), f"explicit {norm.method}")


def _padded_map(geometry: Geometry) -> Geometry:
    """Describe the same convolution of the map after its padding."""
    axes = (Axis(a.length + a.low + a.high, a.kernel, a.stride, a.dilation) for a in geometry.axes)
    return Geometry(tuple(axes), geometry.groups)


def _sources(geometry: Geometry) -> NDArray[np.int64]:
    """Number the map point that each point of the padded map copies: [padded points]."""
    lines = []
    for axis in geometry.axes:
        line = torch.arange(axis.length, dtype=torch.float64).reshape(1, 1, -1)
        sides = (axis.low, axis.high)
        padded = torch.nn.functional.pad(line, sides, mode=geometry.padding_mode)
        lines.append(padded.flatten().long().numpy())
    return _flat(lines, [axis.length for axis in geometry.axes])


def _padded_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound a convolution with circular, reflected or replicated padding."""
    if geometry.padding_mode == "circular" and all(
        axis.length % axis.stride == 0 and axis.outputs * axis.stride <= axis.length
        for axis in geometry.axes
    ):
        sizes = tuple(axis.length // axis.stride for axis in geometry.axes)
        return torus_norm(weight, geometry, sizes)
    inner = convolution_norm(weight, _padded_map(geometry))
    value = product_up(padding_norm(geometry), inner.value)
    return Norm(value, f"{geometry.padding_mode} padding x {inner.method}")


def _explicit_work(weight: Floats, geometry: Geometry) -> float:
    rows = weight.shape[0] * math.prod(axis.outputs for axis in geometry.axes)
    inputs = weight.shape[1] * geometry.groups
    columns = inputs * math.prod(axis.length for axis in geometry.axes)
    return float(rows * columns * min(rows, columns))
