"""Is this client process part of a simulation? Only the process itself can say.

It is, where the local grid runs it, or where it is an actor of Flower's simulation engine (Ray).
Nothing that a server sends can turn a deployed client into a simulated one; in doubt a process
is deployed, and then it refuses seeds, votes without noise and counterfactual questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedprune.federated.flower_internals import hosts_simulation_actor

_SIMULATED: ContextVar[bool] = ContextVar("fedprune_simulated", default=False)


def is_simulated() -> bool:
    """Whether clients run inside a simulation in this process."""
    return _SIMULATED.get() or hosts_simulation_actor()


@contextmanager
def inside_simulation() -> Iterator[None]:
    """Mark what runs inside the block as simulated."""
    token = _SIMULATED.set(True)
    try:
        yield
    finally:
        _SIMULATED.reset(token)
