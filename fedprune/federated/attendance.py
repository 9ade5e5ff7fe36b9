"""Partial participation, dropouts and stragglers in a simulation, on a simulated clock.

Training and voting rounds are subject to the table `availability`; introductions, evaluation and
what exists for comparison only (votes without noise) are not: they are the measuring instrument.
A client that is not available is not asked, so it draws nothing and is charged nothing. One that
drops out or comes too late has made its answer: its ledger holds the reservation and the report,
and the same question asked again gets the same report; the server goes on without it, and it
counts against `federation.quorum`, which is of the clients that are available. Who trains in a
round is drawn from all clients first (`train.clients_per_round`); those of them that are available
answer.

The server decides, before and after it asks: clients of a simulation and deployed ones run the
same code and are told the same, so nothing here can change what a deployed client does; and every
engine carries the same questions. A round of the fine-tuning of a baseline begins at the time at
which the private path's round of that name began, so that all masks meet the same clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config import Config
from fedprune.data.availability import AvailabilityTrace, read_availability
from fedprune.errors import FederationError
from fedprune.federated.messages import Question
from fedprune.federated.secure_questions import SUM_KINDS
from fedprune.runs import TRACE, Fates, RunFolder, availability_rounds, fates, next_begin
from fedprune.runs.availability import described

JsonDict = dict[str, Any]

LATE = "its answer came after availability.deadline_seconds"
_TRAINING = ("train", "train.private")
_VOTING = ("query.report", "query.record_scores", *SUM_KINDS)
_PLAIN_VOTES = "query.masks"


@dataclass(frozen=True)
class Attended:
    """Whom a round reaches.

    Attributes:
        clients: the available ones, rising; they are asked.
        lost: of those, whose answers are not used, each with the reason.
    """

    clients: Sequence[int]
    lost: Mapping[int, str] = field(default_factory=dict)


class Attendance:
    """Who is there in which round of one run, and what the simulated clock says."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Take up the clock where the run's events left it.

        Where the configuration names a trace, the run folder gets a copy of it, and the copy
        counts from then on, whatever becomes of the file.

        Raises:
            DataError: if the trace cannot be used.
        """
        self._config = config
        self._trace = _own_trace(config, folder)
        self._known: dict[str, JsonDict] = availability_rounds(folder.events())
        self._new: dict[str, JsonDict] = {}

    def attend(self, kind: str, question: Question, clients: Sequence[int]) -> Attended:
        """Say which of the clients a question reaches, and whose answers are lost.

        Raises:
            FederationError: if it reaches nobody.
        """
        if not self._subject(kind, question):
            return Attended(clients)
        found = self._round(
            question.round, clients, summed=kind in SUM_KINDS, again=question.counterfactual
        )
        if not found.available.any():
            raise FederationError(
                f"none of the {len(clients)} clients asked in round {question.round} is available "
                f"(availability.participation = {self._config.availability.participation:g}"
                f"{', and a trace' if self._trace else ''})"
            )
        return Attended(_chosen(clients, found.available), self._lost(clients, found))

    def pass_stage(self, round_name: str, clients: Sequence[int]) -> Attended:
        """Let a stage of a sum pass that is made without the protocol, in which nobody is asked.

        Who is available and not lost is left, as under the protocol, and the clock moves as there.
        """
        if not self._config.availability.configured:
            return Attended(clients)
        found = self._round(round_name, clients, summed=True)
        return Attended(_chosen(clients, found.available), self._lost(clients, found))

    def take(self) -> JsonDict:
        """Give, once, what the rounds since the last call were like, for a phase's event."""
        new, self._new = self._new, {}
        return {"availability": new} if new else {}

    def _subject(self, kind: str, question: Question) -> bool:
        if not self._config.availability.configured:
            return False
        return (
            kind in _TRAINING
            or kind in _VOTING
            or (kind == _PLAIN_VOTES and not question.counterfactual)
        )

    def _round(
        self, name: str, clients: Sequence[int], *, summed: bool, again: bool = False
    ) -> Fates:
        known = self._known.get(name) if again else None
        begins = self._next(name, clients) if known is None else float(known["begins"])
        found = fates(self._config, name, clients, begins, self._trace, summed=summed)
        told = described(found, begins)
        self._new[name] = told
        if known is None:
            self._known.pop(name, None)
            self._known[name] = told
        return found

    def _next(self, name: str, clients: Sequence[int]) -> float:
        """When a round can begin: after the last one, and once somebody is there."""
        before = next(reversed(self._known.items()), None)
        return next_begin(self._config, before, name, clients, self._trace)

    def _lost(self, clients: Sequence[int], found: Fates) -> dict[int, str]:
        names = [name for name in ("dropout", "trace") if getattr(self._config.availability, name)]
        causes = " or ".join(f"availability.{name}" for name in names)
        lost = dict.fromkeys(_chosen(clients, found.dropped), f"its answer was lost ({causes})")
        return lost | dict.fromkeys(_chosen(clients, found.late), LATE)


def _own_trace(config: Config, folder: RunFolder) -> AvailabilityTrace | None:
    if not config.availability.trace:
        return None
    own = folder.path / TRACE
    if folder.has(TRACE):
        return read_availability(own, config.data.clients)
    trace = read_availability(config.availability.trace, config.data.clients)
    folder.write_bytes(TRACE, Path(config.availability.trace).read_bytes())
    return trace


def _chosen(clients: Sequence[int], flags: NDArray[np.bool_]) -> list[int]:
    return [client for client, flag in zip(clients, flags.tolist(), strict=True) if flag]
