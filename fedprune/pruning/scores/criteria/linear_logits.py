"""The loss of linearised logits: linear in the gate where networks nearly are, exact after that.

A unit's removal changes the logits o by about −J, J = ∂o/∂z. The loss is far from linear in them,
above all where a network is sure of itself, but it is known: an example's loss becomes

    CE(o − J, y) − CE(o, y) = log Σ_k p_k·exp(J_y − J_k),     p = softmax(o).

Only the differences J_y − J_k count, so a network of C classes needs C − 1 backward passes, one
along e_y − e_k for every other class k. Classes that are taken together, with their mean
J = Σ q_k·J_k by their probabilities q, need one pass in all; to first order in every class nothing
is lost by that, since the derivative of log Σ p_k·exp(J_y − J_k) at 0 is a mean by p, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune.pruning.scores.criteria.criterion import Criterion
from fedprune.pruning.scores.criteria.of_gates import as_they_are, of_gates
from fedprune.pruning.scores.gates import Draws, Probe, Steps
from fedprune.pruning.structure.layout import UnitLayout


def linear_logits(
    alone: int | None, *, projected: bool = False, is_signed: bool = False
) -> Criterion:
    """|Mean over examples of CE(o − J, y) − CE(o, y)|: an estimate of the oracle, |L' − L|.

    A client's few examples are often better off without a unit that others need, so its size says
    more about the unit than its sign. CIFAR ResNet-20, votes of 1,000 clients of 5 images against
    the oracle on 1,000 others: Spearman 0.79 without the sign and 0.75 with it (iid), 0.77 and 0.71
    (Dirichlet 0.3); taylor 0.78 and 0.77.

    Separate gates (a `GateLayout`) are closed exactly as far as the activation that reads them
    (see `scores.secants`). CIFAR ResNet-20, all 672 gates in its blocks, three draws of 1,000
    images: Spearman with the oracle 0.971.

    Args:
        alone: The likeliest classes besides the label that have a pass each; the others are taken
            together. None for all of them.
        projected: Spend one more pass on how far the classes that are taken together differ: a
            random projection of them, with signs as in Hutchinson 1990, has their variance under q
            as its expected square, and log Σ q·exp is the mean and half the variance to second
            order.
        is_signed: Keep the sign: below 0 where the loss falls.
    """

    def passes(classes: int) -> int:
        others = max(classes - 1, 1)
        few = others if alone is None else min(alone, others)
        together = others - few
        return few + (0 if together == 0 else 2 if projected and together > 1 else 1)

    def steps(logits: Tensor, labels: Tensor, draws: Draws) -> Steps:
        logs, order = _others_first(logits, labels)
        label = torch.zeros_like(logs).scatter_(1, labels.unsqueeze(1), 1.0)
        total = logs.gather(1, labels.unsqueeze(1))  # log of Σ p·exp over the classes so far
        others = logits.shape[1] - 1
        few = others if alone is None else min(alone, others)
        for rank in range(few):
            one = order[:, rank : rank + 1]
            slopes = yield label - torch.zeros_like(logs).scatter_(1, one, 1.0)
            total = torch.logaddexp(total, logs.gather(1, one) + slopes.double())
        if others > few or others == 0:
            rest = _only(logs, order[:, few:others])
            shares = rest.softmax(1).nan_to_num(0.0)
            slopes = yield label - shares
            grown = rest.logsumexp(1, keepdim=True) + slopes.double()
            if projected and others - few > 1:
                spread = yield _projection(shares, draws(logits.shape[1]))
                total = torch.logaddexp(total, grown)
                # The part of the loss that the rest is after the removal grows by half of it.
                return total + (grown - total).exp() * spread.double().square() / 2
            total = torch.logaddexp(total, grown)
        return total

    finish = as_they_are if is_signed else _sizes
    return of_gates(lambda _layout: Probe(steps, passes), finish, is_signed=is_signed, secants=True)


def _sizes(_layout: UnitLayout, means: Tensor) -> Tensor:
    return means.abs_()


def _others_first(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [batch, classes] float64, and the classes by these, the label last."""
    logs = logits.double().log_softmax(1)
    ranked = logs.scatter(1, labels.unsqueeze(1), -torch.inf)
    return logs, ranked.argsort(dim=1, descending=True, stable=True)


def _only(logs: Tensor, classes: Tensor) -> Tensor:
    """The log-probabilities of some classes, minus infinity for the others."""
    kept = torch.full_like(logs, -torch.inf)
    return kept.scatter_(1, classes, logs.gather(1, classes))


def _projection(shares: Tensor, uniforms: Tensor) -> Tensor:
    """A direction [batch, classes] whose slope's square is the variance under q, in expectation.

    Σ_k s_k·√q_k·(J_k − J̄) for signs s, written as a direction of J: the mean is taken out.
    """
    weights = torch.where(uniforms < 0.5, 1.0, -1.0) * shares.sqrt()
    return weights - weights.sum(1, keepdim=True) * shares
