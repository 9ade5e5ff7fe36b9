"""The pool of this process: opened by a simulation, started when there is enough to train."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fedprune.federated.workers.errors import WorkersUnavailableError
from fedprune.federated.workers.pool import Pool
from fedprune.federated.workers.settings import WorkerSettings

_LOG = logging.getLogger(__name__)
_ANYTHING = ""


class Workers:
    """Worker processes for as long as a simulation, or a series of them, lasts.

    They are started in the background, once clients have been trained in this process for
    `settings.after_seconds`. Until they are ready, and for what they cannot train, clients go on
    being trained here: the results are the same.

    Attributes:
        settings: how many there are, and what else is configured.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Begin with no process."""
        self.settings = settings
        self._pool: Pool | None = None
        self._owner = os.getpid()
        self._seconds_here = 0.0
        self._unfit: set[str] = set()

    def lend(self, what: str) -> Pool | None:
        """Give the pool, if there is one by now that can train the network called `what`."""
        if self.settings.count < 2 or {what, _ANYTHING} & self._unfit or self._elsewhere():
            return None
        if self._pool is None and self._seconds_here < self.settings.after_seconds:
            return None
        return self._ready(0.0)

    def start(self, wait_seconds: float) -> bool:
        """Start now, and wait; whether they are ready."""
        return self._ready(wait_seconds) is not None

    def trained_here(self, seconds: float) -> None:
        """Remember how long clients were trained in this process."""
        self._seconds_here += seconds

    def refuse(self, what: str, error: WorkersUnavailableError) -> None:
        """Remember that workers cannot train `what`, and say so once."""
        if what not in self._unfit:
            self._unfit.add(what)
            _LOG.warning("clients are trained in this process, not in workers: %s", error)

    def close(self) -> None:
        """End all processes."""
        pool, self._pool = self._pool, None
        if pool is not None and not self._elsewhere():
            pool.close()

    def _elsewhere(self) -> bool:
        """Whether this is a process forked from the one whose workers they are."""
        return self._owner != os.getpid()

    def _ready(self, wait_seconds: float) -> Pool | None:
        try:
            if self._pool is None:
                self._pool = Pool(self.settings.count)
            pool = self._pool
            return pool if not pool.busy and pool.ready(wait_seconds) else None
        except (WorkersUnavailableError, OSError) as error:
            self.close()
            self.refuse(_ANYTHING, WorkersUnavailableError(f"they cannot be started: {error}"))
            return None


_OPEN: list[Workers] = []


@contextmanager
def worker_processes(settings: WorkerSettings) -> Iterator[Workers]:
    """Let simulations inside the block train in worker processes, which end with it.

    Inside such a block another one shares its workers: a series of runs keeps them.
    """
    if _OPEN:
        yield _OPEN[-1]
        return
    workers = Workers(settings)
    _OPEN.append(workers)
    try:
        yield workers
    finally:
        _OPEN.remove(workers)
        workers.close()


def open_workers() -> Workers | None:
    """Give the workers of the block that is open; None outside of any."""
    return _OPEN[-1] if _OPEN else None


@atexit.register
def close_workers() -> None:
    """End all workers of this process."""
    for workers in _OPEN:
        workers.close()
