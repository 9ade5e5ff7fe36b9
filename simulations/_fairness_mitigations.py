"""Pruning by votes of clients, and what helps groups: scores and weights that know of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _fairness_federation import Counts, Problem, average_round, right
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import fairness, pruning

Floats = NDArray[np.float64]


def plain_scores(one: Problem) -> Tensor:
    """Scores of every client on all its rows: [clients with rows, units]."""
    ids = torch.from_numpy(one.train.clients)
    return pruning.score_clients(one.dense, one.layout, one.train.inputs, one.train.labels, ids)


@dataclass(frozen=True)
class Importances:
    """Importances of every client in each of its groups, `values` [cells, units], and whose."""

    values: Floats
    holders: Counts

    @classmethod
    def of(cls, one: Problem, grouping: str) -> Importances:
        """Score every client's rows of every group as if they were a client of their own."""
        count = len(one.names[grouping])
        cells = one.train.clients * count + one.train.groups[grouping]
        ids = torch.from_numpy(cells)
        found = pruning.score_clients(
            one.dense, one.layout, one.train.inputs, one.train.labels, ids
        )
        return cls(found.double().numpy(), np.unique(cells) // count)

    def scores(self, combine: Callable[[Floats], Floats]) -> Tensor:
        """Let every client combine its own groups: [clients with rows, units]."""
        clients = np.unique(self.holders)
        rows = [combine(self.values[self.holders == client]) for client in clients]
        return torch.from_numpy(np.stack(rows)).float()


COMBINE: dict[str, Callable[[Floats], Floats]] = {
    "worst group": fairness.worst_group,
    "largest share": fairness.importance_share,
    "mean share": lambda values: fairness.importance_share(values, combine="mean"),
}
# A mitigation: scores, and whether fine-tuning has dual variables.
MITIGATIONS = {
    "none": ("plain", False),
    "worst-group scores": ("worst group", False),
    "largest importance share": ("largest share", False),
    "mean importance share": ("mean share", False),
    "dual variables": ("plain", True),
    "largest share and duals": ("largest share", True),
}


def prune(one: Problem, scores: Tensor, keep: float) -> nn.Module:
    """Let every client vote for its own mask, keep the units with most votes, remove the rest.

    Every layer keeps at least half of its fair share, lest one channel carries a whole network.
    """
    votes = pruning.select_many(scores, one.layout, keep, keep / 2).float().mean(dim=0)
    # Votes tie; the mean rank of a unit over clients decides between equals.
    ranks = scores.argsort(dim=1).argsort(dim=1).float().mean(dim=0) / scores.shape[1]
    mask = pruning.select(
        votes + ranks / (len(scores) + 1), one.layout, keep_units=keep, floor=keep / 2
    )
    return pruning.shrink(one.dense, one.layout, mask)


def fine_tune(one: Problem, pruned: nn.Module, grouping: str, duals: bool) -> nn.Module:
    """Average rounds; with duals, groups that lose too much on held-out rows weigh more."""
    model = copy.deepcopy(pruned)
    codes, settings = one.train.groups[grouping], one.settings
    rows = np.bincount(codes, minlength=len(one.names[grouping]))
    variables = np.zeros(len(rows))
    dense_right = right(one.dense, one.held_out)
    for number in range(settings.rounds):
        weights = None
        if duals:
            excess = excess_losses(dense_right, right(model, one.held_out), one, grouping)
            variables = fairness.dual_step(
                variables, excess, tolerance=settings.tolerance, step=settings.dual_step, largest=1
            )
            by_group = fairness.group_weights(variables, rows)
            weights = torch.from_numpy(by_group[codes]).float()
        rate = settings.learning_rate * (1 - number / settings.rounds)
        average_round(model, one, weights, rate, number)
    return model


def excess_losses(
    dense_right: NDArray[np.bool_], pruned_right: NDArray[np.bool_], one: Problem, grouping: str
) -> Floats:
    """psi_g on held-out rows; NaN for groups under 30 rows."""
    codes = one.held_out.groups[grouping]
    count = len(one.names[grouping])
    table = fairness.GroupTable.from_correct(dense_right, pruned_right, codes, count).counts
    rows = table.sum(axis=(1, 2))
    lost = table[:, 1].sum(axis=1) - table[:, :, 1].sum(axis=1)
    overall = lost.sum() / rows.sum()
    return np.where(rows >= 30, lost / np.maximum(rows, 1) - overall, np.nan)
