"""The client's side: Flower's ClientApp, and the same answers given for a whole cohort at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedprune.errors import (
    ConfigError,
    FederationError,
    FedpruneError,
    LayoutMismatchError,
    PrivacyError,
)
from fedprune.federated import introduction
from fedprune.federated.again_answers import answer_train_again
from fedprune.federated.answering import Answerer
from fedprune.federated.answers import Answers, Outcome, Outcomes
from fedprune.federated.evaluation_answers import answer_evaluate, answer_margins
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question, own_part
from fedprune.federated.node_settings import client_number
from fedprune.federated.norm_answers import KIND as NORMS
from fedprune.federated.norm_answers import answer_norms
from fedprune.federated.opening import station_of
from fedprune.federated.private_training import answer_train_private
from fedprune.federated.process import is_simulated
from fedprune.federated.record_answers import answer_record_scores
from fedprune.federated.report_answers import answer_masks, answer_report
from fedprune.federated.secure_answers import SUM_ANSWERERS
from fedprune.federated.station import Station
from fedprune.federated.table_answers import answer_table
from fedprune.federated.training_answers import answer_train
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT

ANSWER_ERROR = (
    100  # code of a Flower error whose reason is one sentence for people; Flower uses 0-8
)

# What these say follows from the question, the ledger and the node's settings, never from rows.
_FREE_OF_DATA = (PrivacyError, FederationError, LayoutMismatchError, ConfigError)
_LOG = logging.getLogger(__name__)

ANSWERERS: Mapping[str, Answerer] = {
    "train": answer_train,
    "train.private": answer_train_private,
    "train.again": answer_train_again,
    "evaluate": answer_evaluate,
    "query.report": answer_report,
    "query.record_scores": answer_record_scores,
    "query.masks": answer_masks,
    "query.table": answer_table,
    NORMS: answer_norms,
    "query.margins": answer_margins,
    **SUM_ANSWERERS,
}


def answer_introduction(station: Station, clients: Sequence[int]) -> Answers:
    """Say who each client is and what its data look like; nothing here depends on its rows."""
    numbers = np.array(clients, dtype=np.int64)
    if station.node is None or station.signing_key is None:
        rows = [len(station.index(client, "test")) for client in clients]
        return introduction.simulated_answers(numbers, station.dataset.schema, rows)
    outcomes: list[Outcome] = []
    for client in clients:
        left = {
            relation: station.ledger.epsilon_left(str(client), relation)
            for relation in station.ledger.budgets
        }
        found = Introduction(
            client,
            False,
            station.dataset.schema,
            epsilon_left=left.get(REPLACEMENT),
            record_epsilon_left=left.get(ADD_REMOVE_RECORD),
            public_key=station.signing_key.public,
        )
        outcomes.append(found.to_content())
    return Answers.of(clients, outcomes)


def answer_cohort(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer messages that share one type and one content, each for its own client.

    An error that a person can act on becomes an error reply with its sentence; a bug is raised,
    save on a deployed client, whose replies say nothing that might depend on its data.
    """
    found: Sequence[RecordDict | Exception]
    try:
        clients = [client_number(context.node_config) for context in contexts]
        contents = [message.content for message in messages]
        outcomes = _outcomes(messages[0].metadata.message_type, contents, clients, contexts[0])
        found = outcomes.outcomes(clients) if isinstance(outcomes, Answers) else outcomes
    except FedpruneError as error:
        found = [error] * len(messages)
    except Exception as error:
        if is_simulated():
            raise
        found = [error] * len(messages)
    replies: list[Message] = []
    for message, outcome in zip(messages, found, strict=True):
        if isinstance(outcome, Exception):
            failure = Error(ANSWER_ERROR, _sayable(outcome))
            replies.append(Message(failure, reply_to=message))
        else:
            replies.append(Message(outcome, reply_to=message))
    return replies


def answer_together(
    kind: str, contents: Sequence[RecordDict], clients: Sequence[int], context: Context
) -> Answers:
    """Answer as `answer_cohort` does, for simulated clients that need no message each.

    Args:
        kind: of the question: a message's type.
        contents: what each client is asked, alike save what is told to one client alone.
        clients: their numbers, one for each content.
        context: of any of them.
    """
    try:
        outcomes = _outcomes(kind, contents, clients, context)
        answers = outcomes if isinstance(outcomes, Answers) else Answers.of(clients, outcomes)
    except FedpruneError as error:
        answers = Answers.none(clients, error)
    failures = {c: FederationError(_sayable(error)) for c, error in answers.failures.items()}
    return replace(answers, failures=failures)


def _outcomes(
    kind: str, contents: Sequence[RecordDict], clients: Sequence[int], context: Context
) -> Outcomes:
    if kind == introduction.KIND:
        introduction.check_introduction_question(contents[0])
        return answer_introduction(_station(context), clients)
    question = Question.from_content(contents[0])
    different = {id(content): content for content in contents}  # most often all share one
    own = {k: v for content in different.values() for k, v in own_part(content).items()}
    station = _station(context)
    station.admit(question)
    return ANSWERERS[kind](station, replace(question, own=own), clients)


def _station(context: Context) -> Station:
    return station_of(context.run_config, context.node_config, context.run_id)


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
    kinds = {"train": app.train, "evaluate": app.evaluate, "query": app.query}
    for kind in (introduction.KIND, *ANSWERERS):
        category, _, action = kind.partition(".")
        kinds[category](action or "default")(_answer_one)
    return app


app: ClientApp = make_client_app()
