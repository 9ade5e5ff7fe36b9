"""What the runs of a sweep share; a run outside a sweep shares nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from fedprune.federated.finished import Finished
from fedprune.federated.kept import Kept

VARIABLE = "FEDPRUNE_SWEEP"  # the sweep's folder, for a server app in a process of its own


@dataclass(frozen=True)
class Sharing:
    """Handed to every run of a sweep.

    Attributes:
        finished: series of phases, on disk: they survive the process.
        kept: rows, scores and answers, in memory.
    """

    finished: Finished
    kept: Kept = field(default_factory=Kept)

    def environment(self) -> dict[str, str]:
        """What tells a server app in a process of its own about the sweep."""
        return {VARIABLE: str(self.finished.root.resolve())}


def from_environment() -> Sharing | None:
    """Take part in the sweep that this process was started for on Flower's engine, if any."""
    root = os.environ.get(VARIABLE, "")
    return Sharing(Finished(root, "flower")) if root else None
