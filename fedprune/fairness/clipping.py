"""Tables of bounded size, for noise that protects a whole client."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_whole
from fedprune.fairness.counting import to_numpy

MOST_COUNTED = 10**9  # rows of one client that can be drawn from


def clip_table(
    tables: ArrayLike, most_rows: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Keep at most `most_rows` rows of every client's table, drawn without replacement.

    A table then moves by at most `most_rows` in l1 when its client comes or goes. Drawing rows
    keeps every cell's share unbiased, where scaling counts down and rounding would lose rare
    cells; a client then counts by at most `most_rows` rows, and so does it in every figure. The
    bound holds for any draw, so the generator needs no secrecy.

    Args:
        tables: [num_clients, num_groups, ...] exact counts, or any table behind that first axis.
        most_rows: rows kept of each client.
        generator: draws the rows that stay.

    Returns:
        Counts of the same shape, at most the counts given.

    Raises:
        FairnessError: if `most_rows` is no whole number of at least 1, or a count is no natural
            number or a table counts a thousand million rows.
    """
    check_whole(most_rows, "most_rows", 1)
    counts = to_numpy(tables, "tables to clip")
    if counts.ndim < 2 or counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
        raise FairnessError(
            f"tables to clip must be natural numbers [num_clients, ...], got the shape "
            f"{list(counts.shape)} and the type {counts.dtype}"
        )
    most = float(counts.reshape(len(counts), -1).sum(axis=1, dtype=np.float64).max(initial=0))
    if most >= MOST_COUNTED:
        raise FairnessError(
            f"tables to clip must count under {MOST_COUNTED:,} rows each, got {most:.4g}"
        )
    clipped = counts.astype(np.int64).reshape(len(counts), -1)
    for client in np.flatnonzero(clipped.sum(axis=1) > most_rows):
        clipped[client] = generator.multivariate_hypergeometric(
            clipped[client], most_rows, method="marginals"
        )
    return clipped.reshape(counts.shape)
