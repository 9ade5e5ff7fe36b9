"""Checks of data that somebody else's code made, before anything is trained on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedprune.data.rows import Dataset, Rows
from fedprune.errors import DataError

CHUNK = 4096  # rows scaled at a time, lest a large set be copied whole


def check(dataset: Dataset) -> None:
    """Check types, and that all network inputs are finite; a `Dataset` checks shapes and ranges.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    of = f"of dataset {dataset.name!r}"
    for part, rows in (("train", dataset.train), ("test", dataset.test)):
        if not isinstance(rows, Rows):
            raise DataError(f"{part} {of} must be data.Rows, got {type(rows).__name__}")
        _check_stored(rows.stored, f"{part} inputs {of}")
        _check_codes(rows.labels, f"{part} labels {of}")
        if rows.sites is not None:
            _check_codes(rows.sites, f"{part} sites {of}")
        for name, column in rows.groups.items():
            _check_codes(column.codes, f"{part} codes of group {name} {of}")
        _check_finite(rows, f"{part} inputs {of}")
    _ = dataset.schema  # checks what is public: number of classes, shape, unit, names of groups


def _check_stored(stored: object, what: str) -> None:
    if not isinstance(stored, np.ndarray):
        raise DataError(f"{what} must be a numpy array, got {type(stored).__name__}")
    kind: np.dtype[np.generic] = stored.dtype
    if kind.kind not in "biuf" or kind.itemsize > 8 or not kind.isnative:
        raise DataError(f"{what} must be numbers of up to 64 bits, got {kind}")


def _check_codes(codes: object, what: str) -> None:
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int64:
        found = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
        raise DataError(f"{what} must be a numpy array of int64, got {found}")


def _check_finite(rows: Rows, what: str) -> None:
    for start in range(0, len(rows), CHUNK):
        inputs = rows.inputs(slice(start, start + CHUNK)).flatten(1)
        finite: NDArray[np.bool_] = inputs.isfinite().all(dim=1).numpy()
        if not finite.all():
            row = int(np.argmin(finite))
            values = inputs[row]
            value = values[~values.isfinite()][0].item()
            raise DataError(f"{what} must be finite, got {value} in row {start + row}")
