"""Setting rows aside: a test part where a source has none, and validation rows to choose by."""

from __future__ import annotations

import hashlib
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
    """Set about a fifth of every site's rows aside, each row by its own content alone.

    A row is set aside if the SHA-256 of its site's stream and its content is small. Which way it
    goes depends neither on other rows nor on how many there are: one record more or less changes
    the training rows by at most that record, as guarantees for single records take for granted,
    and the same rows are set aside whether a site is alone or among others. Equal rows go the
    same way.

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
        aside[members] = _by_content(rows, members, randomness.stream(site_names[site]))
    return _divide(rows, aside)


def validation(dataset: Dataset, seed: int) -> Dataset:
    """Replace the test rows by a fifth of the training rows, so that settings can be chosen.

    Rows are set aside by their own content, as in `hold_out_by_site`. The data set's own test
    rows are not part of the result and stay unseen.
    """
    randomness = SimulationRandomness(seed).stream("validation")
    if dataset.train.sites is None:
        everything = np.arange(len(dataset.train))
        train, aside = _divide(dataset.train, _by_content(dataset.train, everything, randomness))
    else:
        train, aside = hold_out_by_site(dataset.train, dataset.site_names, randomness)
    return replace(dataset, train=train, test=aside)


def _by_content(
    rows: Rows, places: NDArray[np.int64], randomness: SimulationRandomness
) -> NDArray[np.bool_]:
    """Decide for each row at `places`, from the stream's name and the row alone."""
    key = hashlib.sha256(repr((randomness.seed, *randomness.labels)).encode()).digest()
    limit = int(HELD_OUT * 2**64)

    def is_aside(place: int) -> bool:
        content = rows.stored[place].tobytes() + int(rows.labels[place]).to_bytes(8, "big")
        return int.from_bytes(hashlib.sha256(key + content).digest()[:8], "big") < limit

    return np.array([is_aside(place) for place in places], dtype=bool)


def _divide(rows: Rows, aside: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    places = (np.flatnonzero(~aside), np.flatnonzero(aside))
    train, test = (rows.take(index.astype(np.int64)) for index in places)
    return train, test
