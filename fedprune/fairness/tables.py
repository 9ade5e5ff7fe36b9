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
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness._predict import correct_predictions
from fedprune.fairness.counting import (
    Counts,
    CountTable,
    as_codes,
    as_flags,
    check_codes,
    check_lengths,
    count_cells,
    stack,
)

CELLS = 4  # dense wrong/right x pruned wrong/right


@dataclass(frozen=True, eq=False)
class GroupTable(CountTable):
    """Counts [num_groups, 2, 2] int64: group x (dense wrong, right) x (pruned wrong, right)."""

    CELLS: ClassVar[tuple[int, ...]] = (2, 2)
    WHAT: ClassVar[str] = "a group table"
    INSTEAD: ClassVar[str] = "outcomes go to summarize_outcomes"

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
            FairnessError: if there are no rows, lengths differ, a code is out of range, the models
                tell different numbers of classes apart or one returns no row for every input.
            ModelError: if a model returns scores that are not finite.
        """
        codes = as_codes(groups, "groups")
        check_lengths(len(inputs), labels=len(labels), groups=len(codes))
        dense, pruned = correct_predictions(dense_model, pruned_model, inputs, labels, batch_size)
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
    dense = as_flags(dense_correct, "dense_correct")
    pruned = as_flags(pruned_correct, "pruned_correct")
    check_lengths(len(dense), pruned_correct=len(pruned), groups=len(codes), client_ids=len(ids))
    group_count = check_codes(codes, num_groups, "group code", "num_groups")
    client_count = check_codes(ids, num_clients, "client number", "num_clients")
    columns, sizes = (ids, codes, dense, pruned), (client_count, group_count)
    return count_cells(columns, sizes, cells=GroupTable.CELLS)


def stack_tables(
    tables: GroupTable | Sequence[GroupTable] | ArrayLike, *, noisy: bool = False
) -> Counts:
    """Bring tables into one array: [num_clients, num_groups, 2, 2] int64.

    Args:
        tables: one table, a sequence of tables (one a client), or counts [num_groups, 2, 2] or
            [num_clients, num_groups, 2, 2].
        noisy: whether noise was added to the counts, which then may be negative.

    Raises:
        FairnessError: if there is no table, shapes differ or a count is no natural number (no
            whole number, for noisy ones).
    """
    return stack(GroupTable, tables, noisy)
