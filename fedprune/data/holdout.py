"""Setting rows aside: a test part where a source has none, and validation rows to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedprune.data.rows import Dataset, Rows
from fedprune.errors import DataError
from fedprune.randomness import SimulationRandomness

HELD_OUT = 0.2


def hold_out(rows: Rows, randomness: SimulationRandomness) -> tuple[Rows, Rows]:
    """Set a fifth of the rows aside, at random.

    Returns:
        The rows that stay and the rows set aside, each in their original order.

    Raises:
        DataError: if there are fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"at least two rows are needed to set some aside, got {len(rows)}")
    aside = np.zeros(len(rows), dtype=bool)
    shuffled = randomness.generator.permutation(len(rows))
    aside[shuffled[: max(round(HELD_OUT * len(rows)), 1)]] = True
    return _divide(rows, aside)


def hold_out_by_site(
    rows: Rows, site_names: Sequence[str], randomness: SimulationRandomness
) -> tuple[Rows, Rows]:
    """Set a fifth of every site's rows aside, at random: none where a site has one or two.

    Each site draws from a stream of its own name, so that the same rows are set aside whether it
    is alone or among others.

    Args:
        rows: with `rows.sites`.
        site_names: what the sites are called.
        randomness: whose streams are used.

    Returns:
        The rows that stay and the rows set aside, each in their original order.

    Raises:
        DataError: if the rows have no sites.
    """
    if rows.sites is None:
        raise DataError("rows without sites cannot be set aside by site")
    aside = np.zeros(len(rows), dtype=bool)
    for site in np.unique(rows.sites):
        members = np.flatnonzero(rows.sites == site)
        shuffled = randomness.stream(site_names[site]).generator.permutation(members)
        aside[shuffled[: round(HELD_OUT * len(members))]] = True
    return _divide(rows, aside)


def validation(dataset: Dataset, seed: int) -> Dataset:
    """Replace the test rows by a fifth of the training rows, so that settings can be chosen.

    The data set's own test rows are not part of the result and stay unseen.

    Raises:
        DataError: if there are fewer than two training rows and no sites.
    """
    randomness = SimulationRandomness(seed).stream("validation")
    if dataset.train.sites is None:
        train, aside = hold_out(dataset.train, randomness)
    else:
        train, aside = hold_out_by_site(dataset.train, dataset.site_names, randomness)
    return replace(dataset, train=train, test=aside)


def _divide(rows: Rows, aside: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    places = (np.flatnonzero(~aside), np.flatnonzero(aside))
    train, test = (rows.take(index.astype(np.int64)) for index in places)
    return train, test
