"""What every table of counts shares: rows fall into cells, tables add up and are stacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_whole

Counts: TypeAlias = NDArray[np.int64]

MOST_CELLS = 2**28  # of the tables of all clients together: 2 GiB
MOST_ROWS = 2**53  # counted together: float64, in which resamples add up, is exact up to there


@dataclass(frozen=True, eq=False)
class CountTable:
    """Counts [num_groups, *CELLS] int64 of the rows of one client, or of several together."""

    counts: Counts

    CELLS: ClassVar[tuple[int, ...]]
    WHAT: ClassVar[str]
    INSTEAD: ClassVar[str]  # where tables of the other kind go

    def __post_init__(self) -> None:
        """Check and freeze the counts.

        Raises:
            FairnessError: if the shape is another, a count is no natural number or there are more
                rows than can be added up exactly.
        """
        counts = to_numpy(self.counts, "counts")
        if counts.ndim != 1 + len(self.CELLS):
            raise FairnessError(
                f"{self.WHAT} must have the shape [{_axes(self.CELLS)}], got the shape "
                f"{list(counts.shape)}"
            )
        counts = checked_counts(type(self), counts)
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)

    @classmethod
    def from_array(cls, counts: ArrayLike) -> Self:
        """Read a table back from [num_groups, *CELLS] whole numbers, nested lists included.

        Raises:
            FairnessError: if the shape is wrong or a count is no natural number.
        """
        return cls(to_numpy(counts, "counts"))

    def to_array(self) -> Counts:
        """Return a fresh copy of the counts: [num_groups, *CELLS] int64."""
        return self.counts.copy()

    @property
    def num_groups(self) -> int:
        """Groups in the table, those without rows included."""
        return int(self.counts.shape[0])

    @property
    def rows(self) -> int:
        """Rows counted, over all groups."""
        return int(self.counts.sum())

    def __add__(self, other: Self) -> Self:
        """Add two tables of the same groups.

        Raises:
            FairnessError: if the numbers of groups differ.
        """
        if not isinstance(other, type(self)):
            return NotImplemented
        if self.num_groups != other.num_groups:
            raise FairnessError(
                f"tables of {self.num_groups} and of {other.num_groups} groups cannot be added"
            )
        return type(self)(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        """Tables are equal where every count is."""
        return isinstance(other, type(self)) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        """Hash the counts."""
        return hash((self.counts.shape, self.counts.tobytes()))


def stack(
    kind: type[CountTable],
    tables: CountTable | Sequence[CountTable] | ArrayLike,
    noisy: bool,
) -> Counts:
    """Bring tables of one kind into one array: [num_clients, num_groups, *CELLS] int64.

    Raises:
        FairnessError: if there is no table, shapes differ or a count is no natural number (no
            whole number, for noisy ones).
    """
    if isinstance(tables, CountTable):
        return _stack_sequence(kind, [tables])
    if isinstance(tables, Sequence) and any(isinstance(table, CountTable) for table in tables):
        return _stack_sequence(kind, tables)
    array = to_numpy(tables, "tables")
    if array.ndim > 2 + len(kind.CELLS):
        raise FairnessError(
            f"tables must have the axes [num_clients, {_axes(kind.CELLS)}], got the shape "
            f"{list(array.shape)}: {kind.INSTEAD}"
        )
    counts = checked_counts(kind, array, noisy)
    return counts.reshape(-1, *counts.shape[-1 - len(kind.CELLS) :])


def _stack_sequence(kind: type[CountTable], tables: Sequence[Any]) -> Counts:
    odd = next((table for table in tables if not isinstance(table, kind)), None)
    if odd is not None:
        instead = f": {kind.INSTEAD}" if isinstance(odd, CountTable) else ""
        raise FairnessError(
            f"every table must be of the type {kind.__name__}, got {type(odd).__name__}{instead}"
        )
    sizes = sorted({table.num_groups for table in tables})
    if len(sizes) > 1:
        raise FairnessError(f"tables must have the same number of groups, got {sizes}")
    return np.stack([table.counts for table in tables])


def checked_counts(kind: type[CountTable], counts: NDArray[Any], noisy: bool = False) -> Counts:
    """Give counts [..., num_groups, *CELLS] as int64.

    Raises:
        FairnessError: if they have another shape, are not whole or, unless they are noisy, below
            zero, or if they count more rows than can be added up exactly.
    """
    cells = kind.CELLS
    if counts.ndim <= len(cells) or counts.shape[-len(cells) :] != cells or 0 in counts.shape:
        raise FairnessError(
            f"{kind.WHAT} must end in the axes [{_axes(cells)}] and hold at least one group, got "
            f"the shape {list(counts.shape)}"
        )
    if counts.dtype.kind not in "iuf":
        raise FairnessError(f"counts must be whole numbers, got the type {counts.dtype}")
    if counts.dtype.kind == "f" and not np.all(np.isfinite(counts) & (counts == np.floor(counts))):
        raise FairnessError("counts must be whole numbers, got fractions or values not finite")
    if not noisy and counts.min() < 0:
        raise FairnessError(f"counts must be at least 0, got {counts.min()}")
    rows = float(np.abs(counts.astype(np.float64)).sum())
    if rows > MOST_ROWS:
        raise FairnessError(f"tables must count at most 2^53 rows together, got {rows:.3g}")
    return counts.astype(np.int64)


def count_cells(
    columns: Sequence[Counts], sizes: Sequence[int], *, cells: tuple[int, ...]
) -> Counts:
    """Count how many rows fall into each combination of codes: [*sizes, *cells] int64.

    Args:
        columns: [rows] codes each, from 0 and below their sizes.
        sizes: how many codes the first columns have: clients, groups.
        cells: how many the others have: the shape of one group's table.

    Raises:
        FairnessError: if there would be more counts than memory should hold.
    """
    shape = (*sizes, *cells)
    check_size(shape, "clients and groups")
    place = np.zeros(len(columns[0]), dtype=np.int64)
    for column, size in zip(columns, shape, strict=True):
        place = place * size + column
    return np.bincount(place, minlength=math.prod(shape)).astype(np.int64).reshape(shape)


def check_size(shape: Sequence[int], numbered: str) -> None:
    """Refuse counts [*shape] that memory should not hold.

    Raises:
        FairnessError: if there would be more, as where what is `numbered` has gaps.
    """
    if math.prod(shape) > MOST_CELLS:
        raise FairnessError(
            f"tables of {' x '.join(f'{size:,}' for size in shape)} counts are too large, at most "
            f"{MOST_CELLS:,} are made: {numbered} must be numbered from 0 without gaps"
        )


def as_codes(values: ArrayLike | torch.Tensor, name: str) -> Counts:
    """Give codes as [rows] int64.

    Raises:
        FairnessError: if they have another shape or are not whole numbers of 64 bits.
    """
    array = to_numpy(values, name)
    if array.ndim != 1:
        raise FairnessError(f"{name} must have one axis, got the shape {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise FairnessError(f"{name} must be whole-number codes, got the type {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise FairnessError(f"{name} must be codes below 2^63, got {array.max()}")
    return array.astype(np.int64)


def as_flags(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.int64]:
    """Give what is true or false as [rows] 0 or 1.

    Raises:
        FairnessError: if it has another shape or type.
    """
    array = to_numpy(values, name)
    if array.ndim != 1 or (array.size and array.dtype.kind != "b"):
        raise FairnessError(
            f"{name} must be [rows] true or false, got the shape {list(array.shape)} "
            f"and the type {array.dtype}"
        )
    return array.astype(np.int64)


def as_floats(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    """Give numbers as float64 of the same shape; None is NaN.

    Raises:
        FairnessError: if they are no numbers or lengths within them differ.
    """
    array = to_numpy(values, name)
    try:
        if array.dtype.kind in "biufO":
            return array.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise FairnessError(f"{name} must be numbers, got the type {array.dtype}")


def to_numpy(values: object, name: str) -> NDArray[Any]:
    """Bring a tensor, wherever it lies, or a list into an array.

    Raises:
        FairnessError: if lengths within it differ.
    """
    if isinstance(values, torch.Tensor):
        return np.asarray(values.detach().cpu().numpy())
    try:
        return np.asarray(values)
    except ValueError:
        raise FairnessError(
            f"{name} must fill an array, got parts of different lengths or numbers of groups"
        ) from None


def check_lengths(rows: int, **lengths: int) -> None:
    """Refuse zero examples, and columns of another length than `rows`.

    Raises:
        FairnessError: for either.
    """
    if rows == 0:
        raise FairnessError("a count table needs at least one example, got zero examples")
    for name, length in lengths.items():
        if length != rows:
            raise FairnessError(f"{name} must have one entry for each of {rows} rows, got {length}")


def check_codes(codes: Counts, allowed: int | None, what: str, name: str) -> int:
    """Give how many codes there may be, the largest plus one where `allowed` is None.

    Raises:
        FairnessError: if a code is negative or too large, or `allowed` is no whole number above 0.
    """
    low, high = int(codes.min()), int(codes.max())
    if allowed is None:
        if low < 0:
            raise FairnessError(f"every {what} must be at least 0, got {low}")
        return high + 1
    count = check_whole(allowed, name, 1)
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise FairnessError(f"every {what} must be from 0 to {name} - 1 = {count - 1}, got {wrong}")
    return count


def _axes(cells: tuple[int, ...]) -> str:
    return ", ".join(["num_groups", *map(str, cells)])
