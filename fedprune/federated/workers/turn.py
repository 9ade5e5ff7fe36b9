"""One piece of work on its way through a pool of workers."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune import errors
from fedprune.errors import FedpruneError
from fedprune.federated.workers.channel import Frame
from fedprune.federated.workers.errors import ClientFailedError, WorkersUnavailableError
from fedprune.federated.workers.hand import Hand
from fedprune.federated.workers.work import Replies, SharedRows, SharedWork, Work

_FRUITLESS_ENDS = 3  # workers that may end one after the other without a client in hand

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained client.

    Attributes:
        loss: mean cross-entropy over its last epoch.
        weights: [size] float32 in shared memory: to be read before the next client is asked for.
    """

    loss: float
    weights: NDArray[np.float32]


Outcomes: TypeAlias = Iterator[tuple[int, Trained | FedpruneError]]


class Staff(Protocol):
    """What a turn needs of its pool."""

    count: int

    def rows_for(self, work: Work) -> SharedRows:
        """Share the rows of a piece of work."""
        ...

    def replies_for(self, size: int) -> Replies:
        """Make room for answers."""
        ...

    def hands(self, wanted: int) -> list[Hand]:
        """Give workers."""
        ...

    def bury(self, hand: Hand) -> str:
        """End a worker and say how it went."""
        ...


class Turn:
    """Clients that wait, are in workers' hands, or are done."""

    def __init__(self, pool: Staff, work: Work, client_seconds: float) -> None:
        """Put the work into shared memory."""
        self._pool, self._clients, self._seconds = pool, work.clients, client_seconds
        self._size = work.weights.numel()
        self._todo = deque(range(len(work.clients)))
        self._left = len(work.clients)
        self._fruitless = 0
        self._rows, self._replies = pool.rows_for(work), pool.replies_for(self._size)
        self._work = SharedWork(work)
        self._hands: list[Hand] = []

    def outcomes(self) -> Outcomes:
        """Yield (position, outcome) of every client, in the order in which they end.

        Raises:
            WorkersUnavailableError: if workers cannot do the work.
        """
        self._staff()
        while self._left:
            for hand in self._hands:  # a lost worker's clients go to whoever has nothing to do
                if hand.prepared:
                    self._feed(hand)
            heard = self._listen()
            for hand in heard:
                yield from self._hear(hand)
            now = time.monotonic()
            late = [h for h in self._hands if h.busy and now - h.since >= self._seconds]
            for hand in late:
                if hand not in heard:
                    yield from self._lose(hand, f"took longer than {self._seconds:g} s")

    def end(self) -> None:
        """Let the workers go; those that are still at it are ended."""
        for hand in self._hands:
            if hand.busy:
                self._pool.bury(hand)
        self._work.close()

    def _staff(self) -> None:
        """See that there are as many workers as there is work for."""
        while self._todo and len(self._hands) < min(self._left, self._pool.count):
            for hand in self._pool.hands(min(self._left, self._pool.count)):
                if hand not in self._hands:
                    self._begin(hand)

    def _begin(self, hand: Hand) -> None:
        try:
            hand.prepare(self._rows, self._replies, self._work)
        except OSError:  # it ended while it had nothing to do
            self._count_fruitless(self._pool.bury(hand))
        else:
            self._hands.append(hand)

    def _listen(self) -> list[Hand]:
        ends = [hand.since + self._seconds for hand in self._hands if hand.busy]
        seconds = max(0.0, min(ends) - time.monotonic()) if ends else 0.0
        ready = wait([hand.fileno() for hand in self._hands], seconds)
        return [hand for hand in self._hands if hand.fileno() in ready]

    def _hear(self, hand: Hand) -> Outcomes:
        frame = hand.hear()
        if frame is None:
            yield from self._lose(hand, "")
        elif frame.kind == "unfit":
            hand.prepared = True  # it can do other work
            raise WorkersUnavailableError(str(frame.fields["reason"]))
        else:
            if frame.kind == "prepared":
                hand.prepared = True
            else:
                position, slot = hand.held[0]
                self._left -= 1
                yield position, self._outcome(frame, position, slot)
                hand.held.popleft()  # only now may the slot be filled again
            self._feed(hand)

    def _feed(self, hand: Hand) -> None:
        """Give a worker its next client, and one more as long as there are enough for all."""
        while self._todo and (not hand.held or len(self._todo) >= len(self._hands)):
            slot = hand.free_slot()
            if slot is None:
                return
            try:
                hand.give(self._work, self._todo[0], slot)
            except OSError:  # it is gone, which is heard next
                return
            self._todo.popleft()

    def _lose(self, hand: Hand, why: str) -> Outcomes:
        """Go on without a worker: the client in its hands has failed, its others wait again."""
        self._hands.remove(hand)
        how = self._pool.bury(hand)
        held = [position for position, _ in hand.held]
        self._todo.extendleft(reversed(held[1:]))
        if held:
            self._left -= 1
            client = self._clients[held[0]]
            what = (
                f"client {client}'s training {why}"
                if why
                else (f"the worker process that trained client {client} {how}")
            )
            yield held[0], ClientFailedError(what)
        else:
            self._count_fruitless(why or how)
        self._staff()

    def _count_fruitless(self, how: str) -> None:
        self._fruitless += 1
        if self._fruitless > _FRUITLESS_ENDS:
            raise WorkersUnavailableError(
                f"{self._fruitless} worker processes ended; the last {how}"
            )

    def _outcome(self, frame: Frame, position: int, slot: int) -> Trained | FedpruneError:
        said = frame.fields
        if frame.kind == "trained":
            return Trained(float(said["loss"]), self._replies.read(slot, self._size))
        if said["expected"]:
            return _ERRORS.get(said["error"], FedpruneError)(said["text"])
        _LOG.error("a worker could not train a client:\n%s", said["trace"])
        return ClientFailedError(
            f"client {self._clients[position]} could not be trained: {said['error']}: "
            f"{said['text']}"
        )


_ERRORS: dict[str, type[FedpruneError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FedpruneError)
}
