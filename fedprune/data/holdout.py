"""Setting rows aside: a test part where a source has none, and validation rows to choose by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedprune.data.rows import Dataset, Index, Rows
from fedprune.errors import DataError
from fedprune.randomness import SimulationRandomness

HELD_OUT = 0.2


def hold_out(rows: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Set a fifth of the rows aside, at random and within each site where there are sites.

    Returns:
        The rows that stay and the rows set aside, each in their original order.

    Raises:
        DataError: if there are fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"at least two rows are needed to set some aside, got {len(rows)}")
    sites = np.zeros(len(rows), dtype=np.int64) if rows.sites is None else rows.sites
    aside = np.zeros(len(rows), dtype=bool)
    for site in np.unique(sites):
        members = generator.permutation(np.flatnonzero(sites == site))
        aside[members[: round(HELD_OUT * len(members))]] = True
    if not aside.any():
        aside[generator.integers(len(rows))] = True
    return rows.take(_where(~aside)), rows.take(_where(aside))


def validation(dataset: Dataset, seed: int) -> Dataset:
    """Replace the test rows by a fifth of the training rows, so that settings can be chosen.

    The data set's own test rows are not part of the result and stay unseen.

    Raises:
        DataError: if there are fewer than two training rows.
    """
    generator = SimulationRandomness(seed).stream("validation").generator
    train, aside = hold_out(dataset.train, generator)
    return replace(dataset, train=train, test=aside)


def _where(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Index:
    return np.flatnonzero(chosen).astype(np.int64)
