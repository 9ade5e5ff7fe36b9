"""The first question of every run: who is there, what do your data look like, what runs you?

Nothing in an answer is computed from a client's rows: the shape of an input, the classes and the
names of the groups are declared by the data set's own code. What a client says here decides
whether the server treats the run as a simulation; it decides nothing at any client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedprune.config import Scalar
from fedprune.data import Schema
from fedprune.errors import FederationError
from fedprune.federated.answers import Answers
from fedprune.federated.messages import answer_content, check_sender, sender

KIND = "query.introduction"


@dataclass(frozen=True, slots=True)
class Introduction:
    """What one client says of itself.

    Attributes:
        client: its number, from its own node config.
        simulated: whether its process is part of a simulation.
        schema: what its data set's code declares.
        test_rows: how many test rows it has; None for a deployed client, which keeps that secret.
        epsilon_left: what its client-level budget still allows; None in a simulation.
        record_epsilon_left: what its record-level budget still allows; None where it has none.
        public_key: that signs its receipts; "" in a simulation.
    """

    client: int
    simulated: bool
    schema: Schema
    test_rows: int | None = None
    epsilon_left: float | None = None
    record_epsilon_left: float | None = None
    public_key: str = ""

    def to_content(self) -> RecordDict:
        """Write as Flower records."""
        fields: dict[str, Scalar | bytes] = {
            "simulated": self.simulated,
            "data": self.schema.to_json(),
            "public_key": self.public_key,
        }
        if self.test_rows is not None:
            fields["test_rows"] = self.test_rows
        for name in ("epsilon_left", "record_epsilon_left"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        return answer_content(self.client, fields)

    @staticmethod
    def from_content(content: RecordDict) -> Introduction:
        """Read what `to_content` wrote.

        Raises:
            FedpruneError: if the client runs another version, or its answer is malformed.
        """
        record = content.config_records.get("answer", ConfigRecord())
        client, simulated = record.get("client"), record.get("simulated")
        rows = record.get("test_rows")
        check_sender(record, f"client {client!r}", "the server")
        good = isinstance(client, int) and not isinstance(client, bool) and client >= 0
        if not isinstance(client, int) or not good or not isinstance(simulated, bool):
            raise FederationError(
                f"a client introduced itself as client = {client!r}, simulated = {simulated!r}; "
                "a number of at least 0 and true or false are needed"
            )
        return Introduction(
            client,
            simulated,
            Schema.from_json(str(record.get("data", ""))),
            rows if isinstance(rows, int) else None,
            _number(record, "epsilon_left"),
            _number(record, "record_epsilon_left"),
            str(record.get("public_key", "")),
        )


def simulated_answers(
    clients: NDArray[np.int64], schema: Schema, test_rows: Sequence[int]
) -> Answers:
    """Introduce simulated clients, who differ in nothing but their number and test rows."""
    shared: dict[str, Scalar | bytes] = {
        "simulated": True,
        "data": schema.to_json(),
        "public_key": "",
    }
    return Answers(clients, {"test_rows": np.array(test_rows, dtype=np.int64)}, shared)


def read_together(answers: Answers) -> Iterator[Introduction]:
    """Read what `simulated_answers` wrote, in this process."""
    schema = Schema.from_json(str(answers.shared["data"]))
    rows = answers.columns["test_rows"]
    for client, test_rows in zip(answers.clients.tolist(), np.asarray(rows).tolist(), strict=True):
        yield Introduction(client, True, schema, test_rows)


def _number(record: ConfigRecord, name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else None


def introduction_question() -> RecordDict:
    """Ask a node who it is."""
    return RecordDict({"introduction": ConfigRecord(sender())})


def check_introduction_question(content: RecordDict) -> None:
    """Compare the server's version with this client's.

    Raises:
        FederationError: if they differ.
    """
    check_sender(
        content.config_records.get("introduction", ConfigRecord()), "the server", "this client"
    )


def agreed(introductions: Mapping[int, Introduction]) -> tuple[bool, Schema]:
    """Find what all clients agree on: whether they are simulated, and what their data look like.

    Raises:
        FederationError: naming a client that differs from the first.
    """
    clients: Sequence[int] = sorted(introductions)
    first = introductions[clients[0]]
    for client in clients[1:]:
        other = introductions[client]
        if other.simulated != first.simulated:
            raise FederationError(
                f"client {clients[0]} says simulated = {first.simulated}, client {client} says "
                f"simulated = {other.simulated}; one run is either a simulation or a deployment"
            )
        if other.schema != first.schema:
            raise FederationError(
                f"the data of client {client} have another shape, classes or groups than those of "
                f"client {clients[0]}: {other.schema.to_json()} against {first.schema.to_json()}"
            )
    return first.simulated, first.schema
