"""How local training is spread over processes."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerSettings:
    """How many worker processes there may be, and how patient the parent is.

    Attributes:
        workers: processes; 0 means as many as this process may use cores, 1 means none: clients
            are then trained here, one after the other.
        client_seconds: a client that trains longer than this is given up.
        after_seconds: how long clients must have been trained here before workers are started.
            They take some seconds to start, so that starting them any earlier could cost a short
            run more than it gains; at this point it never costs more than about as much again.
    """

    workers: int = 0
    client_seconds: float = 600.0
    after_seconds: float = 2.0

    @property
    def count(self) -> int:
        """How many clients are trained at the same time."""
        return self.workers or cores()


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
