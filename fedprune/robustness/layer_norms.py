"""Certified l2 norms of convolutions.

A zero-padded convolution is a compression of the circular one on a torus that is large enough for
every read outside the map to fall on a zero: n + max(padding) points an axis. At size n it is not,
and the spectrum can lie below the truth. A stride s is taken in by the polyphase form: input
positions are sorted by their remainder modulo s, which become channels, and the torus has
ceil((n + padding) / s) points. On the torus the operator is block diagonal under the Fourier
transform (Sedghi, Gupta & Long, ICLR 2019), one block [out, in * remainders] a frequency.

Rounding: a block entry is a sum of P products of weights with roots of unity. The roots are good
to 16 eps, the sum to P eps, the weights to 16 eps (folding), so a block is off by at most
(P + 64) eps ||A||_F in norm, A being the same block with absolute values in place of phases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.robustness.rounding import (
    EPSILON,
    Floats,
    norm_up,
    product_up,
    sqrt_up,
    up,
)
from fedprune.robustness.spectral import Matrices, Norm, matrix_norm, stack_norm

MAX_EXPLICIT_WORK = 4e7
"""m * n * min(m, n) up to which a convolution is bounded as the explicit matrix that it is."""

CHUNK_ENTRIES = 4_000_000
"""Complex entries of Fourier blocks held at a time (64 MB)."""


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a sliding window: `low` and `high` are the padding on either side."""

    length: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    @property
    def outputs(self) -> int:
        """How many windows fit."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.length + self.low + self.high - reach) // self.stride + 1

    @property
    def torus(self) -> int:
        """Polyphase points of a torus of which the zero-padded operator is a compression.

        Reads run from -low to length + high - 1, so with stride * torus >= length + max(low, high)
        every read outside the map meets a zero; distinct outputs need torus >= outputs.
        """
        zeros = max(self.low, self.high)
        return max(-(-(self.length + zeros) // self.stride), self.outputs)

    @property
    def multiplicity(self) -> int:
        """How many windows one input position can fall in, at most: ceil(k gcd(d, s) / s)."""
        return -(-self.kernel * math.gcd(self.dilation, self.stride) // self.stride)


@dataclass(frozen=True)
class Geometry:
    """The axes of a convolution, its groups, and what its padding is made of."""

    axes: tuple[Axis, ...]
    groups: int = 1
    padding_mode: str = "zeros"


def convolution_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound the norm of a convolution: the least of the rigorous bounds that are affordable.

    Args:
        weight: [out, in / groups, *kernel] float64.
        geometry: map sizes, strides, paddings, dilations and groups.
    """
    if geometry.padding_mode != "zeros":
        return _padded_norm(weight, geometry)
    if _explicit_work(weight, geometry) <= MAX_EXPLICIT_WORK:
        norm = matrix_norm(explicit_matrix(weight, geometry))
        return Norm(norm.value, f"explicit {norm.method}")
    torus = torus_norm(weight, geometry)
    if torus.method == "torus gram":  # the other two are not above the unfoldings, or hardly
        return min(torus, unfolding_norm(weight, geometry), key=lambda norm: norm.value)
    return torus


def torus_norm(weight: Floats, geometry: Geometry, torus: tuple[int, ...] | None = None) -> Norm:
    """Bound a zero-padded convolution by the largest Fourier block on the torus.

    Args:
        weight: [out, in / groups, *kernel] float64.
        geometry: as for `convolution_norm`.
        torus: points an axis (polyphase); only sizes that `Axis.torus` proves are the default.
    """
    sizes = torus or tuple(axis.torus for axis in geometry.axes)
    largest, methods = 0.0, set()
    for blocks in _fourier_blocks(weight, geometry, sizes):
        norm = stack_norm(blocks, floor=largest)
        largest = norm.value
        methods.add(norm.method)
    method = next(name for name in ("gram", "cholesky", "svd", "zero") if name in methods)
    taps = math.prod(weight.shape[2:])
    slack = up(
        (taps + 64) * EPSILON * float(norm_up(absolute_blocks(weight, geometry), (1, 2)).max())
    )
    return Norm(up(largest + slack), f"torus {method}")


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
    blocks = absolute_blocks(weight, geometry)
    frobenius = float(norm_up(blocks, (1, 2)).max())
    rows, columns = blocks.sum(axis=2).max(), blocks.sum(axis=1).max()
    growth = 1 + (sum(blocks.shape[1:]) + 8) * EPSILON
    schur = sqrt_up(up(float(rows) * float(columns) * growth * growth))
    return product_up(min(frobenius, schur), padding_norm(geometry))


