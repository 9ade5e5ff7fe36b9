"""Paired bootstrap on count tables: of whole clients, or of the records within each client.

Dense and pruned model are judged on the same rows, so a resample draws rows (or clients) once and
both models follow. Everything is drawn as counts, never as rows: a resample of clients is a
multinomial weight per client times its table; a resample of records is a multinomial over the
cells of a table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.counting import Counts

Totals = NDArray[np.float64]

_CHUNK_WEIGHTS = 500_000  # weights held at once: 4 MB, near the size of a processor's cache


def resample_clients(
    tables: Counts, resamples: int, generator: np.random.Generator, *, noisy: bool = False
) -> Totals:
    """Draw whole clients with replacement and add their tables up.

    Args:
        tables: [num_clients, num_groups, 2, 2]; clients without rows are left out.
        resamples: how many resamples.
        generator: a seeded stream.
        noisy: whether counts are noisy: then who has no rows is not known, and all clients stay.

    Returns:
        Totals of every resample: [resamples, num_groups, 2, 2] float64, whole numbers.

    Raises:
        FairnessError: if there is no resample or no client with rows.
    """
    held = tables if noisy else tables[tables.sum(axis=(1, 2, 3)) > 0]
    _check(len(held), resamples)
    flat = held.reshape(len(held), -1).astype(np.float64)
    totals = np.empty((resamples, flat.shape[1]))
    chunk = max(1, _CHUNK_WEIGHTS // len(held))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        totals[start : start + count] = _client_weights(len(held), count, generator) @ flat
    return totals.reshape(resamples, *tables.shape[1:])


def resample_records(
    tables: Counts, resamples: int, generator: np.random.Generator, *, pool_below: int = 30
) -> Totals:
    """Draw records with replacement within each client and add the tables up.

    Clients with fewer than `pool_below` rows are drawn from together: a stratum of one or a few
    rows shows too little of its own variation (none at all with one row), and collapsing strata
    can only widen the interval (Wolter 2007, Introduction to Variance Estimation, chapter 2).

    Args:
        tables: [num_clients, num_groups, 2, 2].
        resamples: how many resamples.
        generator: a seeded stream.
        pool_below: clients with fewer rows than this form one stratum.

    Returns:
        Totals of every resample: [resamples, num_groups, 2, 2] float64, whole numbers.

    Raises:
        FairnessError: if there is no resample or no client with rows.
    """
    flat = tables.reshape(len(tables), -1)
    rows = flat.sum(axis=1)
    _check(int((rows > 0).sum()), resamples)
    strata = [*flat[rows >= pool_below], flat[rows < pool_below].sum(axis=0)]
    totals = np.zeros((resamples, flat.shape[1]))
    for stratum in strata:
        held = np.flatnonzero(stratum)
        if len(held):
            counts = stratum[held]
            totals[:, held] += generator.multinomial(
                counts.sum(), counts / counts.sum(), size=resamples
            )
    return totals.reshape(resamples, *tables.shape[1:])


def _client_weights(clients: int, count: int, generator: np.random.Generator) -> Totals:
    # Counting uniform draws gives multinomial weights, faster than a binomial for every client.
    drawn = generator.integers(0, clients, size=(count, clients))
    drawn += np.arange(count)[:, None] * clients
    weights = np.bincount(drawn.ravel(), minlength=count * clients)
    return weights.reshape(count, clients).astype(np.float64)


def _check(clients: int, resamples: int) -> None:
    if resamples < 1:
        raise FairnessError(f"resamples must be at least 1, got {resamples}")
    if clients == 0:
        raise FairnessError("no client has rows: there is nothing to resample")
