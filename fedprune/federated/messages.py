"""What server and clients say to each other, as Flower records.

A question holds a model (architecture and one flat vector of weights) and the numbers of its
task; its digest covers all of it, so "the same question" has an exact meaning for the ledger.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from torch import Tensor

from fedprune.config import Scalar
from fedprune.errors import FederationError, RunError
from fedprune.federated.package import package_hash, package_name
from fedprune.runs import Architecture

SCHEMA = 3


@dataclass(frozen=True, eq=False)
class Question:
    """What the server asks every client of a round.

    Attributes:
        run: identifies the run in ledgers.
        round: unique in the run for questions that are charged or trained on.
        architecture: of the model in question.
        weights: [size] float32, that model's state.
        settings: numbers and names that the task needs.
        reference: [size] float32 state of the dense model, where it is compared with.
        counterfactual: True for what exists in simulation only (baselines).
        seed: what simulated clients draw from; a deployed client refuses a question that has one.
        own: what is said to one client alone, by client number.
    """

    run: str
    round: str
    architecture: Architecture
    weights: Tensor
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    reference: Tensor | None = None
    counterfactual: bool = False
    seed: int | None = None
    own: Mapping[int, Mapping[str, bytes]] = field(default_factory=dict)

    def to_contents(self, clients: Iterable[int]) -> Iterator[RecordDict]:
        """Write as Flower records for each client; clients that are told the same share one."""
        shared = self.to_content()
        for client in clients:
            if client not in self.own:
                yield shared
                continue
            parts: dict[str, ConfigRecordValues] = {"client": client, **self.own[client]}
            yield RecordDict({**shared, "own": ConfigRecord(parts)})

    def to_content(self) -> RecordDict:
        """Write as Flower records what all clients are told."""
        task: dict[str, ConfigRecordValues] = {
            **sender(),
            "run": self.run,
            "round": self.round,
            "architecture": self.architecture.to_json(),
            "settings": json.dumps(dict(self.settings), sort_keys=True),
            "counterfactual": self.counterfactual,
        }
        if self.seed is not None:
            task["seed"] = self.seed
        arrays = {"weights": _to_array(self.weights)}
        if self.reference is not None:
            arrays["reference"] = _to_array(self.reference)
        return RecordDict({"question": ConfigRecord(task), "arrays": ArrayRecord(arrays)})

    @staticmethod
    def from_content(content: RecordDict) -> Question:
        """Read what `to_content` wrote.

        Raises:
            FederationError: if the records come from another version of fedprune or lack a part.
        """
        try:
            task = content.config_records["question"]
            check_sender(task, "the server", "this client")
            arrays = content.array_records["arrays"]
            seed = task.get("seed")
            return Question(
                run=str(task["run"]),
                round=str(task["round"]),
                architecture=Architecture.from_json(str(task["architecture"])),
                weights=_from_array(arrays["weights"]),
                settings=_settings(str(task["settings"])),
                reference=_from_array(arrays["reference"]) if "reference" in arrays else None,
                counterfactual=bool(task["counterfactual"]),
                seed=None if seed is None else int(str(seed)),
                own=own_part(content),
            )
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError, RunError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise FederationError(f"the server's question cannot be read: {reason}") from None

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 of the model in question."""
        return model_digest(self.architecture, self.weights)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that was asked."""
        parts = [self.run, self.round, self.model_digest, str(self.counterfactual), str(self.seed)]
        parts.append(json.dumps(dict(self.settings), sort_keys=True))
        if self.reference is not None:
            parts.append(model_digest(self.architecture, self.reference))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def digest_for(self, client: int) -> str:
        """SHA-256 of everything that one client was asked."""
        if client not in self.own:
            return self.digest
        own = {name: value.hex() for name, value in self.own[client].items()}
        return hashlib.sha256(json.dumps([self.digest, own], sort_keys=True).encode()).hexdigest()

    def number(self, name: str, least: float = -math.inf) -> float:
        """Read a numeric setting.

        Raises:
            FederationError: if it is missing, not a finite number, or below `least`.
        """
        value = self.settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FederationError(f"the server's question needs a number {name!r}, got {value!r}")
        try:
            found = float(value)
        except OverflowError:  # a whole number beyond all floats
            found = math.inf
        if not math.isfinite(found) or found < least:
            bound = "" if least == -math.inf else f" of at least {least:g}"
            raise FederationError(
                f"the server's {name} must be a finite number{bound}, got {found}"
            )
        return found

    def whole(self, name: str, least: int) -> int:
        """Read a setting that is a whole number.

        Raises:
            FederationError: if it is missing, not whole, or below `least`.
        """
        value = self.number(name, least)
        if value != int(value):
            raise FederationError(f"the server's {name} must be a whole number, got {value!r}")
        return int(value)

    def text(self, name: str) -> str:
        """Read a textual setting.

        Raises:
            FederationError: if it is missing or not a string.
        """
        value = self.settings.get(name)
        if not isinstance(value, str):
            raise FederationError(f"the server's question needs a text {name!r}, got {value!r}")
        return value


def _settings(text: str) -> dict[str, Scalar]:
    """Read a task's settings: names with plain values."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"its settings must be a table, got {type(found).__name__}")
    return found


