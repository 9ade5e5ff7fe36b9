"""A run's folder: append-only events, atomic files, and which phases are finished.

Every file is written under a temporary name, flushed to disk and renamed, so a reader or a
resumed run never meets half a file. `events.jsonl` gets one fsynced line a finished phase; the
phase's result stands in that line, and a phase counts as finished exactly when its line does.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.errors import RunError
from fedprune.runs.architecture import Architecture

JsonDict = dict[str, Any]
_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


class RunFolder:
    """An existing run folder; see `create` and `open`."""

    def __init__(self, path: Path) -> None:
        """Wrap a path; use `create` or `open`."""
        self.path = path
        self._finished: dict[str, JsonDict] | None = None

    @classmethod
    def create(cls, path: str | Path, config: Config) -> RunFolder:
        """Start a run in a new or empty folder.

        Raises:
            RunError: if the folder already holds something.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for leftover in path.glob(".*.tmp"):  # of a process that died while it began
                leftover.unlink()
            if any(path.iterdir()):
                raise RunError(
                    f"{path} is not empty; choose another --out, or continue it with "
                    f"`fedprune resume {path}` if it is a run"
                )
            folder = cls(path)
            folder.write_text("config.toml", configuration.to_toml(config))
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror}") from None
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            RunError: if there is none.
        """
        path = Path(path)
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is not a run folder: it has no config.toml")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of this folder inside the block.

        Raises:
            RunError: if another process is working on it.
        """
        try:
            file = open(self.path / ".lock", "w")  # noqa: SIM115 (closed by the with below)
        except OSError as error:
            raise RunError(f"cannot lock {self.path}: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.path} is in use by another process") from None
            self._remove_leftovers()
            yield

    def _remove_leftovers(self) -> None:
        """Remove what processes that died had begun to write, but not in the runs within this."""
        for place, folders, files in os.walk(self.path):
            here = Path(place)
            folders[:] = [name for name in folders if not (here / name / "config.toml").is_file()]
            for name in filter(_TEMPORARY.fullmatch, files):
                with suppress(OSError):
                    (here / name).unlink()

    @property
    def config(self) -> Config:
        """The resolved configuration that the run was started with."""
        return configuration.load(self.path / "config.toml")

    # Files.

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically and durably."""
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {target}: {error.strerror}") from None

    def write_text(self, name: str, content: str) -> None:
        """Write a UTF-8 file atomically and durably."""
        self.write_bytes(name, content.encode())

    def write_json(self, name: str, content: object) -> None:
        """Write indented JSON; NaN and infinity are bugs here, not values."""
        self.write_text(name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> JsonDict:
        """Read a JSON file of the run.

        Raises:
            RunError: if it is missing or damaged.
        """
        try:
            loaded = json.loads((self.path / name).read_text(encoding="utf-8"))
        except OSError:
            raise RunError(f"the run {self.path} has no {name}; is it finished?") from None
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from None
        if not isinstance(loaded, dict):
            raise RunError(f"{self.path / name} is damaged: not a JSON object")
        return loaded

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors as safetensors."""
        self.write_bytes(name, save({k: v.detach().contiguous() for k, v in tensors.items()}))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read tensors back.

        Raises:
            RunError: if the file is missing or damaged.
        """
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot read {self.path / name}: {error}") from None

    def write_model(self, model: nn.Module, name: str) -> None:
        """Write a model's state as safetensors."""
        self.write_tensors(name, {k: v.cpu().clone() for k, v in model.state_dict().items()})

    def load_pruned(self) -> tuple[nn.Module, Architecture]:
        """Rebuild the pruned model: identical outputs, eval mode.

        Raises:
            RunError: if a file is missing or does not fit the architecture.
        """
        return self._load("model.safetensors", self._architecture())

    def load_dense(self) -> tuple[nn.Module, Architecture]:
        """Rebuild the dense model: identical outputs, eval mode.

        Raises:
            RunError: if a file is missing or does not fit the architecture.
        """
        return self._load("dense.safetensors", self._architecture().without_mask())

    def export_safetensors(self, out: Path | None = None) -> Path:
        """Copy the pruned model (weights, architecture) into a folder of its own.

        Raises:
            RunError: if the model is not finished, does not load, or cannot be written.
        """
        self.load_pruned()  # what does not load here is not handed out
        target = RunFolder(out or self.path / "export")
        for name in ("model.safetensors", "architecture.json"):
            target.write_bytes(name, (self.path / name).read_bytes())
        return target.path

    def _architecture(self) -> Architecture:
        return Architecture.from_json(json.dumps(self.read_json("architecture.json")))

    def _load(self, name: str, architecture: Architecture) -> tuple[nn.Module, Architecture]:
        model, _ = architecture.build()
        try:
            model.load_state_dict(self.read_tensors(name))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise RunError(f"{self.path / name} does not fit its architecture: {first}") from None
        return model.eval(), architecture

    # Events.

    def events(self) -> list[JsonDict]:
        """Read the finished phases in order; a torn last line (a crash) is ignored.

        Raises:
            RunError: if a line before the last is damaged.
        """
        path = self.path / "events.jsonl"
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
        complete, torn = lines[:-1], lines[-1]
        del torn  # no newline: the event was never finished
        try:
            events = [json.loads(line) for line in complete]
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}") from None
        for number, event in enumerate(events, start=1):
            if not isinstance(event, dict) or not {"phase", "seconds", "result"} <= event.keys():
                raise RunError(f"{path} is damaged: line {number} is not a finished phase")
        return events

    def append_event(self, event: JsonDict) -> None:
        """Append one event durably, first cutting off what a crash left of another."""
        path = self.path / "events.jsonl"
        with open(path, "a+b") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.path)

    def is_finished(self, phase: str) -> bool:
        """Whether a phase's event was written."""
        return phase in self._results()

    def phase(
        self,
        name: str,
        action: Callable[[], JsonDict],
        *,
        extra: Callable[[], JsonDict] = dict,
    ) -> JsonDict:
        """Run a phase once: return its result, stored if it was finished before.

        Args:
            name: unique in the run.
            action: does the work, writes its files, returns a JSON-able result.
            extra: further fields of the event, read when the action is done.
        """
        finished = self._results()
        if name in finished:
            return finished[name]
        begun = time.perf_counter()
        result = action()
        seconds = time.perf_counter() - begun
        self.append_event(
            {
                "phase": name,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(seconds, 3),
                "result": result,
                **extra(),
            }
        )
        finished[name] = result
        return result

    def _results(self) -> dict[str, JsonDict]:
        """What finished phases said, read once."""
        if self._finished is None:
            self._finished = {event["phase"]: dict(event["result"]) for event in self.events()}
        return self._finished


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def weights_vector(model: nn.Module) -> Tensor:
    """Flatten a model's floating-point state (parameters, buffers) in its own order: [size]."""
    parts = [t.detach().reshape(-1).float() for t in model.state_dict().values() if _float(t)]
    return torch.cat(parts) if parts else torch.zeros(0)


def load_weights_vector(model: nn.Module, vector: Tensor) -> None:
    """Write a vector made by `weights_vector` into a model of the same architecture.

    Raises:
        RunError: if the length differs.
    """
    tensors = [t for t in model.state_dict().values() if _float(t)]
    wanted = sum(t.numel() for t in tensors)
    if vector.numel() != wanted:
        raise RunError(f"weights must have {wanted} numbers for this model, got {vector.numel()}")
    position = 0
    with torch.no_grad():
        for tensor in tensors:
            part = vector[position : position + tensor.numel()]
            tensor.copy_(part.reshape(tensor.shape))
            position += tensor.numel()


def _float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
