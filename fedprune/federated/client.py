"""The client's side: Flower's ClientApp, and the same answers given for a whole cohort at once.

Every kind of question has one function that answers it for many clients of this process. Flower
calls it with one message; the local grid calls it with a cohort, so that scores of all clients
come from one batched pass and the ledger writes in batches. Both paths are the same code.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import nn

from fedprune import fairness, pruning
from fedprune.config import Scalar
from fedprune.errors import (
    ConfigError,
    FederationError,
    FedpruneError,
    LayoutMismatchError,
    PrivacyError,
)
from fedprune.federated import introduction
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.node_settings import client_number
from fedprune.federated.opening import station_of
from fedprune.federated.process import is_simulated
from fedprune.federated.station import RowSource, Station
from fedprune.federated.training import LocalTraining, train_locally
from fedprune.privacy import Entry, Granted, Memoised, ThresholdResponse
from fedprune.privacy.accounting import REPLACEMENT, UNPROTECTED
from fedprune.privacy.chain import SENT, STORED
from fedprune.runs import load_weights_vector, weights_vector

ANSWER_ERROR = (
    100  # code of a Flower error whose reason is one sentence for people; Flower uses 0-8
)

# What these say follows from the question, the ledger and the node's settings, never from rows.
_FREE_OF_DATA = (PrivacyError, FederationError, LayoutMismatchError, ConfigError)
_LOG = logging.getLogger(__name__)

Outcome: TypeAlias = RecordDict | FedpruneError
Answerer: TypeAlias = Callable[[Station, Question, Sequence[int]], list[Outcome]]


def answer_train(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Train on each client's rows and send the updated weights."""
    how = LocalTraining(
        epochs=question.whole("local_epochs", 1),
        batch_size=question.whole("batch_size", 1),
        learning_rate=question.number("learning_rate", 0.0),
        momentum=question.number("momentum", 0.0),
        weight_decay=question.number("weight_decay", 0.0),
    )

    workers = threading.local()

    def train_one(client: int) -> Outcome:
        if not hasattr(workers, "model"):
            torch.set_num_threads(1)  # a worker's own setting: one thread a client, everywhere
            workers.model, _ = question.architecture.build()
        model: nn.Module = workers.model
        load_weights_vector(model, question.weights)
        source = RowSource(station.dataset.train, station.index(client, "train"))
        inputs, labels = source.batch(0, len(source))
        order = station.generator(question, "train", question.round, client)
        try:
            loss = train_locally(model, inputs, labels, how, order)
        except FedpruneError as error:
            return error
        fields: dict[str, Scalar | bytes] = {
            "loss": loss,
            "rows": len(labels),
            "receipt": receipts[client],
        }
        return answer_content(client, fields, weights_vector(model))

    signed = _record_unprotected(station, question, clients, "model-update")
    receipts = dict(zip(clients, signed, strict=True))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=min(len(clients), os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(train_one, clients))
    torch.set_num_threads(threads)
    return outcomes


