"""Count tables: group x (dense wrong or right) x (pruned wrong or right).

A table is all that leaves a client. One record falls in exactly one cell, so a table's L1
sensitivity is 1 when a record is added or removed and 2 when one is replaced. Tables add up: the
sum over clients is the table of all their rows together.

Every analysis of this package reads counts only, so what it reports can be recomputed from the
stored tables without the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness._predict import correct_predictions

Counts: TypeAlias = NDArray[np.int64]

CELLS = 4  # dense wrong/right x pruned wrong/right


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Counts [num_groups, 2, 2] int64: group x (dense wrong, right) x (pruned wrong, right)."""

    counts: Counts

    def __post_init__(self) -> None:
        """Check and freeze the counts.

        Raises:
            FairnessError: if the shape is not [num_groups, 2, 2] or a count is no natural number.
        """
        counts = _checked_counts(self.counts)
        if counts.ndim != 3:
            raise FairnessError(
                f"a group table must have the shape [num_groups, 2, 2], got {list(counts.shape)}"
            )
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)

    @classmethod
    def of(
        cls,
        dense_model: nn.Module,
        pruned_model: nn.Module,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        groups: ArrayLike | torch.Tensor,
        *,
        num_groups: int | None = None,
        batch_size: int = 256,
    ) -> GroupTable:
        """Evaluate two classifiers on the same rows and count, per group, which were right.

        Both models run in evaluation mode and are left in the mode they came in.

        Args:
            dense_model: maps [rows, ...] to scores [rows, num_classes].
            pruned_model: the same classes, after pruning.
            inputs: [rows, ...].
            labels: [rows] class codes.
            groups: [rows] group codes, 0 to `num_groups` - 1.
            num_groups: groups in the table; the largest code plus one where it is not given.
            batch_size: rows evaluated together.

        Raises:
            FairnessError: if there are no rows, lengths differ or a code is out of range.
            ModelError: if a model returns scores that are not finite.
        """
        codes = as_codes(groups, "groups")
        check_lengths(len(inputs), labels=len(labels), groups=len(codes))
        dense = correct_predictions(dense_model, inputs, labels, batch_size, "dense_model")
        pruned = correct_predictions(pruned_model, inputs, labels, batch_size, "pruned_model")
        return cls.from_correct(dense, pruned, codes, num_groups)

    @classmethod
    def from_correct(
        cls,
        dense_correct: ArrayLike | torch.Tensor,
        pruned_correct: ArrayLike | torch.Tensor,
        groups: ArrayLike | torch.Tensor,
        num_groups: int | None = None,
    ) -> GroupTable:
        """Count rows whose predictions were already judged.

        Args:
            dense_correct: [rows] bool.
            pruned_correct: [rows] bool.
            groups: [rows] group codes, 0 to `num_groups` - 1.
            num_groups: groups in the table; the largest code plus one where it is not given.

        Raises:
            FairnessError: if there are no rows, lengths differ or a code is out of range.
        """
        codes = as_codes(groups, "groups")
        one_client = np.zeros(len(codes), dtype=np.int64)
        tables = client_tables(dense_correct, pruned_correct, codes, one_client, 1, num_groups)
        return cls(tables[0])

    @classmethod
    def from_array(cls, counts: ArrayLike) -> GroupTable:
        """Read a table back from [num_groups, 2, 2] whole numbers, nested lists included.

        Raises:
            FairnessError: if the shape is wrong or a count is no natural number.
        """
        return cls(np.asarray(counts))

    def to_array(self) -> Counts:
        """Return a fresh copy of the counts: [num_groups, 2, 2] int64."""
        return self.counts.copy()

    @property
    def num_groups(self) -> int:
        """Groups in the table, those without rows included."""
        return int(self.counts.shape[0])

    @property
    def rows(self) -> int:
        """Rows counted, over all groups."""
        return int(self.counts.sum())

    def __add__(self, other: GroupTable) -> GroupTable:
        """Add two tables of the same groups.

        Raises:
            FairnessError: if the numbers of groups differ.
        """
        if not isinstance(other, GroupTable):
            return NotImplemented
        if self.num_groups != other.num_groups:
            raise FairnessError(
                f"tables of {self.num_groups} and of {other.num_groups} groups cannot be added"
            )
        return GroupTable(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        """Tables are equal where every count is."""
        return isinstance(other, GroupTable) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        """Hash the counts."""
        return hash((self.counts.shape, self.counts.tobytes()))


def sum_tables(tables: Iterable[GroupTable]) -> GroupTable:
    """Add tables of the same groups.

    Raises:
        FairnessError: if there is no table, or the numbers of groups differ.
    """
    total: GroupTable | None = None
    for table in tables:
        total = table if total is None else total + table
    if total is None:
        raise FairnessError("at least one group table is needed, got none")
    return total


def client_tables(
    dense_correct: ArrayLike | torch.Tensor,
    pruned_correct: ArrayLike | torch.Tensor,
    groups: ArrayLike | torch.Tensor,
    client_ids: ArrayLike | torch.Tensor,
    num_clients: int | None = None,
    num_groups: int | None = None,
) -> Counts:
    """Count the rows of many clients in one pass.

    Args:
        dense_correct: [rows] bool.
        pruned_correct: [rows] bool.
        groups: [rows] group codes, 0 to `num_groups` - 1.
        client_ids: [rows] client numbers, 0 to `num_clients` - 1.
        num_clients: clients in the result; the largest number plus one where it is not given.
        num_groups: groups in the result; the largest code plus one where it is not given.

    Returns:
        [num_clients, num_groups, 2, 2] int64; a client without rows has a table of zeros.

    Raises:
        FairnessError: if there are no rows, lengths differ or a code is out of range.
    """
    codes, ids = as_codes(groups, "groups"), as_codes(client_ids, "client_ids")
    dense, pruned = _as_bool(dense_correct, "dense_correct"), _as_bool(pruned_correct, "pruned")
    check_lengths(len(dense), pruned_correct=len(pruned), groups=len(codes), client_ids=len(ids))
    group_count = check_codes(codes, num_groups, "group code", "num_groups")
    client_count = check_codes(ids, num_clients, "client number", "num_clients")
    cell = ((ids * group_count + codes) * 2 + dense) * 2 + pruned
    counts = np.bincount(cell, minlength=client_count * group_count * CELLS)
    return counts.astype(np.int64).reshape(client_count, group_count, 2, 2)


def stack_tables(
    tables: GroupTable | Sequence[GroupTable] | ArrayLike, *, noisy: bool = False
) -> Counts:
    """Bring tables into one array: [num_clients, num_groups, 2, 2] int64.

    Args:
        tables: one table, a sequence of tables (one a client), or counts whose last three axes
            are [num_groups, 2, 2].
        noisy: whether noise was added to the counts, which then may be negative.

    Raises:
        FairnessError: if there is no table, shapes differ or a count is no natural number (no
            whole number, for noisy ones).
    """
    if isinstance(tables, GroupTable):
        return tables.to_array()[None]
    if isinstance(tables, Sequence) and any(isinstance(table, GroupTable) for table in tables):
        return _stack_sequence(tables)
    counts = _checked_counts(np.asarray(tables), noisy)
    return counts.reshape(-1, *counts.shape[-3:])


def _stack_sequence(tables: Sequence[Any]) -> Counts:
    odd = next((table for table in tables if not isinstance(table, GroupTable)), None)
    if odd is not None:
        raise FairnessError(f"every table must be a GroupTable, got {type(odd).__name__}")
    sizes = sorted({table.num_groups for table in tables})
    if len(sizes) > 1:
        raise FairnessError(f"tables must have the same number of groups, got {sizes}")
    return np.stack([table.counts for table in tables])


def _checked_counts(counts: NDArray[Any], noisy: bool = False) -> Counts:
    if counts.ndim < 3 or counts.shape[-2:] != (2, 2) or 0 in counts.shape:
        raise FairnessError(
            f"count tables must end in the axes [num_groups, 2, 2] and hold at least one group, "
            f"got the shape {list(counts.shape)}"
        )
    return check_whole(counts, noisy)


def check_whole(counts: NDArray[Any], noisy: bool) -> Counts:
    """Refuse counts that are not whole or, unless they are noisy, below zero; give them as int64.

    Raises:
        FairnessError: for such counts.
    """
    if counts.dtype.kind not in "iuf":
        raise FairnessError(f"counts must be whole numbers, got the type {counts.dtype}")
    if counts.dtype.kind == "f" and not np.array_equal(counts, np.floor(counts)):
        raise FairnessError("counts must be whole numbers, got fractions or values not finite")
    if not noisy and counts.min() < 0:
        raise FairnessError(f"counts must be at least 0, got {counts.min()}")
    return counts.astype(np.int64)


def as_codes(values: ArrayLike | torch.Tensor, name: str) -> Counts:
    """Give codes as [rows] int64.

    Raises:
        FairnessError: if they have another shape or are not whole numbers.
    """
    array = _to_numpy(values)
    if array.ndim != 1:
        raise FairnessError(f"{name} must have one axis, got the shape {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise FairnessError(f"{name} must be whole-number codes, got the type {array.dtype}")
    return array.astype(np.int64)


def _as_bool(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.bool_]:
    array = _to_numpy(values)
    if array.ndim != 1 or (array.size and array.dtype.kind != "b"):
        raise FairnessError(
            f"{name} must be [rows] true or false, got the shape {list(array.shape)} "
            f"and the type {array.dtype}"
        )
    return array.astype(np.bool_)


def _to_numpy(values: ArrayLike | torch.Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


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
        FairnessError: if a code is negative or too large.
    """
    low, high = int(codes.min()), int(codes.max())
    count = high + 1 if allowed is None else allowed
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise FairnessError(f"every {what} must be from 0 to {name} - 1 = {count - 1}, got {wrong}")
    return count
