"""A pool of worker processes that train clients; who dies or hangs takes one client with it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from types import TracebackType

from fedprune.errors import FedpruneError
from fedprune.federated.workers.channel import Frame, pair
from fedprune.federated.workers.errors import WorkersUnavailableError
from fedprune.federated.workers.hand import Hand
from fedprune.federated.workers.turn import Trained, Turn
from fedprune.federated.workers.work import SLOTS, Replies, SharedRows, Work

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fedprune.federated.workers.nursery import main; main(int(sys.argv[2]))"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_NURSERY_SECONDS = 60.0  # for a fork, once the nursery is there


class Pool:
    """Worker processes of this process; they end with it, however it ends.

    Attributes:
        count: how many workers there are at most.
        busy: whether it is at work; it does one piece of work at a time.
    """

    def __init__(self, count: int) -> None:
        """Begin to start; workers can be used when `ready` says so."""
        self.count = count
        self._channel, there = pair()
        variables = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        with there:
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                env=variables,
                pass_fds=[there.fileno()],
                process_group=0,  # Ctrl-C at the terminal is the parent's business
            )
        self.busy = self._started = False
        self._hands: dict[int, Hand] = {}
        self._rows: SharedRows | None = None
        self._replies: Replies | None = None

    def __enter__(self) -> Pool:
        """Use the pool in a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it with the block."""
        self.close()

    def ready(self, wait_seconds: float = 0.0) -> bool:
        """Whether workers can be had by now.

        Raises:
            WorkersUnavailableError: if they could not be started.
        """
        if self._started:
            return True
        if not wait([self._channel.fileno()], wait_seconds):
            return False
        if self._channel.receive() is None:
            raise WorkersUnavailableError("worker processes cannot be started")
        self._channel.patience(_NURSERY_SECONDS)
        self._started = True
        return True

    def pids(self) -> list[int]:
        """The process ids of the workers that there are."""
        return [hand.pid for hand in self._hands.values()]

    def train(
        self, work: Work, client_seconds: float
    ) -> Iterator[tuple[int, Trained | FedpruneError]]:
        """Train all clients of a piece of work; yield (position, outcome) as they are done.

        What is left of the iteration when it is given up, by an interrupt for example, is given
        up in the workers too.

        Raises:
            WorkersUnavailableError: if workers cannot do this work; clients that were not yielded
                are untrained.
        """
        turn = Turn(self, work, client_seconds)
        self.busy = True
        try:
            yield from turn.outcomes()
        finally:
            turn.end()
            self.busy = False

    def close(self) -> None:
        """End all processes and free the shared memory."""
        for hand in list(self._hands.values()):
            hand.kill()
        self._hands.clear()
        self._channel.close()  # the nursery ends with it
        try:
            self._nursery.wait(1.0)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        for shared in (self._rows, self._replies):
            if shared is not None:
                shared.close()
        self._rows = self._replies = None

    def rows_for(self, work: Work) -> SharedRows:
        """Share the rows of a piece of work, once for as long as they stay the same."""
        if self._rows is None or self._rows.rows is not work.rows:
            found = SharedRows(work.rows)
            if self._rows is not None:
                self._rows.close()
            self._rows = found
        return self._rows

    def replies_for(self, size: int) -> Replies:
        """Make room for the answers, anew only where there is too little."""
        slots = SLOTS * self.count
        if self._replies is None or not self._replies.fits(slots, size):
            if self._replies is not None:
                self._replies.close()
            self._replies = Replies(slots, size)
        return self._replies

    def hands(self, wanted: int) -> list[Hand]:
        """Give up to `wanted` workers, forking those that are missing.

        Raises:
            WorkersUnavailableError: if no more can be had.
        """
        for number in range(min(wanted, self.count)):
            if number not in self._hands:
                self._hands[number] = self._fork(number)
        return [self._hands[number] for number in range(min(wanted, self.count))]

    def bury(self, hand: Hand) -> str:
        """Make sure that a worker is gone; say how it went."""
        self._hands.pop(hand.number, None)
        hand.kill()
        try:
            self._channel.send("end", pid=hand.pid)
            frame = self._channel.receive()
        except OSError:
            frame = None
        return "ended" if frame is None else str(frame.fields["how"])

    def _fork(self, number: int) -> Hand:
        channel, there = pair()
        frame: Frame | None = None
        with there, contextlib.suppress(OSError):
            self._channel.send("fork", [there.fileno()])
            frame = self._channel.receive()
        if frame is None:
            channel.close()
            raise WorkersUnavailableError("the process that worker processes come from is gone")
        return Hand(number, int(frame.fields["pid"]), channel)
