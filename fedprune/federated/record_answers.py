"""A client's answer under trust = "record": the noised sum of its records' bounded scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedprune import pruning
from fedprune.config import Scalar
from fedprune.errors import FederationError
from fedprune.federated.answering import (
    Outcome,
    charged,
    check_layout,
    check_scorable,
    receipt_line,
    refusal,
)
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import RowSource, Station, threads
from fedprune.privacy import Entry, Granted, Memoised
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD
from fedprune.privacy.ledgers.chain import STORED
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.pruning.scores.records import score_records
from fedprune.runs import load_weights_vector

KIND = "record-scores"
_ROWS_AT_ONCE = 5000

_LOG = logging.getLogger(__name__)

Sums = NDArray[np.int64]


def record_settings(mechanism: RecordScores) -> dict[str, Scalar]:
    """Write a mechanism as a question carries it."""
    return {"epsilon": mechanism.epsilon, "delta": mechanism.delta}


def answer_record_scores(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    """Send each client's noised sum of scores: reserve, score, draw, store, and only then answer.

    The reservation comes before the data are touched. A deployed client whose scores fail still
    spends and reports, on no record: an error would be an answer about its data that no budget
    covers.
    """
    mechanism = _mechanism(question)
    check_scorable(station, question, question.text("criterion"))
    entries = [record_entry(question, client) for client in clients]
    answers = station.ledger.reserve_many(entries)
    todo = [i for i, answer in enumerate(answers) if isinstance(answer, Granted)]
    if todo:
        asked = [clients[i] for i in todo]
        drawn = [
            bytes(
                mechanism.randomize_sum(
                    total, station.randomness(question, KIND, question.round, client)
                )
            )
            for client, total in zip(
                asked, _sums_or_nothing(station, question, asked, mechanism), strict=True
            )
        ]
        station.ledger.store_many([(entries[i], drawn[k]) for k, i in enumerate(todo)])
        for k, i in enumerate(todo):
            answers[i] = Memoised(drawn[k])
    return [
        _answer(station, question, entry, answer.report)
        if isinstance(answer, Memoised)
        else refusal(answer)
        for entry, answer in zip(entries, answers, strict=True)
    ]


def _mechanism(question: Question) -> RecordScores:
    """Make the mechanism that was asked for; its parameters are checked, never trusted."""
    check_layout(question)
    _, layout = question.architecture.build()
    asked = question.text("criterion")
    fitting = [
        name
        for name, criterion in pruning.CRITERIA.items()
        if not (criterion.is_signed or criterion.needs_seed)
    ]
    if asked not in fitting:
        raise FederationError(
            f"the server asks for records' scores by {asked!r}; known are {', '.join(fitting)}"
        )
    return RecordScores(question.number("epsilon"), question.number("delta"), len(layout))


def record_entry(question: Question, client: int) -> Entry:
    """The ledger row that a client reserves for its noised sum."""
    return charged(question, str(client), KIND, ADD_REMOVE_RECORD, _mechanism(question).event)


def _sums_or_nothing(
    station: Station, question: Question, clients: Sequence[int], mechanism: RecordScores
) -> Sums:
    try:
        return _sums(station, question, clients, mechanism)
    except Exception as error:
        if station.simulated:  # nobody's data are at stake: say what is wrong
            raise
        _LOG.error("scoring failed; the report is drawn from no record", exc_info=error)
        return np.zeros((len(clients), mechanism.num_units), dtype=np.int64)


def _sums(
    station: Station, question: Question, clients: Sequence[int], mechanism: RecordScores
) -> Sums:
    """Sum the contributions of each client's records: [len(clients), num_units], in units."""
    places, owners = station.cohort_index(clients, "train")
    model, layout = question.architecture.build()
    load_weights_vector(model, question.weights)
    sums = np.zeros((len(clients), mechanism.num_units), dtype=np.int64)
    with threads(1):  # with more, a row's rounding might depend on the rows beside it
        for start in range(0, len(places), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            source = RowSource(station.dataset.train, places[part])
            scores = score_records(model, layout, source, question.text("criterion"))
            np.add.at(sums, owners[part], mechanism.contributions(scores.numpy()))
    return sums


def _answer(station: Station, question: Question, entry: Entry, report: bytes) -> Outcome:
    fields: dict[str, Scalar | bytes] = {
        "report": report,
        "epsilon": question.number("epsilon"),
        "delta": question.number("delta"),
        "fingerprint": question.text("fingerprint"),
        "receipt": receipt_line(station, replace(entry, stage=STORED, report=report)),
    }
    return answer_content(int(entry.client), fields)
