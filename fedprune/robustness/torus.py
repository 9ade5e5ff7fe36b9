"""The norm of a convolution on a torus: its Fourier blocks, and factorisations that bound them.

A zero-padded convolution is a compression of the circular one on a torus that is large enough for
every read outside the map to fall on a zero. A stride s is taken in by the polyphase form: input
positions are sorted by their remainder modulo s, which become channels. On the torus the operator
is block diagonal under the Fourier transform (Sedghi, Gupta & Long, ICLR 2019; doubly
block-circulant matrices: Wang et al., CVPR 2020): one block A(w) = sum_s exp(i w.s) B_s for each
frequency w, where B_s [out, in * remainders] holds the weights of the taps whose whole step is s.

The torus may be twisted. If D multiplies position x by exp(i t.x), then D* T D is the zero-padded
convolution T with its taps turned by exp(i t.step): it has the same norm, and its blocks are
A(w + t). So the largest block over the frequencies (2 pi k + pi b) / size is a bound for every b;
b is 0 or 1 on each axis, and the smallest of these bounds is looked for. A smooth kernel has its
largest block at w = 0, which b = 1 steps around: for the symmetric tridiagonal operators the bound
then is the norm itself, 1 + 2 cos(pi / (n + 1)) for [1, 1, 1], where the plain torus says 3.
Estimates, which cost little, say which b to certify; only its blocks are factorised.

Only the largest eigenvalue of the Gram matrices A(w) A(w)* is needed. These are trigonometric
polynomials in w themselves, so the products B_s B_t^T are summed once by difference s - t, and a
Gram matrix costs n^2 operations for each difference instead of a product of n x n matrices. Each
is then bounded by a Cholesky factorisation, see `spectral.least_shift`.

Rounding, with k the longer side of B_s, S steps, D differences and A' = sum_s |B_s|: an entry of
a Gram matrix is a sum of at most k S products of weights, then of D terms whose phases are good to
16 eps, so real and imaginary parts are off by at most (k S + D + 64) eps (A' A'^T)_ij, the matrix
by at most 4 (k S + D + 128) eps ||A'||_F^2 in norm. Where blocks are multiplied one by one, they
are off by (S + 64) eps A' entrywise and the product by 4 k eps ||A'||_F^2: less. Weights may carry
16 eps from folding, which costs 16 eps ||A'||_F.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedprune.robustness.geometry import Geometry
from fedprune.robustness.rounding import (
    EPSILON,
    TINY,
    Floats,
    norm_up,
    power_of_two,
    sqrt_up,
    times_power,
    up,
)
from fedprune.robustness.spectral import (
    ENTRY_ERROR,
    Matrices,
    Norm,
    estimate_error,
    gram_bound,
    largest_estimate,
    leading_vectors,
    least_shift,
    shift_bound,
)

CHUNK_ENTRIES = 2_000_000
"""Complex entries of Fourier blocks held at a time (32 MB)."""

MAX_TWISTED_POINTS = 32_768
"""Of a torus, up to which it is twisted; on a larger one neighbouring blocks hardly differ."""

PEAKS = 8
"""Largest blocks of a coarse grid, near which the largest of every twist are looked for."""

COARSE = 16
"""Points of a coarse grid's axis at least, and four times the steps of the kernel along it."""


def torus_norm(weight: Floats, geometry: Geometry, torus: tuple[int, ...] | None = None) -> Norm:
    """Bound a zero-padded convolution by the largest Fourier block on the torus.

    Args:
        weight: [out, in / groups, *kernel] float64.
        geometry: map sizes, strides, paddings, dilations and groups.
        torus: points an axis (polyphase) of an untwisted torus; only the default is proved to
            give a bound, by `Axis.torus`.
    """
    if not weight.any():
        return Norm(TINY, "torus zero")
    exponent = power_of_two(np.abs(weight))  # so that no square overflows or vanishes
    steps = Steps.of(np.ldexp(weight, -exponent), geometry)
    sizes = torus or tuple(axis.torus for axis in geometry.axes)
    largest = steps.absolute_norm
    try:
        alone = torus is not None or math.prod(sizes) > MAX_TWISTED_POINTS
        square = _least_square(steps, sizes, [(0,) * len(sizes)] if alone else steps.twists)
        terms = max(steps.parts.shape[2:]) * len(steps.shifts) + len(steps.shifts) ** 2 + 128
        error = up(4 * terms * EPSILON * up(largest * largest))
        norm, method = sqrt_up(up(square + error)), "torus cholesky"
    except np.linalg.LinAlgError:  # no factor: Gram iteration needs none
        return gram_torus_norm(weight, geometry, torus)
    slack = up((ENTRY_ERROR + 8 * EPSILON) * largest)
    return Norm(up(times_power(up(norm + slack), exponent)) + TINY, method)


