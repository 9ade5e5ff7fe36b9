"""Criteria that read the weights alone, and the control that reads nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.scores.criteria.criterion import Batches, Criterion, Question
from fedprune.pruning.structure.members import Layer
from fedprune.randomness import SimulationRandomness


def magnitude(power: int) -> Criterion:
    """The l1 or l2 norm of the weights that produce a unit (Han et al. 2015).

    Biases, batch norms and frozen selections are left out; data play no part.
    """

    def norms(question: Question) -> Tensor:
        powers = torch.zeros(len(question.layout), dtype=torch.float64)
        for layer in question.layout.layers:
            if layer.kind in ("conv", "depthwise", "linear") and not layer.is_selection:
                _add_powers(powers, layer, question.model.get_submodule(layer.name), power)
        return powers.pow(1 / power)

    return _without_data(norms)


def _add_powers(powers: Tensor, layer: Layer, module: nn.Module, power: int) -> None:
    if not (layer.out_units >= 0).any():
        return
    weight = module.get_parameter("weight").detach().double().cpu()
    by_output = weight.transpose(0, 1) if getattr(module, "transposed", False) else weight
    sums = by_output.abs().pow(power).flatten(1).sum(1)
    units = torch.from_numpy(layer.out_units)
    powers.index_add_(0, units[units >= 0], sums[units >= 0])


def bn_scale() -> Criterion:
    """|γ| of the unit's batch norm (Liu et al. 2017, "Network Slimming").

    A unit that several norms scale (a channel of a residual stage) has the l2 norm of its γ; group
    and instance norms count like batch norms. A unit that none scales cannot be compared with the
    others: such a network is refused.
    """

    def scales(question: Question) -> Tensor:
        squares = torch.zeros(len(question.layout), dtype=torch.float64)
        scaled = torch.zeros(len(question.layout), dtype=torch.bool)
        for layer in question.layout.layers:
            gamma = getattr(question.model.get_submodule(layer.name), "weight", None)
            if layer.kind != "norm" or gamma is None:
                continue
            units = torch.from_numpy(layer.out_units)
            owned = units >= 0
            values = gamma.detach().double().cpu().square()
            squares.index_add_(0, units[owned], values[owned])
            scaled[units[owned]] = True
        _refuse_unscaled(question, scaled)
        return squares.sqrt()

    return _without_data(scales)


def _refuse_unscaled(question: Question, scaled: Tensor) -> None:
    for group in question.layout.groups:
        if not bool(scaled[group.units].all()):
            raise PruningError(
                f"bn_scale needs a batch norm with a scale behind every unit; group {group.name} "
                f"of {question.layout.model_name} has units without one"
            )


def _without_data(scores: Callable[[Question], Tensor]) -> Criterion:
    def checked(question: Question) -> Tensor:
        question.layout.check_model(question.model)
        return scores(question)

    def of_batches(question: Question, _batches: Batches) -> Tensor:
        return checked(question)

    def of_clients(question: Question, clients: Clients) -> Tensor:
        return checked(question).repeat(len(clients.ids), 1)

    return Criterion(of_batches, of_clients, sees_data=False, precisions=None)


def random() -> Criterion:
    """Independent uniform numbers, for every client its own: the control."""

    def of_batches(question: Question, _batches: Batches) -> Tensor:
        return _uniform(question.stream("random"), len(question.layout))

    def of_clients(question: Question, clients: Clients) -> Tensor:
        streams = (question.stream("random", "client", one) for one in clients.ids)
        return torch.stack([_uniform(stream, len(question.layout)) for stream in streams])

    return Criterion(of_batches, of_clients, sees_data=False, needs_seed=True, precisions=None)


def _uniform(stream: SimulationRandomness, count: int) -> Tensor:
    return torch.from_numpy(stream.generator.random(count))
