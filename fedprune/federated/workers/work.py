"""What the parent hands to workers: rows, a round's work, room for the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedprune.data import Rows
from fedprune.data.rows import Scaling
from fedprune.federated.training import LocalTraining
from fedprune.federated.workers.channel import Channel
from fedprune.federated.workers.errors import WorkersUnavailableError
from fedprune.federated.workers.memory import Block, SharedArray
from fedprune.federated.workers.worker import own_surroundings
from fedprune.runs import Architecture

_FLOAT, _INT = 4, 8  # bytes
SLOTS = 2  # of a worker: it trains the next client while the parent reads the last one's weights


@dataclass(frozen=True, eq=False)
class Work:
    """What several clients do in one round.

    Attributes:
        rows: all training rows.
        architecture, weights: of the model that every client starts from.
        how: they train.
        seed, labels: name the stream of random numbers, together with the client's number.
        clients: their numbers.
        places: of each client's rows among all.
    """

    rows: Rows
    architecture: Architecture
    weights: Tensor
    how: LocalTraining
    seed: int
    labels: tuple[str | int, ...]
    clients: Sequence[int]
    places: Sequence[NDArray[np.int64]]

    @cached_property
    def starts(self) -> list[int]:
        """Where each client's places begin when all are put one after the other."""
        sizes = [len(own) for own in self.places]
        return [0, *np.cumsum(sizes).tolist()]


class SharedRows:
    """Rows that workers can map."""

    def __init__(self, rows: Rows) -> None:
        """Share rows.

        Raises:
            WorkersUnavailableError: if they are read by code of the user's own.
        """
        if type(rows) is not Rows or type(rows.scaling) is not Scaling:
            raise WorkersUnavailableError(
                f"rows of the type {type(rows).__name__} with the scaling "
                f"{type(rows.scaling).__name__} cannot be shared with other processes"
            )
        self.rows = rows
        self._arrays = [SharedArray.of(rows.stored), SharedArray.of(rows.labels)]

    def send(self, channel: Channel) -> None:
        """Tell a worker where they are."""
        stored, labels = self._arrays
        scaling = self.rows.scaling
        channel.send(
            "rows",
            [stored.descriptor, labels.descriptor],
            stored=stored.description,
            labels=labels.description,
            scaling=[scaling.divisor, scaling.mean, scaling.std],
        )

    def close(self) -> None:
        """Let go of them; a worker keeps what it has mapped until it hears of others."""
        for array in self._arrays:
            array.close()


class SharedWork:
    """A round's weights and places in shared memory, written once for all workers."""

    def __init__(self, work: Work) -> None:
        """Write them."""
        self._work, size = work, work.weights.numel()
        self._index = -(-size * _FLOAT // _INT) * _INT  # aligned
        self._block = Block.create(self._index + work.starts[-1] * _INT)
        self._block.array(np.float32, (size,))[...] = work.weights.numpy()
        places = np.concatenate(work.places) if work.places else np.empty(0, np.int64)
        self._block.array(np.int64, places.shape, self._index)[...] = places
        self._fields: dict[str, Any] = {
            "architecture": work.architecture.to_json(),
            "how": asdict(work.how),
            "seed": work.seed,
            "labels": list(work.labels),
            "surroundings": own_surroundings(),
            "bytes": self._block.size,
            "size": size,
            "index": self._index,
            "rows": work.starts[-1],
        }

    def send(self, channel: Channel) -> None:
        """Tell a worker."""
        channel.send("job", [self._block.descriptor], **self._fields)

    def send_task(self, channel: Channel, position: int, slot: int) -> None:
        """Give a worker one client to train, and the slot for its weights."""
        channel.send(
            "train",
            position=position,
            client=self._work.clients[position],
            start=self._work.starts[position],
            rows=len(self._work.places[position]),
            slot=slot,
        )

    def close(self) -> None:
        """Let go of the memory."""
        self._block.close()


class Replies:
    """Room for the weights of the clients that are being trained: a few slots a worker."""

    def __init__(self, slots: int, size: int) -> None:
        """Make room for `slots` vectors of `size` numbers."""
        self.slots, self.size = slots, size
        self._block = Block.create(slots * size * _FLOAT)

    def fits(self, slots: int, size: int) -> bool:
        """Whether there is room for so many vectors of this size."""
        return slots * size * _FLOAT <= self._block.size

    def read(self, slot: int, size: int) -> NDArray[np.float32]:
        """See the weights in a slot: [size], until the slot's worker gets another client."""
        found = self._block.array(np.float32, (size,), slot * size * _FLOAT)
        return found.astype(np.float32, copy=False)

    def send(self, channel: Channel) -> None:
        """Tell a worker."""
        channel.send("replies", [self._block.descriptor], bytes=self._block.size)

    def close(self) -> None:
        """Let go of the memory."""
        with contextlib.suppress(OSError):
            self._block.close()
