"""What all answers of a client have in common: checks, refusals, the ledger, receipts.

Every kind of question has one function that answers it for many clients of this process (an
`Answerer`). Flower calls it with one message; the local grid calls it with a cohort, so that
scores of all clients come from one batched pass and the ledger writes in batches. Both paths are
the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeGuard

from flwr.app import RecordDict

from fedprune.errors import FedpruneError, LayoutMismatchError
from fedprune.federated.content_hash import RECEIPT, content_hash
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import Entry, Granted, Memoised
from fedprune.privacy.budgets.events import UNPROTECTED, Event
from fedprune.privacy.ledgers.chain import SENT
from fedprune.privacy.ledgers.ledger import Answer

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


def send_unprotected(
    station: Station,
    question: Question,
    kind: str,
    clients: Sequence[int],
    contents: Sequence[Outcome],
) -> list[Outcome]:
    """Write down what is about to be sent without a guarantee, and put each client's receipt in.

    A receipt binds everything else in the answer by its hash; a simulation gives none. An error
    is on record too, since it is an answer of a kind, but has no receipt.
    """
    if question.counterfactual and station.simulated:  # a baseline: nothing is sent for it
        return list(contents)
    template = Entry(
        client="",
        run=question.run,
        round=question.round,
        kind=kind,
        question=question.digest,
        relation=UNPROTECTED,
        stage=SENT,
    )
    if not station.ledger.private:
        station.ledger.record_unprotected_cohort(template, clients)
        return list(contents)
    entries = [
        replace(
            template,
            client=str(client),
            content_hash=content_hash(found) if is_answer(found) else "",
        )
        for client, found in zip(clients, contents, strict=True)
    ]
    station.ledger.record_unprotected(entries)
    for entry, found in zip(entries, contents, strict=True):
        if is_answer(found):
            found.config_records["answer"][RECEIPT] = receipt_line(station, entry)
    return list(contents)


def charged(question: Question, client: str, kind: str, relation: str, event: Event) -> Entry:
    """The ledger row that a client reserves for an answer of its own to a question."""
    return Entry.charged(
        client=client,
        run=question.run,
        round=question.round,
        kind=kind,
        question=question.digest if not client else question.digest_for(int(client)),
        relation=relation,
        event=event,
    )


def reserve(station: Station, template: Entry, clients: Sequence[int]) -> list[Answer]:
    """Reserve one event for every client, a simulation's cohort in one row of its ledger."""
    if station.ledger.private:
        return station.ledger.reserve_many([replace(template, client=str(c)) for c in clients])
    found = station.ledger.reserve_cohort(template, clients)
    answers: dict[int, Answer] = dict(found.refused)
    resumed = zip(found.granted.tolist(), found.resumed.tolist(), strict=True)
    answers |= {place: Granted(again) for place, again in resumed}
    stored = zip(found.memoised.tolist(), found.reports, strict=True)
    answers |= {place: Memoised(report) for place, report in stored}
    return [answers[place] for place in range(len(clients))]


def store(
    station: Station, template: Entry, clients: Sequence[int], reports: Sequence[bytes]
) -> None:
    """Store the clients' answers; on return they are on disk and may be sent."""
    if not clients:
        return
    if station.ledger.private:
        entries = [replace(template, client=str(client)) for client in clients]
        station.ledger.store_many(list(zip(entries, reports, strict=True)))
    else:
        station.ledger.store_cohort(template, clients, reports)


def is_answer(outcome: Outcome) -> TypeGuard[RecordDict]:
    """Whether an outcome is an answer, not an error."""
    return isinstance(outcome, RecordDict)


def receipt_line(station: Station, entry: Entry) -> str:
    """Sign what the ledger has just written down; "" in a simulation, which has no keys."""
    if station.signing_key is None:
        return ""
    return station.ledger.receipt(entry, station.signing_key).to_line()