def absolute_blocks(weight: Floats, geometry: Geometry) -> Floats:
    """Sum |weight| over the taps of each remainder: [groups, out / groups, in * remainders]."""
    folded = _Polyphase.of(geometry)
    sums = folded.gather(np.abs(weight), np.ones((1, folded.shifts.shape[1])))
    return np.asarray(sums.real[0], dtype=np.float64)


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


def _padded_norm(weight: Floats, geometry: Geometry) -> Norm:
    """Bound a convolution with circular, reflected or replicated padding."""
    if geometry.padding_mode == "circular" and all(
        axis.length % axis.stride == 0 and axis.outputs * axis.stride <= axis.length
        for axis in geometry.axes
    ):
        sizes = tuple(axis.length // axis.stride for axis in geometry.axes)
        return torus_norm(weight, geometry, sizes)
    bare = tuple(
        Axis(a.length + a.low + a.high, a.kernel, a.stride, a.dilation) for a in geometry.axes
    )
    inner = convolution_norm(weight, Geometry(bare, geometry.groups))
    value = product_up(padding_norm(geometry), inner.value)
    return Norm(value, f"{geometry.padding_mode} padding x {inner.method}")


def _explicit_work(weight: Floats, geometry: Geometry) -> float:
    rows = weight.shape[0] * math.prod(axis.outputs for axis in geometry.axes)
    inputs = weight.shape[1] * geometry.groups
    columns = inputs * math.prod(axis.length for axis in geometry.axes)
    return float(rows * columns * min(rows, columns))


@dataclass(frozen=True)
class _Polyphase:
    """Every tap's whole steps [axes, taps] and its remainder's index [taps]."""

    shifts: NDArray[np.int64]
    remainders: NDArray[np.int64]
    groups: int

    @classmethod
    def of(cls, geometry: Geometry) -> _Polyphase:
        taps = np.indices([axis.kernel for axis in geometry.axes]).reshape(len(geometry.axes), -1)
        dilation = np.array([[axis.dilation] for axis in geometry.axes])
        stride = np.array([[axis.stride] for axis in geometry.axes])
        shifts, remainders = np.divmod(taps * dilation, stride)
        flat = reduce(
            lambda key, axis: key * (axis[0].stride) + axis[1],
            zip(geometry.axes, remainders, strict=True),
            np.zeros_like(taps[0]),
        )
        return cls(shifts, np.unique(flat, return_inverse=True)[1], geometry.groups)

    def gather(self, weight: Floats, phases: Matrices) -> NDArray[Any]:
        """Sum taps with phases [frequencies, taps] into [frequencies, groups, out, in * rem]."""
        out, inputs = weight.shape[:2]
        flat = weight.reshape(out * inputs, -1)
        count = int(self.remainders.max()) + 1
        parts = [
            phases[:, self.remainders == r] @ flat[:, self.remainders == r].T for r in range(count)
        ]
        blocks = np.stack(parts, axis=-1)  # [frequencies, out * in, remainders]
        return blocks.reshape(len(phases), self.groups, out // self.groups, inputs * count)


def _fourier_blocks(
    weight: Floats, geometry: Geometry, sizes: tuple[int, ...]
) -> Iterator[Matrices]:
    """Yield stacks of Fourier blocks [count, out / groups, in * remainders] over the torus.

    The kernel is real, so the last axis needs half of its frequencies; an axis along which all
    taps share one shift has the same block everywhere, up to a phase.
    """
    folded = _Polyphase.of(geometry)
    ranges = [
        size if np.ptp(shift) else 1 for size, shift in zip(sizes, folded.shifts, strict=True)
    ]
    ranges[-1] = ranges[-1] // 2 + 1 if ranges[-1] > 1 else 1
    frequencies = np.indices(ranges).reshape(len(ranges), -1)
    chunk = max(1, CHUNK_ENTRIES // (weight.size * 2))
    for start in range(0, frequencies.shape[1], chunk):
        part = frequencies[:, start : start + chunk]
        phases = np.ones((part.shape[1], folded.shifts.shape[1]), dtype=np.complex128)
        for size, frequency, shift in zip(sizes, part, folded.shifts, strict=True):
            turns = np.outer(frequency, shift) % size  # exact integers: no large arguments
            phases *= np.exp(2j * np.pi * turns / size)
        blocks = folded.gather(weight, phases)
        yield blocks.reshape(-1, *blocks.shape[2:])
