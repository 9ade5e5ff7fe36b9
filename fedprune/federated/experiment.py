"""What every phase of the server needs: configuration, run folder, clients, models on disk."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.config import Config, Scalar
from fedprune.data import Schema
from fedprune.federated.answers import ReadTogether, singly
from fedprune.federated.attendance import Attendance
from fedprune.federated.conversation import Conversation, Read
from fedprune.federated.messages import Question
from fedprune.federated.receipts import ReceiptBook
from fedprune.federated.scoring_precision import ScoringPrecision
from fedprune.federated.sharing import Sharing
from fedprune.federated.station import model_of
from fedprune.privacy import Ledger
from fedprune.progress import Reporter
from fedprune.pruning import LatencyTable, UnitLayout
from fedprune.randomness import SimulationRandomness
from fedprune.runs import (
    Architecture,
    RunFolder,
    copy_latency_table,
    receipts_head,
    run_id,
    tables_wanted,
    weights_vector,
)

JsonDict = dict[str, Any]
T = TypeVar("T")


@dataclass
class Held:
    """A model that lies in the run folder and, if it was just made, in memory too."""

    folder: RunFolder
    name: str
    _value: tuple[Architecture, Tensor] | None = None

    @property
    def value(self) -> tuple[Architecture, Tensor]:
        """Architecture and flat weights."""
        if self._value is None:
            text = json.dumps(self.folder.read_json(f"checkpoints/{self.name}.json"))
            weights = self.folder.read_tensors(f"checkpoints/{self.name}.safetensors")["weights"]
            self._value = (Architecture.from_json(text), weights)
        return self._value

    @property
    def there(self) -> bool:
        """Whether the model can be had: it is in memory, or its file was not discarded."""
        return self._value is not None or self.folder.has(f"checkpoints/{self.name}.safetensors")

    @property
    def architecture(self) -> Architecture:
        """What the model looks like."""
        return self.value[0]

    @property
    def weights(self) -> Tensor:
        """Its flat state."""
        return self.value[1]

    def model(self) -> nn.Module:
        """Build the model."""
        return model_of(*self.value)

    def layout(self) -> UnitLayout:
        """Find its units."""
        return self.architecture.own_layout

    @staticmethod
    def save(folder: RunFolder, name: str, architecture: Architecture, weights: Tensor) -> Held:
        """Write a model to the folder, atomically."""
        folder.write_tensors(f"checkpoints/{name}.safetensors", {"weights": weights})
        folder.write_text(f"checkpoints/{name}.json", architecture.to_json() + "\n")
        return Held(folder, name, (architecture, weights))

    @staticmethod
    def save_model(
        folder: RunFolder, name: str, architecture: Architecture, model: nn.Module
    ) -> Held:
        """Write a built model to the folder."""
        return Held.save(folder, name, architecture, weights_vector(model))

    def discard(self) -> None:
        """Remove the files; the value stays in memory if it is there."""
        for suffix in ("safetensors", "json"):
            path: Path = self.folder.path / f"checkpoints/{self.name}.{suffix}"
            path.unlink(missing_ok=True)


@dataclass
class Experiment:
    """One run of one seed; `sharing` is what it has in common with the other runs of a sweep."""

    config: Config
    folder: RunFolder
    conversation: Conversation
    reporter: Reporter
    sharing: Sharing | None = None
    attendance: Attendance = field(init=False)
    latency: LatencyTable | None = field(init=False)
    precisions: dict[str, ScoringPrecision] = field(default_factory=dict)
    _executed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Find out who will be there when, and what takes how long."""
        self.attendance = Attendance(self.config, self.folder)
        self.latency = copy_latency_table(self.config, self.folder)

    @property
    def simulated(self) -> bool:
        """Whether the clients are simulated: what all of them said."""
        return self.conversation.simulated

    @property
    def schema(self) -> Schema:
        """What the clients' data look like."""
        return self.conversation.schema

    @property
    def tables_wanted(self) -> bool:
        """Whether clients are asked for count tables."""
        return tables_wanted(self.config, self.simulated)

    @property
    def run_id(self) -> str:
        """Name of the run in ledgers, the same after a resume.

        In a simulation a digest of its configuration. Deployed clients train with randomness of
        their own, so that no two runs ask the same: there a nonce is added.
        """
        for event in self.folder.events()[:1]:
            return str(event["result"]["run"])
        return run_id(self.config) + ("" if self.simulated else f"-{secrets.token_hex(4)}")

    @property
    def clients(self) -> list[int]:
        """All clients."""
        return list(range(self.config.data.clients))

    def generator(self, *labels: str | int) -> np.random.Generator:
        """A seeded stream of the server's own: cohorts, participants, bootstrap."""
        return SimulationRandomness(self.config.seed, "server", *labels).generator

    def phase(
        self,
        name: str,
        action: Callable[[], JsonDict],
        say: str = "",
        named: Mapping[str, str | float] | None = None,
    ) -> JsonDict:
        """Run a phase once in the life of the run.

        Args:
            name: unique in the run.
            action: does the work.
            say: a line with fields of the result, said if the work was done now.
            named: further fields of the event.
        """

        def remembered() -> JsonDict:
            self._executed.add(name)
            return action()

        def beside() -> JsonDict:
            return {**self._circumstances(), **(named or {})}

        result = self.folder.phase(name, remembered, extra=beside)
        if say and name in self._executed:
            self.reporter.say(say.format(**result))
        return result

    def model_phase(
        self, name: str, action: Callable[[], tuple[Architecture, Tensor, JsonDict]], say: str = ""
    ) -> tuple[Held, JsonDict]:
        """Run a phase that makes a model; it is on disk before the phase counts as finished."""
        made: list[Held] = []

        def saved() -> JsonDict:
            architecture, weights, result = action()
            made.append(Held.save(self.folder, file_name(name), architecture, weights))
            return result

        result = self.phase(name, saved, say)
        return (made[0] if made else Held(self.folder, file_name(name))), result

    def question(
        self,
        round_name: str,
        held: Held,
        settings: Mapping[str, Scalar],
        *,
        reference: Tensor | None = None,
        counterfactual: bool = False,
    ) -> Question:
        """Put a question about a model."""
        return Question(
            self.run_id,
            round_name,
            held.architecture,
            held.weights,
            settings,
            reference,
            counterfactual,
            seed=self.config.seed if self.simulated else None,
        )

    def ask(
        self, kind: str, question: Question, clients: Sequence[int], label: str, read: Read[T]
    ) -> Iterator[tuple[int, T]]:
        """Ask as `Conversation.ask` does; from deployed clients every answer needs its receipt.

        The receipt of an answer is on disk before the answer is used. In a simulation, whom a
        round reaches and whose answers arrive is as `fedprune.federated.attendance` says.
        """
        if self.simulated:
            there = self.attendance.attend(kind, question, clients)
            yield from self.conversation.ask(kind, question, there.clients, label, read, there.lost)
            return
        book = ReceiptBook(self.folder, self.conversation.introductions)

        def with_receipt(client: int, answer: RecordDict) -> tuple[str, T]:
            return book.check(kind, question, client, answer), read(client, answer)

        heard = self.conversation.ask(kind, question, clients, label, with_receipt)
        for client, (line, found) in heard:
            if line:
                book.keep(line)
            yield client, found

    def ask_together(
        self,
        kind: str,
        question: Question,
        clients: Sequence[int],
        label: str,
        read: ReadTogether[T],
    ) -> Iterator[T]:
        """Ask as `Conversation.ask_together` does: many simulated clients are read at a time.

        A deployed client's answer is read by itself, once its receipt is on disk.
        """
        if self.simulated:
            there = self.attendance.attend(kind, question, clients)
            yield from self.conversation.ask_together(
                kind, question, there.clients, label, read, there.lost
            )
            return
        for _, found in self.ask(kind, question, clients, label, singly(read)):
            yield found

    def pass_stages(self, round_names: Iterable[str], clients: Sequence[int]) -> list[int]:
        """Say who is left after stages of a sum that is made without its protocol.

        Who would be lost in them is missing here too, so that the sum comes out as it does there.
        """
        left = list(clients)
        for name in round_names:
            there = self.attendance.pass_stage(name, left)
            if there.lost:
                self.conversation.missing[name] = dict(there.lost)
            left = [client for client in there.clients if client not in there.lost]
        return left

    def _circumstances(self) -> JsonDict:
        """What an event says beside its result.

        Where the ledger (or the file of receipts) stands, which makes a later rollback visible,
        who was missing in the phase's rounds, if anybody was, and what the simulated rounds were
        like, if not everybody always answers.
        """
        missing = {
            name: sorted(clients) for name, clients in sorted(self.conversation.missing.items())
        }
        named: JsonDict = {"missing": missing} if missing else {}
        named |= self.attendance.take()
        self.conversation.missing.clear()
        path = self.folder.path / "ledger.sqlite"
        if not path.exists():
            return named | receipts_head(self.folder)
        with Ledger.open(path) as ledger:
            rows, head = ledger.head
        return named | {"ledger_rows": rows, "ledger_head": head}


def file_name(phase: str) -> str:
    """The name of a phase's model among the checkpoints."""
    return phase.replace("/", "-")


def as_tensor(array: NDArray[np.float64]) -> Tensor:
    """Copy an array into a float64 tensor."""
    return torch.from_numpy(np.array(array, dtype=np.float64))
