"""Which block size and threshold give the smallest variance: a numerical search, made once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import binom


@lru_cache(maxsize=1024)
def best_block(epsilon: float, num_units: int, num_reports: int | None = None) -> tuple[int, int]:
    """Choose (block_units, threshold) with the smallest variance per vote, ceil(d/m) / c^2.

    With few reports the variance is not all that counts: of units that nobody speaks about nothing
    is known, and a ranking finds less than its variance promises. There are then no more blocks
    than reports (100 reports about 784 units at epsilon = 4: a recall of 0.61 instead of 0.57).

    Args:
        epsilon: of one report.
        num_units: d.
        num_reports: how many reports are expected; None for as many as one likes.
    """
    small = range(1, min(num_units, 64) + 1)
    large = {-(-num_units // parts) for parts in range(1, 65)}
    most_blocks = num_units if num_reports is None else max(1, num_reports)
    scored = []
    for block_units in sorted({*small, *large}):
        blocks = -(-num_units // block_units)
        if blocks <= most_blocks:
            threshold, gain = best_threshold(epsilon, block_units)
            scored.append((blocks / gain**2, block_units, threshold))
    _, block_units, threshold = min(scored)
    return block_units, threshold


@lru_cache(maxsize=4096)
def best_threshold(epsilon: float, block_units: int) -> tuple[int, float]:
    """Choose the threshold with the largest gain c for a block, and that gain."""
    agreements = np.arange(block_units + 1)
    mass = binom.pmf(agreements, block_units, 0.5)
    tail = np.cumsum(mass[::-1])[::-1]
    moment = np.cumsum((mass * (2 * agreements / block_units - 1))[::-1])[::-1]
    gains = np.expm1(epsilon) * moment / (1 + tail * np.expm1(epsilon))
    best = int(np.argmax(gains[1:])) + 1
    return best, float(gains[best])
