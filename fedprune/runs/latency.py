"""The measured times that a budget of latency is counted with: every run keeps its own copy."""

from __future__ import annotations

from pathlib import Path

from fedprune.config import Config
from fedprune.pruning import LatencyTable
from fedprune.runs.folder import RunFolder

LATENCY = "latency.json"


def latency_table(config: Config, folder: RunFolder | None = None) -> LatencyTable | None:
    """Read the times that a configuration counts with; None if its budget is no time.

    Args:
        config: the experiment.
        folder: its run folder; the copy in it, if there is one, comes before the file that the
            configuration names.

    Raises:
        PruningError: if the file is missing or no such table.
    """
    if config.prune.keep_latency is None:
        return None
    if folder is not None and folder.has(LATENCY):
        return LatencyTable.load(folder.path / LATENCY)
    return LatencyTable.load(config.prune.latency_table)


def copy_latency_table(config: Config, folder: RunFolder) -> LatencyTable | None:
    """As `latency_table`; the run folder has a copy of the file afterwards."""
    table = latency_table(config, folder)
    if table is not None and not folder.has(LATENCY):
        folder.write_bytes(LATENCY, Path(config.prune.latency_table).read_bytes())
    return table