def _least_square(steps: Steps, sizes: tuple[int, ...], twists: list[tuple[int, ...]]) -> float:
    """Bound the largest eigenvalue of all Gram matrices of the twist where it is least.

    Twists come in the order of their estimates, so that one is usually enough.
    """
    side = min(steps.parts.shape[2:])
    grids = {twist: steps.frequencies(sizes, twist) for twist in twists}
    estimates = dict.fromkeys(twists, 0.0)
    if len(twists) > 1 and side > 1:  # else an estimate costs as much as what it may save
        images = _peak_images(steps, sizes)
        estimates = {twist: _estimate(steps, grid, images) for twist, grid in grids.items()}
    square = math.inf
    for twist, estimate in sorted(estimates.items(), key=lambda one: one[1]):
        shift = estimate * (1 + estimate_error(side))
        for grams in steps.grams(grids[twist]):
            shift = least_shift(grams, shift, square)
            if math.isinf(shift):
                break
        square = min(square, shift_bound(shift, side))
    return square


def _peak_images(steps: Steps, sizes: tuple[int, ...]) -> NDArray[np.complex128]:
    """Images [steps, peaks, longer side] of the leading vectors of blocks that are large.

    The blocks of a coarse grid are looked at. A vector v that leads at one frequency nearly leads
    at those around, where its Rayleigh quotient |A(w)* v|^2 = |sum_s exp(-i w.s) B_s^T v|^2 costs
    next to nothing.
    """
    spans = np.ptp(steps.shifts, axis=0)
    lines = [
        2 * np.arange(0, size, max(1, size // max(COARSE, 4 * int(span))) if span else size)
        for size, span in zip(sizes, spans, strict=True)
    ]
    lines[-1] = lines[-1][lines[-1] <= sizes[-1]]  # the others are their conjugates
    numbers = np.stack([line.ravel() for line in np.meshgrid(*lines, indexing="ij")], axis=1)
    doubled, groups = tuple(2 * size for size in sizes), steps.parts.shape[1]
    stacks = steps.grams(Frequencies(numbers, doubled))
    rough = np.concatenate([leading_vectors(grams, 8)[0] for grams in stacks])
    tops = np.argsort(rough)[-PEAKS:]
    grid = Frequencies(numbers[tops // groups], doubled)
    owners = np.repeat(tops, groups) % groups == np.tile(np.arange(groups), len(tops))
    chosen, done = [], 0
    for grams in steps.grams(grid):
        chosen.append(leading_vectors(grams[owners[done : done + len(grams)]], 32)[1])
        done += len(grams)
    vectors = np.concatenate(chosen)
    images: NDArray[np.complex128] = np.stack(
        [
            np.tensordot(vector, steps.wide_parts[:, top % groups], (0, 1))
            for top, vector in zip(tops, vectors, strict=True)
        ],
        axis=1,
    )
    return images


def _estimate(steps: Steps, grid: Frequencies, images: NDArray[np.complex128]) -> float:
    """Estimate the largest eigenvalue on a grid, never from above but for rounding.

    A peak that is missed costs time, since some block finds no factor later, but no rigour.
    """
    quotients = []
    for cosines, sines in _phases(grid, steps.shifts, images[0].size):
        turned = np.tensordot(cosines - 1j * sines, images, 1)
        quotients.append(np.square(np.abs(turned)).sum(axis=2).max(axis=1))
    best = np.argsort(np.concatenate(quotients))[-3:]
    stacks = steps.grams(Frequencies(grid.numbers[best], grid.sizes))
    return max(largest_estimate(grams, 8, 3) for grams in stacks)


def gram_torus_norm(
    weight: Floats,
    geometry: Geometry,
    torus: tuple[int, ...] | None = None,
    *,
    iterations: int = 12,
) -> Norm:
    """Bound the same by Gram iteration of all blocks (Delattre et al., ICML 2023).

    Each block is off by at most (S + 64) eps ||A'||_F, and its weights by 16 eps ||A'||_F.

    Args:
        weight: [out, in / groups, *kernel] float64.
        geometry: map sizes, strides, paddings, dilations and groups.
        torus: as for `torus_norm`.
        iterations: squarings at most.
    """
    if not weight.any():
        return Norm(TINY, "torus zero")
    exponent = power_of_two(np.abs(weight))
    steps = Steps.of(np.ldexp(weight, -exponent), geometry)
    sizes = torus or tuple(axis.torus for axis in geometry.axes)
    bound = 0.0
    for blocks in steps.blocks(steps.frequencies(sizes, (0,) * len(sizes))):
        flat = blocks.reshape(-1, *blocks.shape[2:])
        bound = gram_bound(flat, bound, iterations=iterations)
    slack = up((len(steps.shifts) + 96) * EPSILON * steps.absolute_norm)
    return Norm(up(times_power(up(bound + slack), exponent)) + TINY, "torus gram")


def absolute_blocks(weight: Floats, geometry: Geometry) -> Floats:
    """Sum |weight| over the taps of each remainder: [groups, out / groups, in * remainders]."""
    blocks: Floats = Steps.of(np.abs(weight), geometry).parts.sum(axis=0)
    return blocks


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Frequencies 2 pi numbers / sizes: numbers [count, axes] and one size an axis."""

    numbers: NDArray[np.int64]
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Steps:
    """A kernel in polyphase form.

    Attributes:
        shifts: [steps, axes] distinct whole steps of the taps, in lexicographic order.
        parts: [steps, groups, out / groups, in * remainders], the weights that go with each.
    """

    shifts: NDArray[np.int64]
    parts: Floats

    @classmethod
    def of(cls, weight: Floats, geometry: Geometry) -> Steps:
        """Sort a kernel [out, in / groups, *kernel] by steps and remainders of its taps."""
        out, inputs = weight.shape[:2]
        taps = np.indices(weight.shape[2:]).reshape(len(geometry.axes), -1).T
        places = taps * [axis.dilation for axis in geometry.axes]
        whole, rest = np.divmod(places, [axis.stride for axis in geometry.axes])
        shifts, step = np.unique(whole, axis=0, return_inverse=True)
        _, remainder = np.unique(rest, axis=0, return_inverse=True)
        step, remainder = step.reshape(-1), remainder.reshape(-1)
        parts = np.zeros((len(shifts), out, inputs, int(remainder.max()) + 1))
        parts[step, :, :, remainder] = weight.reshape(out, inputs, -1).transpose(2, 0, 1)
        groups = geometry.groups
        return cls(shifts, parts.reshape(len(shifts), groups, out // groups, -1))

    @property
    def absolute_norm(self) -> float:
        """Largest Frobenius norm over the groups of sum_s |B_s|."""
        return float(norm_up(np.abs(self.parts).sum(axis=0) * (1 + 1e-12), (1, 2)).max())

    @property
    def wide_parts(self) -> Floats:
        """The parts, or their transposes where these have the shorter side first."""
        tall = self.parts.shape[2] > self.parts.shape[3]
        return self.parts.swapaxes(2, 3) if tall else self.parts

    @property
    def twists(self) -> list[tuple[int, ...]]:
        """Every twist; along an axis with one shift only they are alike."""
        spans = np.ptp(self.shifts, axis=0)
        return list(itertools.product(*((1, 0) if span else (0,) for span in spans)))

    def frequencies(self, sizes: tuple[int, ...], twist: tuple[int, ...]) -> Frequencies:
        """List the frequencies of a torus whose blocks differ in their norms.

        The kernel is real and the twists are 0 or 1, so half of the last axis is enough; along an
        axis with one shift only all blocks are alike up to a phase.
        """
        spans = np.ptp(self.shifts, axis=0)
        ranges = [size if span else 1 for size, span in zip(sizes, spans, strict=True)]
        if ranges[-1] > 1:
            ranges[-1] = (ranges[-1] + 1) // 2 if twist[-1] else ranges[-1] // 2 + 1
        counts = np.indices(ranges).reshape(len(ranges), -1).T
        return Frequencies(2 * counts + np.array(twist), tuple(2 * size for size in sizes))

    def grams(self, grid: Frequencies) -> Iterator[Matrices]:
        """Yield stacks of Gram matrices [count, n, n] of the blocks, n their shorter side."""
        count = len(self.shifts)
        if count * (count + 1) > 8 * len(grid.numbers):
            for blocks in self.blocks(grid):
                flat = blocks.reshape(-1, *blocks.shape[2:])
                flat = flat if flat.shape[1] <= flat.shape[2] else flat.transpose(0, 2, 1)
                yield flat @ flat.conj().transpose(0, 2, 1)
            return
        differences, products = self._autocorrelation
        even = products + products.swapaxes(-1, -2)
        even[0] = products[0]  # the difference 0 comes first
        odd = products - products.swapaxes(-1, -2)
        shape = products.shape[1:]
        for cosines, sines in _phases(grid, differences, math.prod(shape)):
            grams = np.empty((len(cosines), *shape), dtype=np.complex128)
            grams.real = (cosines @ even.reshape(len(even), -1)).reshape(-1, *shape)
            grams.imag = (sines @ odd.reshape(len(odd), -1)).reshape(-1, *shape)
            yield grams.reshape(-1, *shape[1:])

    def blocks(self, grid: Frequencies) -> Iterator[Matrices]:
        """Yield stacks of Fourier blocks [count, groups, out / groups, in * remainders]."""
        shape = self.parts.shape[1:]
        flat = self.parts.reshape(len(self.parts), -1)
        for cosines, sines in _phases(grid, self.shifts, math.prod(shape)):
            blocks = np.empty((len(cosines), *shape), dtype=np.complex128)
            blocks.real = (cosines @ flat).reshape(-1, *shape)
            blocks.imag = (sines @ flat).reshape(-1, *shape)
            yield blocks

    @cached_property
    def _autocorrelation(self) -> tuple[NDArray[np.int64], Floats]:
        """Sum B_s B_t^T by difference s - t >= 0 (lexicographic): [differences, groups, n, n].

        A difference below 0 has the transposed sum.
        """
        parts = self.wide_parts
        later, earlier = np.tril_indices(len(parts))
        differences, index = np.unique(
            self.shifts[later] - self.shifts[earlier], axis=0, return_inverse=True
        )
        index = index.reshape(-1)
        side = parts.shape[2]
        products = np.zeros((len(differences), parts.shape[1], side, side))
        turned = parts.swapaxes(2, 3)
        for step, part in enumerate(parts):
            for other in range(step + 1):
                products[index[step * (step + 1) // 2 + other]] += part @ turned[other]
        return differences, products


def _phases(
    grid: Frequencies, shifts: NDArray[np.int64], entries: int
) -> Iterator[tuple[Floats, Floats]]:
    """Yield cosines and sines [count, shifts] of all frequencies, a chunk at a time."""
    frequencies, sizes = grid.numbers, grid.sizes
    chunk = max(1, CHUNK_ENTRIES // max(entries, len(shifts)))
    turned = [np.exp(2j * np.pi * np.arange(size) / size) for size in sizes]
    for start in range(0, len(frequencies), chunk):
        part = frequencies[start : start + chunk]
        phases = np.ones((len(part), len(shifts)), dtype=np.complex128)
        for axis, size in enumerate(sizes):
            phases *= turned[axis][np.outer(part[:, axis], shifts[:, axis]) % size]
        yield np.ascontiguousarray(phases.real), np.ascontiguousarray(phases.imag)