def own_part(content: RecordDict) -> dict[int, dict[str, bytes]]:
    """Read what a question tells one client alone, by that client's number."""
    if "own" not in content:
        return {}
    record = dict(content.config_records.get("own", ConfigRecord()))
    client = record.pop("client", None)
    if not isinstance(client, int) or isinstance(client, bool):
        return {}
    return {client: {k: v for k, v in record.items() if isinstance(v, bytes)}}


def sender() -> dict[str, ConfigRecordValues]:
    """Say which schema and source a message comes from."""
    return {"schema": SCHEMA, "package": package_hash(), "version": package_name()}


def check_sender(record: ConfigRecord, other: str, me: str) -> None:
    """Compare the sender's message schema and source with this installation's.

    Raises:
        FederationError: if they differ, in one sentence that names both sides.
    """
    if record.get("schema") != SCHEMA or record.get("package") != package_hash():
        theirs = str(record.get("version", "of an unknown version"))[:80]
        raise FederationError(
            f"{other} runs fedprune {theirs}, {me} runs {package_name()}; install the same "
            "version on both sides; nothing was spent"
        )


def model_digest(architecture: Architecture, weights: Tensor) -> str:
    """SHA-256 over an architecture and the exact bits of its weights."""
    digest = hashlib.sha256(architecture.to_json().encode())
    digest.update(weights.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def answer_content(
    client: int, fields: Mapping[str, Scalar | bytes], weights: Tensor | None = None
) -> RecordDict:
    """Write a client's answer as Flower records."""
    record = ConfigRecord({**sender(), "client": client, **fields})
    content = RecordDict({"answer": record})
    if weights is not None:
        content["arrays"] = ArrayRecord({"weights": _to_array(weights)})
    return content


def answer_number(content: RecordDict, name: str, least: float = -math.inf) -> float:
    """Read a finite number of an answer.

    Raises:
        FederationError: naming the client, if it is missing, not finite or below `least`.
    """
    record = content.config_records["answer"]
    return checked_number(record["client"], name, record.get(name), least)


def checked_number(client: object, name: str, value: object, least: float = -math.inf) -> float:
    """Check a number that a client sent.

    Raises:
        FederationError: naming the client, if it is missing, not finite or below `least`.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, int | float) or not good or value < least:
        raise FederationError(
            f"client {client!r} sent {name} = {value!r}, a finite number of at least {least:g} is "
            "needed"
        )
    return float(value)


def answer_bytes(content: RecordDict, name: str, what: str) -> bytes:
    """Read a byte string of an answer.

    Raises:
        FederationError: naming the client, if there is none.
    """
    record = content.config_records["answer"]
    value = record.get(name)
    if not isinstance(value, bytes):
        raise FederationError(f"client {record['client']!r} sent no {what}")
    return value


def answer_weights(content: RecordDict, size: int) -> Tensor:
    """Read the weights of an answer: [size] float32.

    Raises:
        FederationError: naming the client, if they are missing, of another size or not finite.
    """
    client = content.config_records["answer"]["client"]
    return checked_weights(client, weights_of(content), size)


def weights_of(content: RecordDict) -> Tensor | None:
    """Read the weights of an answer as they came; None where there are none to read."""
    try:
        return _from_array(content.array_records["arrays"]["weights"])
    except (KeyError, ValueError):
        return None


def checked_weights(client: object, weights: Tensor | None, size: int) -> Tensor:
    """Check a client's weights: [size] float32, finite.

    Raises:
        FederationError: naming the client.
    """
    if weights is None:
        raise FederationError(f"client {client!r} sent no weights that can be read")
    # A sum of finite numbers may overflow, but a sum that is finite had nothing else in it.
    finite = bool(torch.isfinite(weights.sum())) or bool(torch.isfinite(weights).all())
    if weights.numel() != size or not finite:
        raise FederationError(f"client {client!r} sent weights that are not {size} finite numbers")
    return weights


def _to_array(vector: Tensor) -> Array:
    return Array(np.ascontiguousarray(vector.detach().numpy()))


def _from_array(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array.numpy(), dtype=np.float32).reshape(-1))
