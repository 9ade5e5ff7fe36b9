"""Networks that are ready to be trained, kept so that no client pays for building one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache

import torch

from fedprune.federated.training import LocalTraining, Trainer
from fedprune.federated.trial import Traits, traits_of
from fedprune.robustness import MarginLoss
from fedprune.runs import Architecture

_KEPT_ARCHITECTURES = 4


class Trainers:
    """Trainers that nobody uses at the moment; any thread may take one and bring it back."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._idle: OrderedDict[Architecture, list[Trainer]] = OrderedDict()

    def take(self, architecture: Architecture) -> Trainer:
        """Give a trainer of one's own; its weights are whatever they are."""
        with self._lock:
            idle = self._idle.get(architecture)
            if idle:
                return idle.pop()
        return Trainer(architecture.build()[0], traits(architecture))

    def bring_back(self, architecture: Architecture, trainer: Trainer) -> None:
        """Put a trainer back for the next client; of those long unused some are dropped."""
        with self._lock:
            self._idle.setdefault(architecture, []).append(trainer)
            self._idle.move_to_end(architecture)
            while len(self._idle) > _KEPT_ARCHITECTURES:
                self._idle.popitem(last=False)


@lru_cache(maxsize=16)
def traits(architecture: Architecture) -> Traits:
    """Find out what training a network takes, once a process."""
    return traits_of(architecture.build()[0], architecture.input_shape)


def margins(architecture: Architecture, how: LocalTraining) -> MarginLoss | None:
    """The loss that a round wants instead of cross-entropy, made once a process.

    The first call traces the network, which must not happen beside other threads' passes.
    """
    if not how.margin_radius > 0:
        return None
    return _margins(architecture, how.margin_radius, tuple(how.input_std))


@lru_cache(maxsize=16)
def _margins(architecture: Architecture, radius: float, std: tuple[float, ...]) -> MarginLoss:
    example = torch.zeros(1, *architecture.input_shape)
    return MarginLoss(architecture.build()[0], example, radius, input_std=std or None)
