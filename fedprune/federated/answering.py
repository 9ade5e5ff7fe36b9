"""What all answers of a client have in common: checks, refusals, the ledger, receipts.

Every kind of question has one function that answers it for many clients of this process (an
`Answerer`). Flower calls it with one message; the local grid calls it with a cohort, so that
scores of all clients come from one batched pass and the ledger writes in batches. Both paths are
the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from flwr.app import RecordDict

from fedprune.errors import FedpruneError, LayoutMismatchError
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import Entry
from fedprune.privacy.chain import SENT
from fedprune.privacy.events import UNPROTECTED

Outcome: TypeAlias = RecordDict | FedpruneError
Answerer: TypeAlias = Callable[[Station, Question, Sequence[int]], list[Outcome]]


def check_layout(question: Question) -> None:
    """Compare the layout that the server asks about with the one that its architecture has here.

    Raises:
        LayoutMismatchError: if their fingerprints differ.
    """
    _, layout = question.architecture.build()
    if layout.fingerprint != question.text("fingerprint"):
        raise LayoutMismatchError(
            f"the server asks about layout {question.text('fingerprint')[:12]}, this client finds "
            f"{layout.fingerprint[:12]}; nothing was spent"
        )


def refusal(answer: object) -> FedpruneError:
    """Take a ledger's refusal as the outcome that it is."""
    if not isinstance(answer, FedpruneError):
        raise TypeError(f"not a ledger's answer: {answer!r}")
    return answer


def record_unprotected(
    station: Station, question: Question, clients: Sequence[int], kind: str
) -> list[str]:
    """Write down what is sent without a guarantee; give each client's receipt."""
    if question.counterfactual and station.simulated:  # a baseline: nothing is sent for it
        return [""] * len(clients)
    template = Entry(
        client="",
        run=question.run,
        round=question.round,
        kind=kind,
        question=question.digest,
        relation=UNPROTECTED,
        stage=SENT,
    )
    entries = [replace(template, client=str(client)) for client in clients]
    station.ledger.record_unprotected(entries)
    return [receipt_line(station, entry) for entry in entries]


def receipt_line(station: Station, entry: Entry) -> str:
    """Sign what the ledger has just written down; "" in a simulation, which has no keys."""
    if station.signing_key is None:
        return ""
    return station.ledger.receipt(entry, station.signing_key).to_line()
