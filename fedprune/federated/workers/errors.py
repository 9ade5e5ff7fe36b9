"""What can go wrong with workers."""

from __future__ import annotations

from fedprune.errors import FederationError, FedpruneError


class ClientFailedError(FederationError):
    """One client's training died, hung or raised; nothing of it has left the client."""


class WorkersUnavailableError(FedpruneError):
    """Workers cannot do this work at all; this process can do it itself."""
