"""Which series of phases the runs of a sweep have finished, and where the results lie.

A series (all rounds of a training, the whole path of a baseline) is named by a SHA-256 of
everything that its outcome depends on. The run that finishes it first leaves a note under that
name; the results themselves stay where they are, in that run's folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedprune.errors import RunError
from fedprune.federated.package import package_hash
from fedprune.runs import RunFolder

JsonDict = dict[str, Any]
FOLDER = "finished"
SPARED = "spared_seconds"  # of an event: what the phase took in the run that did it


@dataclass(frozen=True)
class Series:
    """Phases that are done one after another and end with a model.

    Attributes:
        key: SHA-256 of all that the outcome depends on; "" where nothing is shared.
        prefix: of the phases' names in this run; in another run it may be another.
        phases: their names without the prefix; None for all phases with this prefix.
        last: the phase, without the prefix, that makes the last model.
    """

    key: str
    prefix: str
    phases: tuple[str, ...] | None
    last: str

    def holds(self, phase: str) -> bool:
        """Whether a phase of a run belongs to the series."""
        if not phase.startswith(self.prefix):
            return False
        return self.phases is None or phase.removeprefix(self.prefix) in self.phases

    @property
    def model(self) -> str:
        """The phase that makes the last model."""
        return f"{self.prefix}{self.last}"


@dataclass(frozen=True)
class Taken:
    """A finished series, to be taken over.

    Attributes:
        source: the run that did it, relative to the sweep.
        events: of every phase its name without a prefix, its result, and the seconds that it took
            where it was done.
        model: where its last model lies; ".safetensors" and ".json" follow.
    """

    source: str
    events: tuple[JsonDict, ...]
    model: Path


class Finished:
    """The notes of a sweep about the series that its runs have finished.

    A note whose run was removed or changed counts for nothing.
    """

    def __init__(self, root: str | Path, engine: str) -> None:
        """Keep notes in a sweep's folder.

        Args:
            root: the sweep's folder, under which all its runs lie; paths in notes are relative to
                it, so that a sweep may be moved.
            engine: what the runs are done on.
        """
        self.root, self.engine = Path(root), engine
        self._notes = RunFolder(self.root / FOLDER)

    def key(self, *parts: object) -> str:
        """Name a series by what its outcome depends on; this installation is part of it."""
        said = [package_hash(), torch.__version__, self.engine, *parts]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def add(self, series: Series, folder: RunFolder, model: str) -> None:
        """Note that a run has finished a series, unless another one's note is still good.

        Args:
            series: as it is named in this run.
            folder: of the run.
            model: where the last model lies in it, without a suffix.
        """
        events = [event for event in folder.events() if series.holds(event["phase"])]
        if any("missing" in event for event in events) or self.find(series) is not None:
            return  # who was missing is a matter of the run that it happened in
        note = {
            "run": folder.path.resolve().relative_to(self.root.resolve()).as_posix(),
            "prefix": series.prefix,
            "model": model,
            "sha256": _digest(folder.path / model),
        }
        self._notes.write_json(f"{series.key}.json", note)

    def find(self, series: Series) -> Taken | None:
        """Give a series that some run has finished; None if there is none, or none any more."""
        if not self._notes.has(f"{series.key}.json"):
            return None
        try:
            note = self._notes.read_json(f"{series.key}.json")
            source, there = self.root / note["run"], replace(series, prefix=note["prefix"])
            events = tuple(
                {"phase": e["phase"].removeprefix(there.prefix), "result": e["result"]}
                | {"seconds": e.get(SPARED, e["seconds"])}
                for e in RunFolder.open(source).events()
                if there.holds(e["phase"])
            )
            if _digest(source / note["model"]) != note["sha256"]:
                return None
        except (RunError, OSError, KeyError, TypeError):  # removed or changed since
            return None
        return Taken(note["run"], events, source / note["model"])


def _digest(model: Path) -> str:
    """SHA-256 of a stored model's weights and of its architecture."""
    digest = hashlib.sha256()
    for suffix in (".safetensors", ".json"):
        digest.update(model.with_name(model.name + suffix).read_bytes())
    return digest.hexdigest()
