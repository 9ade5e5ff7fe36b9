"""One worker, as the parent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field

from fedprune.federated.workers.channel import Channel, Frame
from fedprune.federated.workers.work import SLOTS, Replies, SharedRows, SharedWork

_MESSAGE_SECONDS = 60.0  # for a small message to be taken; a worker that waits takes it at once


@dataclass(eq=False)
class Hand:
    """A worker process and what it holds.

    Attributes:
        number: of its slots: SLOTS * number, SLOTS * number + 1, ...
        held: positions of the clients that it was given, the one in training first, and slots.
        since: when it began with what it does now, on the monotonic clock.
        prepared: whether it has said that it can do the present work.
    """

    number: int
    pid: int
    channel: Channel
    held: deque[tuple[int, int]] = field(default_factory=deque)
    since: float = 0.0
    prepared: bool = False
    _rows: SharedRows | None = None
    _replies: Replies | None = None

    def __post_init__(self) -> None:
        """Let no message hang the parent."""
        self.channel.patience(_MESSAGE_SECONDS)

    @property
    def busy(self) -> bool:
        """Whether it has something to do."""
        return bool(self.held) or not self.prepared

    def fileno(self) -> int:
        """The descriptor of its channel, to wait on."""
        return self.channel.fileno()

    def prepare(self, rows: SharedRows, replies: Replies, work: SharedWork) -> None:
        """Tell the worker what the clients that follow have in common.

        Raises:
            OSError: if it is gone.
        """
        if self._rows is not rows:
            rows.send(self.channel)
            self._rows = rows
        if self._replies is not replies:
            replies.send(self.channel)
            self._replies = replies
        work.send(self.channel)
        self.prepared, self.since = False, time.monotonic()

    def free_slot(self) -> int | None:
        """A slot that no client has; None where the worker has enough to do."""
        taken = {slot for _, slot in self.held}
        own = range(SLOTS * self.number, SLOTS * (self.number + 1))
        return next((slot for slot in own if slot not in taken), None)

    def give(self, work: SharedWork, position: int, slot: int) -> None:
        """Hand over one more client.

        Raises:
            OSError: if the worker is gone.
        """
        work.send_task(self.channel, position, slot)
        if not self.held:
            self.since = time.monotonic()
        self.held.append((position, slot))

    def hear(self) -> Frame | None:
        """Take a message; None if the worker is gone."""
        frame = self.channel.receive()
        self.since = time.monotonic()
        return frame

    def kill(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        self.channel.close()
