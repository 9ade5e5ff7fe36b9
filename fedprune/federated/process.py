"""Is this client process part of a simulation? Only the process itself can say.

Nothing that a server sends can turn a deployed client into a simulated one; in doubt a process
is deployed, and then it refuses seeds, votes without noise and counterfactual questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SIMULATED: ContextVar[bool] = ContextVar("fedprune_simulated", default=False)


def is_simulated() -> bool:
    """Whether clients run inside a simulation in this process."""
    return _SIMULATED.get()


@contextmanager
def inside_simulation() -> Iterator[None]:
    """Mark what runs inside the block as simulated."""
    token = _SIMULATED.set(True)
    try:
        yield
    finally:
        _SIMULATED.reset(token)
