"""Is a column of groups one that fairness can be measured by?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_names
from fedprune.fairness.counting import as_codes, check_codes, check_lengths


def check_groups(
    codes: ArrayLike | torch.Tensor | None,
    names: Sequence[str],
    client_ids: ArrayLike | torch.Tensor | None = None,
    *,
    group: str = "group",
) -> None:
    """Refuse a column of groups that cannot answer what pruning did to whom.

    Args:
        codes: [rows] index into `names`; None where the rows have no such column.
        names: what the groups are called.
        client_ids: [rows] who holds each row; not checked where it is not given.
        group: what the column is called.

    Raises:
        FairnessError: if the column is missing, has no rows, holds a code without a name, is
            constant, names are not different texts, a client number is negative, or if one client
            holds all rows: its figures would be that client's own.
    """
    if codes is None:
        raise FairnessError(f"the rows have no column {group!r} to measure fairness by")
    check_names(names)
    column = as_codes(codes, f"codes of {group}")
    check_lengths(len(column))
    check_codes(column, len(names), f"code of {group}", "names")
    present = np.unique(column)
    if len(present) < 2:
        only = names[int(present[0])]
        raise FairnessError(f"column {group!r} is constant: every row is {only!r}")
    if client_ids is not None:
        clients = as_codes(client_ids, "client_ids")
        check_lengths(len(column), client_ids=len(clients))
        check_codes(clients, None, "client number", "client_ids")
        if len(np.unique(clients)) < 2:
            raise FairnessError(
                f"all rows with a {group!r} are of one client: figures would be its own"
            )
