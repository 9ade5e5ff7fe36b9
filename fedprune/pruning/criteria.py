"""The criteria: how important each unit is. `CRITERIA` finds them by name.

A criterion is two functions, one for minibatches and one for clients. Both get a `Question` and
answer in float64; `scoring` checks and rounds what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning.clients import Clients
from fedprune.pruning.gates import GateGradients
from fedprune.pruning.layout import UnitLayout
from fedprune.pruning.members import Layer
from fedprune.randomness import SimulationRandomness

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Question:
    """What every criterion is asked about: a model, its units, and a seed for those that draw.

    `precision` is that of the passes, for those that need any.
    """

    model: nn.Module
    layout: UnitLayout
    seed: int | None
    precision: str = "float32"

    def stream(self, *labels: str | int) -> SimulationRandomness:
        """The seeded stream that the labels name.

        Raises:
            PruningError: if there is no seed.
        """
        if self.seed is None:
            raise PruningError("this criterion draws at random and needs a seed, got None")
        return SimulationRandomness(self.seed, "scores", *labels)


@dataclass(frozen=True)
class Criterion:
    """One way to score units.

    Attributes:
        of_batches: From minibatches (inputs, labels) to [num_units].
        of_clients: From clients to [num_clients, num_units].
    """

    of_batches: Callable[[Question, Batches], Tensor]
    of_clients: Callable[[Question, Clients], Tensor]


def taylor() -> Criterion:
    """Mean over minibatches of (∂L/∂z)², z a gate of value 1 after the unit's batch norm.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", first order. L is
    the minibatch's mean cross-entropy; a client's examples are one minibatch.
    """

    def of_batches(question: Question, batches: Batches) -> Tensor:
        gates = GateGradients(question.model, question.layout, question.precision)
        rows = [_squared_means(gates, Clients.of_one(*batch))[0] for batch in batches]
        if not rows:
            raise PruningError("taylor needs at least one minibatch, got none")
        return torch.stack(rows).mean(0)

    def of_clients(question: Question, clients: Clients) -> Tensor:
        gates = GateGradients(question.model, question.layout, question.precision)
        return _squared_means(gates, clients)

    return Criterion(of_batches, of_clients)


def _squared_means(gates: GateGradients, clients: Clients) -> Tensor:
    sums = clients.sum_rows(gates)
    return sums.div_(clients.counts().to(sums.device).unsqueeze(1)).square_()


def magnitude(power: int) -> Criterion:
    """The l1 or l2 norm of the weights that produce a unit (Han et al. 2015).

    Biases, batch norms and frozen selections are left out; data play no part.
    """

    def of_batches(question: Question, _batches: Batches) -> Tensor:
        return _norms(question, power)

    def of_clients(question: Question, clients: Clients) -> Tensor:
        return _norms(question, power).repeat(len(clients.ids), 1)

    return Criterion(of_batches, of_clients)


def _norms(question: Question, power: int) -> Tensor:
    question.layout.check_model(question.model)
    powers = torch.zeros(len(question.layout), dtype=torch.float64)
    for layer in question.layout.layers:
        if layer.kind in ("conv", "depthwise", "linear") and not layer.is_selection:
            _add_powers(powers, layer, question.model.get_submodule(layer.name), power)
    return powers.pow(1 / power)


def _add_powers(powers: Tensor, layer: Layer, module: nn.Module, power: int) -> None:
    weight = module.get_parameter("weight").detach().double().cpu()
    by_output = weight.transpose(0, 1) if getattr(module, "transposed", False) else weight
    sums = by_output.abs().pow(power).flatten(1).sum(1)
    units = torch.from_numpy(layer.out_units)
    powers.index_add_(0, units[units >= 0], sums[units >= 0])


def random() -> Criterion:
    """Independent uniform numbers, for every client its own: the control."""

    def of_batches(question: Question, _batches: Batches) -> Tensor:
        return _uniform(question.stream("random"), len(question.layout))

    def of_clients(question: Question, clients: Clients) -> Tensor:
        streams = (question.stream("random", "client", one) for one in clients.ids)
        return torch.stack([_uniform(stream, len(question.layout)) for stream in streams])

    return Criterion(of_batches, of_clients)


def _uniform(stream: SimulationRandomness, count: int) -> Tensor:
    return torch.from_numpy(stream.generator.random(count))


CRITERIA: dict[str, Criterion] = {
    "random": random(),
    "magnitude": magnitude(2),
    "magnitude_l1": magnitude(1),
    "magnitude_l2": magnitude(2),
    "taylor": taylor(),
}
