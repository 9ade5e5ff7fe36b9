"""What all answers of a client have in common: checks, refusals, the ledger, receipts.

Every kind of question has one function that answers it for many clients of this process (an
`Answerer`). Flower calls it with one message; the local grid calls it with a cohort, so that
scores of all clients come from one batched pass and the ledger writes in batches. Both paths are
the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeGuard, overload

import numpy as np
import torch
from flwr.app import RecordDict

from fedprune import pruning
from fedprune.errors import (
    BudgetExceededError,
    FederationError,
    FedpruneError,
    LayoutMismatchError,
    QuestionChangedError,
)
from fedprune.federated.answers import Answers, Outcomes, Rows
from fedprune.federated.answers import Outcome as Outcome
from fedprune.federated.content_hash import RECEIPT, content_hash
from fedprune.federated.group_scores import GroupScores
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import CohortAnswer, Entry, Granted, Memoised
from fedprune.privacy.budgets.events import UNPROTECTED, Event
from fedprune.privacy.ledgers.chain import SENT
from fedprune.runs import load_weights_vector

Answerer: TypeAlias = Callable[[Station, Question, Sequence[int]], Outcomes]


def check_layout(question: Question) -> None:
    """Compare the layout that the server asks about with the one that its architecture has here.

    Raises:
        LayoutMismatchError: if their fingerprints differ.
    """
    layout = question.architecture.own_layout
    if layout.fingerprint != question.text("fingerprint"):
        raise LayoutMismatchError(
            f"the server asks about layout {question.text('fingerprint')[:12]}, this client finds "
            f"{layout.fingerprint[:12]}; nothing was spent"
        )


def check_scorable(station: Station, question: Question, criterion: str = "taylor") -> None:
    """Refuse, before anything is reserved, what no deployed client could score whatever its data.

    A client that has reserved answers even where its scores fail, since an error then could be an
    answer about its data; what fails for made-up inputs too says nothing about them.

    Raises:
        FederationError: saying why.
    """
    if station.simulated:  # its errors may be said, and its weights are the run's own
        return
    if criterion == "oracle":
        raise FederationError(
            "a deployed client refuses the criterion 'oracle', which takes a pass for every unit; "
            "nothing was spent"
        )
    schema = station.dataset.schema
    inputs = torch.randn(2, *schema.input_shape, generator=torch.Generator().manual_seed(0))
    try:
        GroupScores.check(question, schema, criterion)
        model, layout = question.architecture.build()
        load_weights_vector(model, question.weights)
        for probe in (inputs, torch.zeros_like(inputs)):
            clients, labels = torch.arange(len(probe)), torch.zeros(len(probe), dtype=torch.int64)
            pruning.score_clients(model, layout, probe, labels, clients, criterion=criterion)
    except FedpruneError as error:
        raise FederationError(
            f"nobody could score what the server asks about ({error}); nothing was spent"
        ) from None


def refusal(answer: object) -> FedpruneError:
    """Take a ledger's refusal as the outcome that it is."""
    if not isinstance(answer, FedpruneError):
        raise TypeError(f"not a ledger's answer: {answer!r}")
    return answer


@overload
def send_unprotected(
    station: Station,
    question: Question,
    kind: str,
    clients: Sequence[int],
    outcomes: list[Outcome],
) -> list[Outcome]: ...


@overload
def send_unprotected(
    station: Station, question: Question, kind: str, clients: Sequence[int], outcomes: Answers
) -> Outcomes: ...


def send_unprotected(
    station: Station,
    question: Question,
    kind: str,
    clients: Sequence[int],
    outcomes: Outcomes,
) -> Outcomes:
    """Write down what is about to be sent without a guarantee, and put each client's receipt in.

    A receipt binds everything else in the answer by its hash; a simulation gives none. An error
    is on record too, since it is an answer of a kind, but has no receipt.
    """
    if question.counterfactual and station.simulated:  # a baseline: nothing is sent for it
        return outcomes
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
        return outcomes
    contents = outcomes.outcomes(clients) if isinstance(outcomes, Answers) else outcomes
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
    return contents


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


def reserve(station: Station, template: Entry, clients: Sequence[int]) -> CohortAnswer:
    """Reserve one event for every client, a simulation's cohort in one row of its ledger."""
    if not station.ledger.private:
        return station.ledger.reserve_cohort(template, clients)
    answers = station.ledger.reserve_many([replace(template, client=str(c)) for c in clients])
    granted = [i for i, answer in enumerate(answers) if isinstance(answer, Granted)]
    stored = {i: one.report for i, one in enumerate(answers) if isinstance(one, Memoised)}
    refused = {
        i: one
        for i, one in enumerate(answers)
        if isinstance(one, BudgetExceededError | QuestionChangedError)
    }
    return CohortAnswer(
        clients=np.array(clients, dtype=np.int64),
        granted=np.array(granted, dtype=np.int64),
        resumed=np.array([answers[i] != Granted() for i in granted], dtype=np.bool_),
        memoised=np.array(list(stored), dtype=np.int64),
        reports=tuple(stored.values()),
        refused=refused,
    )


def store(station: Station, template: Entry, clients: Sequence[int], reports: Rows) -> None:
    """Store the clients' answers, [n, size]; on return they are on disk and may be sent."""
    if station.ledger.private:
        entries = [replace(template, client=str(client)) for client in clients]
        texts = [report.tobytes() for report in reports]
        station.ledger.store_many(list(zip(entries, texts, strict=True)))
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
