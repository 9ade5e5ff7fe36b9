"""What a criterion is, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.structure.layout import UnitLayout
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
        sees_data: Whether the examples play a part.
        needs_seed: Whether there is no score without a seed.
        is_signed: Whether scores may fall below zero: units that the loss is better without.
        precisions: In which its passes can run; None where it needs no passes.
    """

    of_batches: Callable[[Question, Batches], Tensor]
    of_clients: Callable[[Question, Clients], Tensor]
    sees_data: bool = True
    needs_seed: bool = False
    is_signed: bool = False
    precisions: tuple[str, ...] | None = ("float32", "bfloat16")


def mean_over(rows: Iterable[Tensor]) -> Tensor:
    """Mean over minibatches' scores [num_units].

    Raises:
        PruningError: if there is no minibatch.
    """
    found = list(rows)
    if not found:
        raise PruningError("this criterion needs at least one minibatch, got none")
    return torch.stack(found).mean(0)
