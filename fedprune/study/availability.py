"""What partial participation, dropouts and stragglers leave of a round, foreseen."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fedprune import runs
from fedprune.config import Config
from fedprune.data.availability import AvailabilityTrace, read_availability

_ANY_CLIENT = 2**31


def trace_of(config: Config) -> AvailabilityTrace | None:
    """Read the configured trace of when clients are there; None where there is none.

    Raises:
        DataError: naming file and line, if it is no trace of these clients.
    """
    if not config.availability.trace:
        return None
    return read_availability(config.availability.trace, config.data.clients)


def reports_per_step(config: Config) -> int:
    """How many answers a step is expected to use, of the clients that it is for.

    A trace counts with the part of the time that its clients are there on average.
    """
    there = 1.0
    if config.availability.trace:
        path = Path(config.availability.trace)
        there = _share(path, path.stat().st_mtime_ns if path.is_file() else 0)
    return runs.expected_reports(config, config.data.clients // config.prune.steps, there)


def availability_advice(config: Config) -> tuple[str, ...]:
    """Say that a run would most likely stop for want of answers."""
    settings, quorum = config.availability, config.federation.quorum
    if not settings.configured:
        return ()
    heard, found = runs.heard_share(settings), []
    if heard < quorum:
        found.append(
            f"{heard:.0%} of the available clients' answers are expected to be used in a round, "
            f"federation.quorum = {quorum:g} needs {quorum:.0%}: the run will most likely stop"
        )
    expected, least = reports_per_step(config), runs.min_reports(config)
    if config.privacy.trust in ("shuffle", "aggregate") and expected < least:
        found.append(
            f"{expected} reports are expected in a step, min_reports = {least} are needed under "
            f"privacy.trust = {config.privacy.trust!r}: the run will most likely stop"
        )
    return tuple(found)


@lru_cache(maxsize=4)
def _share(path: Path, changed: int) -> float:
    del changed  # a file that was written again gets another place in the cache
    return read_availability(path, _ANY_CLIENT).share
