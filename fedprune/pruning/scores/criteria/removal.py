"""The oracle as a criterion, for networks small enough to remove every unit in turn."""

from __future__ import annotations

from torch import Tensor

from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.scores.criteria.criterion import Batches, Criterion, Question, mean_over
from fedprune.pruning.scores.exact import loss_changes


def oracle() -> Criterion:
    """|L(unit removed) − L| exactly, L a minibatch's mean loss: the yardstick of every other.

    Molchanov et al. 2019. It costs a pass for every unit, in each of which all clients' examples
    go together. `pruning.oracle` gives the change with its sign, and can be interrupted.
    """

    def changes(question: Question, clients: Clients) -> Tensor:
        return loss_changes(question.model, question.layout, clients).abs_()

    def of_batches(question: Question, batches: Batches) -> Tensor:
        return mean_over(changes(question, Clients.of_one(*batch))[0] for batch in batches)

    return Criterion(of_batches, changes, precisions=("float32",))
