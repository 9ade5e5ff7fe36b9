"""Scores in which every group of a client's rows counts, not only its most frequent one.

The mean over a client's rows is mostly the majority's. With `prune.group_scores` each group of the
rows that a client has (`data.groups`) is scored by itself, in the same pass, and the client makes
one score of them: the worst group's (a unit is worth what it is worth to whom it matters most), or
the largest share of any group's importance, which groups of larger losses do not outweigh
(`fairness.worst_group`, `fairness.importance_share`). What leaves the client, and what that costs
of its budget, is as without groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune import fairness
from fedprune.config import MAY_BE_NEGATIVE
from fedprune.data import Schema
from fedprune.errors import FederationError
from fedprune.federated.messages import Question

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def _largest_share(importance: Floats) -> Floats:
    """Shares of importance, or nothing where no unit matters to any group."""
    if not importance.any():
        return np.zeros(importance.shape[1])
    return fairness.importance_share(importance)


_COMBINED: dict[str, Callable[[Floats], Floats]] = {
    "worst": fairness.worst_group,
    "share": _largest_share,
}


@dataclass(frozen=True)
class GroupScores:
    """What a question asks of clients: how groups' scores become one, and which groups.

    Attributes:
        how: "worst" or "share".
        groups: an attribute of the rows, or a crossing of several.
    """

    how: str
    groups: str

    @staticmethod
    def asked(question: Question) -> GroupScores | None:
        """Read a question; None where it does not speak of groups.

        Raises:
            FederationError: if it names another way than these.
        """
        if "group_scores" not in question.settings:
            return None
        how = question.text("group_scores")
        if how not in _COMBINED:
            raise FederationError(
                f"the server asks for group_scores {how!r}, known are {', '.join(_COMBINED)}"
            )
        return GroupScores(how, question.text("groups"))

    @staticmethod
    def check(question: Question, schema: Schema, criterion: str) -> None:
        """Refuse what no client could score by groups, whatever its rows.

        Raises:
            FederationError: if the question names another way, or scores that may be negative.
            DataError: if the data have no such groups.
        """
        asked = GroupScores.asked(question)
        if asked is None:
            return
        if criterion in MAY_BE_NEGATIVE:
            raise FederationError(
                f"the server asks for group_scores by {criterion!r}, which may be negative"
            )
        schema.group_names(asked.groups)

    def ids(self, clients: Codes, codes: Codes, num_groups: int) -> Codes:
        """One number for each client's group, from the rows' clients and groups: [rows]."""
        return clients * num_groups + codes

    def combine(self, scores: Tensor, ids: Codes, num_groups: int) -> Tensor:
        """Make one score of a client's groups'.

        Args:
            scores: [pairs, num_units], of the distinct `ids` in rising order.
            ids: [rows], as `ids` gives them.
            num_groups: that there are.

        Returns:
            [clients, num_units] float32, clients in rising order.
        """
        clients = np.unique(ids) // num_groups
        ends = np.flatnonzero(np.diff(clients)) + 1
        parts: Sequence[Floats] = np.split(scores.double().numpy(), ends)
        return torch.from_numpy(np.stack([_COMBINED[self.how](part) for part in parts])).float()
