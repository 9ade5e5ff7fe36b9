"""Criteria from derivatives of the loss in the gates, of first and second order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.pruning.scores.criteria.criterion import Criterion
from fedprune.pruning.scores.criteria.of_gates import as_they_are, of_gates
from fedprune.pruning.scores.gates import LOSS_GRADIENT, Draws, Probe, Steps, loss_gradient
from fedprune.pruning.scores.separate_gates import GateLayout, separate_gates
from fedprune.pruning.structure.layout import UnitLayout

Square = Callable[[Tensor], Tensor]


def taylor() -> Criterion:
    """Mean over minibatches of (∂L/∂z)², z a gate of value 1 after the unit's batch norm.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", first order. L is
    the minibatch's mean cross-entropy; a client's examples are one minibatch. A unit coupled over
    several layers has one gate: its layers' slopes are summed first and squared after.
    """
    return of_gates(lambda _layout: LOSS_GRADIENT, lambda _layout, means: means.square_())


def taylor_separate() -> Criterion:
    """`taylor` with a gate of its own for every layer of a unit: slopes are squared, then summed.

    As if a coupled unit's layers were removed one at a time; slopes of opposite sign then count.
    """

    def finish(layout: UnitLayout, means: Tensor) -> Tensor:
        owners = _all_gates(layout).unit_of.to(means.device)
        scores = means.new_zeros(len(means), len(layout))
        return scores.index_add_(1, owners, means.square_())

    return of_gates(lambda _layout: LOSS_GRADIENT, finish, gated=_all_gates)


def _all_gates(layout: UnitLayout) -> GateLayout:
    return separate_gates(layout, selections=True)


def fisher() -> Criterion:
    """Mean over examples of (∂L_i/∂z)², each example by itself.

    The diagonal of the empirical Fisher matrix of the gates (Theis et al. 2018, "Faster gaze
    prediction with dense networks and Fisher pruning"). Unlike `taylor`, which squares the mean
    over a minibatch, slopes of opposite sign do not cancel; unlike the h of `taylor_second`, labels
    are the data's and not the model's own, so where a model fits its data this is no curvature.
    """

    def steps(logits: Tensor, labels: Tensor, _draws: Draws) -> Steps:
        slopes = yield loss_gradient(logits, labels)
        return slopes.double().square_()

    return of_gates(lambda _layout: Probe(steps, LOSS_GRADIENT.passes), as_they_are)


def taylor_second() -> Criterion:
    """|−g + ½h|: what a parabola in the unit's own gate says of its removal.

    g = mean ∂L/∂z and h = mean (∂ log p(ŷ)/∂z)² with labels ŷ drawn from the model's own softmax:
    an unbiased estimate of the Gauss-Newton curvature (Martens 2020, "New insights and perspectives
    on the natural gradient method"), which the data's labels do not give. LeCun et al. 1990;
    Molchanov et al. 2019, second order. Two backward passes.
    """
    return of_gates(lambda _layout: _second_order(torch.square), _parabola)


def taylor_second_full() -> Criterion:
    """|−g + ½h| with the curvature between all gates of the unit's group.

    h_m = Σ_n E[j_m·j_n] over the group's units n, j = ∂ log p(ŷ)/∂z: row sums of the Gauss-Newton
    matrix, as Molchanov et al. 2019 multiply the Hessian's rows with all weights of a layer, which
    are all gates of value 1 here. The same two passes.
    """

    def probe_of(layout: UnitLayout) -> Probe:
        def times_the_groups_sum(slopes: Tensor) -> Tensor:
            owners = layout.group_of.to(slopes.device)
            sums = slopes.new_zeros(len(slopes), len(layout.groups)).index_add_(1, owners, slopes)
            return slopes * sums[:, owners]

        return _second_order(times_the_groups_sum)

    return of_gates(probe_of, _parabola)


def _second_order(square: Square) -> Probe:
    def steps(logits: Tensor, labels: Tensor, draws: Draws) -> Steps:
        slopes = yield loss_gradient(logits, labels)
        of_drawn = yield loss_gradient(logits, drawn_labels(logits, draws(1).squeeze(1)))
        return torch.cat([slopes.double(), square(of_drawn.double())], 1)

    return Probe(steps, lambda _classes: 2, columns=2)


def _parabola(layout: UnitLayout, means: Tensor) -> Tensor:
    slope, curvature = means[:, : len(layout)], means[:, len(layout) :]
    return (curvature / 2 - slope).abs_()


def drawn_labels(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Labels [batch] of the model's own softmax, one uniform number in [0, 1) each."""
    below = logits.double().softmax(1).cumsum(1)
    return (below <= uniforms.unsqueeze(1)).sum(1).clamp_(max=logits.shape[1] - 1)
