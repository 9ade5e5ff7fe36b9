"""Encoding rows of a table by public constants: nothing is fitted on anybody's data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError

MISSING = "?"
UNKNOWN_LEVEL = 0.5  # stands for a missing number; the indicator beside it says so


@dataclass(frozen=True)
class Numeric:
    """A number, mapped from the public range [low, high] to [0, 1] and clipped there.

    If it may be missing, a second input is 1 where it is and the first then says 0.5. On a
    logarithmic scale it is log(1 + value - low) that is mapped: for amounts of money and the like.
    """

    name: str
    low: float
    high: float
    unit: str
    may_miss: bool = True
    zero_is_missing: bool = False
    logarithmic: bool = False

    def features(self) -> tuple[str, ...]:
        """Name the inputs that this column becomes."""
        return (self.name, f"{self.name} missing") if self.may_miss else (self.name,)

    def encode(self, cell: str) -> list[float]:
        """Encode one cell.

        Raises:
            ValueError: if the cell is not a finite number or is missing and may not be.
        """
        value = self._number(cell)
        missing = value is None or (self.zero_is_missing and value == 0)
        if missing and not self.may_miss:
            raise ValueError(f"{self.name} must be known ({self.unit})")
        level = UNKNOWN_LEVEL
        if value is not None and not missing:
            level = self._level(value)
        return [level, float(missing)] if self.may_miss else [level]

    def _level(self, value: float) -> float:
        above, width = min(max(value, self.low), self.high) - self.low, self.high - self.low
        return math.log1p(above) / math.log1p(width) if self.logarithmic else above / width

    def _number(self, cell: str) -> float | None:
        if cell == MISSING:
            return None
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{self.name} must be a number ({self.unit})")
        return value


@dataclass(frozen=True)
class Categorical:
    """One of a few codes, as one input a code that is 1 for the right one and 0 elsewhere.

    If it may be missing, a last input is 1 where it is.
    """

    name: str
    codes: tuple[str, ...]
    may_miss: bool = True

    def features(self) -> tuple[str, ...]:
        """Name the inputs that this column becomes."""
        return tuple(f"{self.name} {code}" for code in self._levels())

    def encode(self, cell: str) -> list[float]:
        """Encode one cell.

        Raises:
            ValueError: if the cell is none of the codes, or is missing and may not be.
        """
        levels = self._levels()
        wanted = "missing" if cell == MISSING else cell
        if wanted not in levels:
            raise ValueError(f"{self.name} must be one of {', '.join(self.codes)}")
        return [float(level == wanted) for level in levels]

    def _levels(self) -> tuple[str, ...]:
        return (*self.codes, "missing") if self.may_miss else self.codes


Column = Numeric | Categorical


def feature_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Name the inputs that the columns become, in order."""
    return tuple(name for column in columns for name in column.features())


def encode_row(columns: Sequence[Column], cells: Sequence[str], where: str) -> list[float]:
    """Encode one row, every input in [0, 1].

    Args:
        columns: what each cell means.
        cells: one text a column; "?" where it is missing.
        where: file and line, for error messages.

    Raises:
        DataError: naming the first cell that does not fit its column.
    """
    encoded: list[float] = []
    for column, cell in zip(columns, cells, strict=True):
        try:
            encoded += column.encode(cell)
        except ValueError as error:
            raise DataError(f"{error}, got {cell!r} ({where})") from None
    return encoded


def encode_rows(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], wheres: Sequence[str]
) -> NDArray[np.float32]:
    """Encode many rows as `encode_row` does each, working every different cell out once.

    Args:
        columns: what each cell of a row means.
        rows: [n] rows of one text a column.
        wheres: [n] file and line of each row, for error messages.

    Returns:
        [n, features] float32 in [0, 1].

    Raises:
        DataError: naming a cell that does not fit its column.
    """
    parts = [_encode_column(column, cells, wheres) for column, cells in _by_column(columns, rows)]
    return np.concatenate(parts, axis=1)


def _by_column(
    columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> Iterator[tuple[Column, list[str]]]:
    for place, column in enumerate(columns):
        yield column, [row[place] for row in rows]


def _encode_column(
    column: Column, cells: Sequence[str], wheres: Sequence[str]
) -> NDArray[np.float32]:
    encoded: dict[str, list[float]] = {}
    for cell, where in zip(cells, wheres, strict=True):
        if cell not in encoded:
            encoded[cell] = encode_row([column], [cell], where)
    place = {cell: number for number, cell in enumerate(encoded)}
    levels = np.array(list(encoded.values()), dtype=np.float32)
    return levels.reshape(-1, len(column.features()))[[place[cell] for cell in cells]]
