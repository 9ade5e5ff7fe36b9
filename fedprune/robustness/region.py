"""One node of a network while its input moves inside l2 balls: the value, and outward rounding.

See `regions` for what is enclosed and how.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.robustness.rounding import EPSILON

SAFE = 1 + 1e-9
"""Factor after a few roundings, outward."""

FLOOR = 1e-200
"""Added where a result could have vanished."""


@dataclass(frozen=True)
class Region:
    """One node of n examples; `directions` is the size of the network's input.

    Attributes:
        centre: [n, ...].
        slope: [n, directions, ...].
        rest: [n, ...], not negative.
        low, high: [n, ...], the intersection of all enclosures.
        jacobian: [n, directions, ...].
        spread: [n], spectral distance of any Jacobian in the ball from `jacobian`.
        spreads: [n, ...], the same row by row.
    """

    centre: Tensor
    slope: Tensor
    rest: Tensor
    low: Tensor
    high: Tensor
    jacobian: Tensor
    spread: Tensor
    spreads: Tensor


def start(inputs: Tensor, radii: Tensor, scale: Tensor) -> Region:
    """The ball itself: its affine form is exact."""
    count, size = len(inputs), scale.numel()
    slope = torch.diag(scale.flatten()).reshape(1, size, *scale.shape)
    slope = slope.expand(count, *slope.shape[1:])
    reach = spread_over(radii, inputs) * scale.abs() * SAFE
    zeros = torch.zeros_like(inputs)
    low, high = lower(inputs - reach), higher(inputs + reach)
    rest = 4 * EPSILON * reach + FLOOR
    spreads = 4 * EPSILON * scale.abs().expand_as(inputs) + FLOOR
    spread = 4 * EPSILON * scale.abs().max().expand(count) + FLOOR
    return Region(inputs, slope, zeros + rest, low, high, slope, spread, spreads)


def tightened(region: Region, radii: Tensor) -> Region:
    """Intersect the interval with the affine form, and the two bounds on the Jacobian."""
    reach = spread_over(radii, region.centre) * row_lengths(region.slope) * SAFE + region.rest
    low = torch.maximum(region.low, lower(region.centre - reach * SAFE))
    high = torch.minimum(region.high, higher(region.centre + reach * SAFE))
    spread = torch.minimum(region.spread, total_length(region.spreads))
    return replace(region, low=low, high=high, spread=spread)


def row_lengths(matrix: Tensor) -> Tensor:
    """Lengths over the directions [n, directions, ...] -> [n, ...], rounded up."""
    lengths: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return lengths * SAFE + FLOOR


def spread_over(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [n] to broadcast over [n, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def lower(values: Tensor) -> Tensor:
    """Move a result that was rounded a few times safely down."""
    return values - values.abs() * 1e-12 - FLOOR


def higher(values: Tensor) -> Tensor:
    """Move a result that was rounded a few times safely up."""
    return values + values.abs() * 1e-12 + FLOOR


def total_length(rows: Tensor) -> Tensor:
    """Lengths of all entries of an example together [n, ...] -> [n], rounded up."""
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return lengths * SAFE + FLOOR


def spectral_norms(matrices: Tensor) -> Tensor:
    """Bound the largest singular values: [n, a, b] -> [n].

    The eigenvalues of the smaller Gram matrix are computed with an error of a modest polynomial
    times eps times its trace; the allowance is 64 (a + b) eps times the trace.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.transpose(1, 2)
    gram = matrices @ matrices.transpose(1, 2)
    trace = torch.square(matrices).flatten(1).sum(dim=1) * SAFE
    largest = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0)
    slack = 64 * sum(matrices.shape[1:]) * EPSILON * trace
    return torch.minimum(torch.sqrt(largest + slack), torch.sqrt(trace)) * SAFE + FLOOR