def answer_report(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send each client's randomised mask: reserve, score, draw, store, and only then answer.

    The reservation comes before the data are touched. A deployed client whose scores fail still
    spends and reports, on a mask that says nothing: an error would be an answer about its data
    that no budget covers.
    """
    mechanism = _mechanism(question)
    select = _selector(question)
    entries = [_report_entry(question, client, mechanism.epsilon) for client in clients]
    answers = station.ledger.reserve_many(entries)
    todo = [i for i, answer in enumerate(answers) if isinstance(answer, Granted)]
    if todo:
        asked = [clients[i] for i in todo]
        masks = _masks_or_nothing(station, question, asked, mechanism.num_units, select)
        sources = [
            station.randomness(question, "report", question.round, client) for client in asked
        ]
        drawn = [bytes(report) for report in mechanism.randomize_many(masks, sources)]
        station.ledger.store_many([(entries[i], drawn[k]) for k, i in enumerate(todo)])
        for k, i in enumerate(todo):
            answers[i] = Memoised(drawn[k])
    return [
        _report_answer(station, question, entry, answer.report)
        if isinstance(answer, Memoised)
        else _refusal(answer)
        for entry, answer in zip(entries, answers, strict=True)
    ]


def answer_masks(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send masks and scores as they are: in simulation only, for baselines or trust = "none"."""
    station.simulation_only("to send its mask without noise")
    _check_layout(question)
    scores = station.scores(question, clients)
    masks = _selector(question)(scores)
    _record_unprotected(station, question, clients, "raw-mask")
    packed = np.packbits(masks, axis=1)
    return [
        answer_content(
            client,
            {"mask": packed[i].tobytes(), "scores": scores[i].numpy().astype("<f4").tobytes()},
        )
        for i, client in enumerate(clients)
    ]


def answer_evaluate(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send count tables: group x dense right or wrong x pruned right or wrong."""
    if station.node is not None and station.node.tables != "unprotected":
        station.simulation_only(f"to send count tables: its own tables = {station.node.tables!r}")
    recorded = station.node is not None or question.text("tables") == "unprotected"
    split, group = question.text("split"), question.text("groups")
    places, owners = station.cohort_index(clients, split)
    column = station.rows(split).group(group)
    tables = np.zeros((len(clients), len(column.names), 2, 2), dtype=np.int64)
    if len(places):  # where there are more clients than rows, a cohort may have none
        tables = fairness.client_tables(
            station.correct(question, True, split, places),
            station.correct(question, False, split, places),
            column.codes[places],
            owners,
            len(clients),
            len(column.names),
        )
    receipts = [""] * len(clients)
    if recorded:
        receipts = _record_unprotected(station, question, clients, "count-table")
    return [
        answer_content(client, {"table": tables[i].astype("<i8").tobytes(), "receipt": receipts[i]})
        for i, client in enumerate(clients)
    ]


def answer_margins(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send certificate margins of the test rows: in simulation only."""
    station.simulation_only("to send margins of single examples")
    certifier = station.certifier(question.architecture, question.weights)
    places, owners = station.cohort_index(clients, "test")
    source = RowSource(station.dataset.test, places)
    margins = np.zeros(0)
    if len(places):
        inputs, labels = source.batch(0, len(source))
        margins = np.asarray(certifier.margins(inputs, labels), dtype=np.float64)
    return [
        answer_content(client, {"margins": margins[owners == i].astype("<f8").tobytes()})
        for i, client in enumerate(clients)
    ]


ANSWERERS: Mapping[str, Answerer] = {
    "train": answer_train,
    "evaluate": answer_evaluate,
    "query.report": answer_report,
    "query.masks": answer_masks,
    "query.margins": answer_margins,
}


def answer_introduction(contexts: Sequence[Context]) -> list[Outcome]:
    """Say who each client is and what its data look like; nothing here depends on its rows."""
    outcomes: list[Outcome] = []
    for context in contexts:
        station = station_of(context.run_config, context.node_config, context.run_id)
        client, node = client_number(context.node_config), station.node
        if node is None or station.signing_key is None:
            rows = len(station.index(client, "test"))
            found = Introduction(client, True, station.dataset.schema, test_rows=rows)
        else:
            left = Fraction(node.epsilon) - station.ledger.spent(str(client))
            key = station.signing_key.public
            found = Introduction(
                client, False, station.dataset.schema, epsilon_left=float(left), public_key=key
            )
        outcomes.append(found.to_content())
    return outcomes


def answer_cohort(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer messages that share one type and one content, each for its own client.

    An error that a person can act on becomes an error reply with its sentence; a bug is raised,
    save on a deployed client, whose replies say nothing that might depend on its data.
    """
    try:
        outcomes = _outcomes(messages[0], contexts)
    except FedpruneError as error:
        outcomes = [error] * len(messages)
    except Exception as error:
        if is_simulated():
            raise
        outcomes = [error] * len(messages)
    replies: list[Message] = []
    for message, outcome in zip(messages, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failure = Error(ANSWER_ERROR, _sayable(outcome))
            replies.append(Message(failure, reply_to=message))
        else:
            replies.append(Message(outcome, reply_to=message))
    return replies


def _outcomes(message: Message, contexts: Sequence[Context]) -> Sequence[RecordDict | Exception]:
    kind = message.metadata.message_type
    if kind == introduction.KIND:
        introduction.check_introduction_question(message.content)
        return answer_introduction(contexts)
    question = Question.from_content(message.content)
    first = contexts[0]
    station = station_of(first.run_config, first.node_config, first.run_id)
    station.admit(question)
    clients = [client_number(context.node_config) for context in contexts]
    return ANSWERERS[kind](station, question, clients)


def _sayable(error: Exception) -> str:
    """Put an error into a reply; a deployed client keeps what might tell of its data to itself."""
    if is_simulated() or isinstance(error, _FREE_OF_DATA):
        return f"{type(error).__name__}: {error}"
    _LOG.error("this client could not answer", exc_info=error)
    return f"{type(error).__name__}: this client could not answer; its own log says why"


def _answer_one(message: Message, context: Context) -> Message:
    return answer_cohort([message], [context])[0]


def make_client_app() -> ClientApp:
    """Make Flower's ClientApp with one function for every kind of question."""
    app = ClientApp()
    app.train()(_answer_one)
    app.evaluate()(_answer_one)
    for kind in (introduction.KIND, *ANSWERERS):
        if kind.startswith("query."):
            app.query(kind.removeprefix("query."))(_answer_one)
    return app


app = make_client_app()


# Parts of the answers.


def _report_answer(station: Station, question: Question, entry: Entry, report: bytes) -> RecordDict:
    fields: dict[str, Scalar | bytes] = {
        "report": report,
        "epsilon": entry.epsilon,
        "fingerprint": question.text("fingerprint"),
        "receipt": _receipt(station, replace(entry, stage=STORED, report=report)),
    }
    return answer_content(int(entry.client), fields)


def _refusal(answer: object) -> FedpruneError:
    if not isinstance(answer, FedpruneError):
        raise TypeError(f"not a ledger's answer: {answer!r}")
    return answer


def _mechanism(question: Question) -> ThresholdResponse:
    """Make the mechanism that was asked for; its parameters are checked, never trusted."""
    _check_layout(question)
    _, layout = question.architecture.build()
    return ThresholdResponse(
        question.number("epsilon"),
        len(layout),
        block_units=question.whole("block_units", 1),
        threshold=question.whole("threshold", 1),
    )


def _check_layout(question: Question) -> None:
    _, layout = question.architecture.build()
    if layout.fingerprint != question.text("fingerprint"):
        raise LayoutMismatchError(
            f"the server asks about layout {question.text('fingerprint')[:12]}, this client finds "
            f"{layout.fingerprint[:12]}; nothing was spent"
        )


def _report_entry(question: Question, client: int, epsilon: float) -> Entry:
    return Entry(
        client=str(client),
        run=question.run,
        round=question.round,
        kind="mask-report",
        question=question.digest,
        relation=REPLACEMENT,
        epsilon=epsilon,
    )


def _selector(question: Question) -> Callable[[torch.Tensor], NDArray[np.bool_]]:
    """Check what selection needs, before any data are touched; give the selection."""
    _, layout = question.architecture.build()
    criterion, keep = question.text("criterion"), question.number("keep_units")
    floor = question.whole("floor", 1)
    if criterion not in pruning.CRITERIA or not 0 < keep <= 1:
        raise FederationError(
            f"the server asks for criterion {criterion!r} and keep_units = {keep!r}; known are "
            f"{', '.join(pruning.CRITERIA)} and numbers in (0, 1]"
        )

    def select(scores: torch.Tensor) -> NDArray[np.bool_]:
        masks = pruning.select_many(scores, layout, keep_units=keep, floor=floor)
        return np.asarray(masks.numpy(), dtype=np.bool_)

    return select


def _masks_or_nothing(
    station: Station,
    question: Question,
    clients: Sequence[int],
    num_units: int,
    select: Callable[[torch.Tensor], NDArray[np.bool_]],
) -> NDArray[np.bool_]:
    try:
        return select(station.scores(question, clients))
    except Exception as error:
        if station.simulated:  # nobody's data are at stake: say what is wrong
            raise
        _LOG.error("scoring failed; the report is drawn from an empty mask", exc_info=error)
        return np.zeros((len(clients), num_units), dtype=np.bool_)


def _record_unprotected(
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
    return [_receipt(station, entry) for entry in entries]


def _receipt(station: Station, entry: Entry) -> str:
    """Sign what the ledger has just written down; "" in a simulation, which has no keys."""
    if station.signing_key is None:
        return ""
    return station.ledger.receipt(entry, station.signing_key).to_line()
