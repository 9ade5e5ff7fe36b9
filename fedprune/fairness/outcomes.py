"""Count tables of binary tasks: group x true label x dense prediction x pruned prediction.

They hold what equalised odds and demographic parity need; the plain table, which of the models
were right, is a sum of their cells, so a client that sends one need not send the other. A record
falls in one cell: the sensitivity is that of a plain table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness._predict import predict_classes
from fedprune.fairness.counting import (
    Counts,
    CountTable,
    as_codes,
    check_codes,
    check_lengths,
    checked_counts,
    count_cells,
    stack,
    to_numpy,
)
from fedprune.fairness.tables import GroupTable


def _selection(counts: Counts) -> Counts:
    return np.asarray(counts.sum(axis=-3))


def _true_positive(counts: Counts) -> Counts:
    return counts[..., 1, :, :]


def _false_positive(counts: Counts) -> Counts:
    return counts[..., 0, :, :]


def _accuracy(counts: Counts) -> Counts:
    # Where the label is 1, prediction 1 is right; where it is 0, prediction 0 is.
    return counts[..., 1, :, :] + counts[..., 0, ::-1, ::-1]


# How a rate's table [..., 2, 2] follows from [..., 2, 2, 2] outcomes, and the cells it sums.
RATES: dict[str, tuple[Callable[[Counts], Counts], int]] = {
    "accuracy": (_accuracy, 2),
    "selection": (_selection, 2),
    "true positive": (_true_positive, 1),
    "false positive": (_false_positive, 1),
}


@dataclass(frozen=True, eq=False)
class OutcomeTable(CountTable):
    """Counts [num_groups, 2, 2, 2] int64: group x label x dense x pruned prediction."""

    CELLS: ClassVar[tuple[int, ...]] = (2, 2, 2)
    WHAT: ClassVar[str] = "an outcome table"
    INSTEAD: ClassVar[str] = "tables of what was right go to summarize"

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
    ) -> OutcomeTable:
        """Evaluate two classifiers of two classes on the same rows and count their predictions.

        Arguments and errors are those of `GroupTable.of`.

        Raises:
            FairnessError: if a model has other than two classes or returns no row for every input,
                there are no rows, lengths differ or a code is out of range.
            ModelError: if a model returns scores that are not finite.
        """
        check_lengths(len(inputs), labels=len(labels))
        dense, pruned = (
            predict_classes(model, inputs, labels, batch_size, name, num_classes=2)
            for model, name in ((dense_model, "dense_model"), (pruned_model, "pruned_model"))
        )
        return cls.from_predictions(labels, dense, pruned, groups, num_groups)

    @classmethod
    def from_predictions(
        cls,
        labels: ArrayLike | torch.Tensor,
        dense: ArrayLike | torch.Tensor,
        pruned: ArrayLike | torch.Tensor,
        groups: ArrayLike | torch.Tensor,
        num_groups: int | None = None,
    ) -> OutcomeTable:
        """Count rows by their label and both predictions, [rows] of 0 or 1 each.

        Raises:
            FairnessError: if there are no rows, lengths differ or a code is out of range.
        """
        one_client = np.zeros(len(as_codes(labels, "labels")), dtype=np.int64)
        tables = client_outcome_tables(labels, dense, pruned, groups, one_client, 1, num_groups)
        return cls(tables[0])

    def group_table(self) -> GroupTable:
        """Give the plain table of the same rows: group x dense right x pruned right."""
        return GroupTable(_accuracy(self.counts))


def client_outcome_tables(
    labels: ArrayLike | torch.Tensor,
    dense: ArrayLike | torch.Tensor,
    pruned: ArrayLike | torch.Tensor,
    groups: ArrayLike | torch.Tensor,
    client_ids: ArrayLike | torch.Tensor,
    num_clients: int | None = None,
    num_groups: int | None = None,
) -> Counts:
    """Count the rows of many clients in one pass.

    Args:
        labels: [rows] 0 or 1.
        dense: [rows] what the dense model predicts, 0 or 1.
        pruned: [rows] what the pruned model predicts, 0 or 1.
        groups: [rows] group codes, 0 to `num_groups` - 1.
        client_ids: [rows] client numbers, 0 to `num_clients` - 1.
        num_clients: clients in the result; the largest number plus one where it is not given.
        num_groups: groups in the result; the largest code plus one where it is not given.

    Returns:
        [num_clients, num_groups, 2, 2, 2] int64; a client without rows has a table of zeros.

    Raises:
        FairnessError: if there are no rows, lengths differ or a code is out of range.
    """
    named = {"labels": labels, "dense": dense, "pruned": pruned, "groups": groups}
    columns = {name: as_codes(values, name) for name, values in named.items()}
    ids = as_codes(client_ids, "client_ids")
    lengths = {name: len(column) for name, column in columns.items()}
    check_lengths(len(ids), **lengths)
    for name in ("labels", "dense", "pruned"):
        check_codes(columns[name], 2, f"code of {name} of a binary task", "classes")
    group_count = check_codes(columns["groups"], num_groups, "group code", "num_groups")
    client_count = check_codes(ids, num_clients, "client number", "num_clients")
    codes = (ids, columns["groups"], columns["labels"], columns["dense"], columns["pruned"])
    return count_cells(codes, (client_count, group_count), cells=OutcomeTable.CELLS)


def stack_outcomes(
    tables: OutcomeTable | Sequence[OutcomeTable] | ArrayLike, *, noisy: bool = False
) -> Counts:
    """Bring tables into one array: [num_clients, num_groups, 2, 2, 2] int64.

    Args:
        tables: one table, a sequence of tables (one a client), or counts [num_groups, 2, 2, 2]
            or [num_clients, num_groups, 2, 2, 2].
        noisy: whether noise was added to the counts, which then may be negative.

    Raises:
        FairnessError: if there is no table, shapes differ or a count is no natural number (no
            whole number, for noisy ones).
    """
    return stack(OutcomeTable, tables, noisy)


def rate_tables(counts: ArrayLike, rate: str) -> Counts:
    """Read a rate's plain tables off outcome tables: "right" becomes "predicted 1".

    Args:
        counts: [..., num_groups, 2, 2, 2], exact or noisy.
        rate: a key of `RATES`; "true positive" keeps rows of label 1, "false positive" of 0.

    Returns:
        [..., num_groups, 2, 2] int64, whose accuracies are the dense and pruned rates.

    Raises:
        FairnessError: if the rate is unknown or the shape is not that of outcomes.
    """
    if rate not in RATES:
        raise FairnessError(f"rate must be one of {', '.join(RATES)}, got {rate!r}")
    found = checked_counts(OutcomeTable, to_numpy(counts, "counts"), noisy=True)
    return np.ascontiguousarray(RATES[rate][0](found))
