"""What a worker process does: it trains the clients that it is given, one after the other."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.allocator import keep_freed_memory
from fedprune.data.rows import Rows, Scaling
from fedprune.errors import FedpruneError
from fedprune.federated.trainers import Trainers, margins
from fedprune.federated.training import LocalTraining, Trainer
from fedprune.federated.workers.channel import Channel, Frame
from fedprune.federated.workers.memory import Block, open_shared
from fedprune.randomness import SimulationRandomness
from fedprune.runs import Architecture


def preload() -> None:
    """Set up what all workers have in common; the imports of this module are most of it."""
    torch.set_num_threads(1)  # one thread a client, everywhere
    keep_freed_memory()  # every step of training needs the same blocks again


def serve(channel: Channel) -> None:
    """Answer the parent until it is gone."""
    worker = _Worker(channel)
    while (frame := channel.receive()) is not None:
        worker.handle(frame)


class _Worker:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._trainers = Trainers()
        self._rows: Rows | None = None
        self._replies: Block | None = None
        self._job: _Job | None = None
        self._handlers: Mapping[str, Callable[[Frame], None]] = {
            "rows": self._take_rows,
            "replies": self._take_replies,
            "job": self._take_job,
            "train": self._train,
        }

    def handle(self, frame: Frame) -> None:
        self._handlers[frame.kind](frame)

    def _take_rows(self, frame: Frame) -> None:
        stored, labels = (
            open_shared(descriptor, frame.fields[name])
            for descriptor, name in zip(frame.descriptors, ("stored", "labels"), strict=True)
        )
        scaling = frame.fields["scaling"]
        mean, std = (None if part is None else tuple(part) for part in scaling[1:])
        self._rows = Rows(stored, labels, Scaling(scaling[0], mean, std))

    def _take_replies(self, frame: Frame) -> None:
        self._replies = _mapped(frame)

    def _take_job(self, frame: Frame) -> None:
        try:
            surroundings(frame.fields["surroundings"])
            if self._job is not None:
                self._trainers.bring_back(self._job.architecture, self._job.trainer)
                self._job = None
            architecture = Architecture.from_json(frame.fields["architecture"])
            self._job = _Job(frame, architecture, self._trainers.take(architecture))
        except Exception as error:  # what a user's network may raise cannot be listed
            self._channel.send("unfit", reason=f"{type(error).__name__}: {error}")
        else:
            self._channel.send("prepared")

    def _train(self, frame: Frame) -> None:
        position = frame.fields["position"]
        try:
            loss = self._trained(frame.fields)
        except Exception as error:  # one client's failure is told, the next may do better
            known = isinstance(error, FedpruneError)
            self._channel.send(
                "failed",
                position=position,
                error=type(error).__name__,
                text=str(error),
                expected=known,
                trace="" if known else traceback.format_exc(),
            )
        else:
            self._channel.send("trained", position=position, loss=loss)

    def _trained(self, task: Mapping[str, Any]) -> float:
        job, rows, replies = self._job, self._rows, self._replies
        if job is None or rows is None or replies is None:
            raise RuntimeError("a worker was asked to train before it was told what")
        index = job.index(task["start"], task["rows"])
        random = SimulationRandomness(job.seed, *job.labels, task["client"])
        trainer = job.trainer
        loss = trainer.train(
            job.weights,
            rows.inputs(index),
            rows.targets(index),
            job.how,
            random.generator,
            margins(job.architecture, job.how),
        )
        slot = replies.array(np.float32, (trainer.size,), task["slot"] * trainer.size * 4)
        trainer.read(torch.from_numpy(slot))
        return loss


class _Job:
    """A round's part that all clients share."""

    def __init__(self, frame: Frame, architecture: Architecture, trainer: Trainer) -> None:
        fields = frame.fields
        self.architecture, self.trainer = architecture, trainer
        self.how = LocalTraining(**fields["how"])
        self.seed, self.labels = int(fields["seed"]), tuple(fields["labels"])
        block = _mapped(frame)
        self.weights: Tensor = torch.from_numpy(block.array(np.float32, (fields["size"],)).copy())
        self._index = block.array(np.int64, (fields["rows"],), fields["index"])

    def index(self, start: int, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        found: np.ndarray[Any, np.dtype[np.int64]] = self._index[start : start + rows].copy()
        return found


def _mapped(frame: Frame) -> Block:
    block = Block(frame.descriptors[0], int(frame.fields["bytes"]))
    block.close()
    return block


def own_surroundings() -> dict[str, Any]:
    """What this process's arithmetic and its users' imports depend on, as plain data."""
    return {
        "folder": os.getcwd(),
        "path": list(sys.path),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def surroundings(wanted: Mapping[str, Any]) -> None:
    """Make this process's surroundings those of the parent."""
    if os.getcwd() != wanted["folder"]:
        os.chdir(wanted["folder"])
    sys.path[:] = wanted["path"]
    torch.set_float32_matmul_precision(wanted["precision"])
    if torch.are_deterministic_algorithms_enabled() != wanted["deterministic"]:
        torch.use_deterministic_algorithms(wanted["deterministic"])
