"""A client's answers about its mask: the randomised report, and in simulation the mask itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedprune import pruning
from fedprune.config import Scalar
from fedprune.errors import FederationError
from fedprune.federated.answering import (
    Outcome,
    check_layout,
    receipt_line,
    record_unprotected,
    refusal,
)
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import Station
from fedprune.privacy import Entry, Granted, Memoised, ThresholdResponse
from fedprune.privacy.chain import STORED
from fedprune.privacy.events import REPLACEMENT

_LOG = logging.getLogger(__name__)


def answer_report(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send each client's randomised mask: reserve, score, draw, store, and only then answer.

    The reservation comes before the data are touched. A deployed client whose scores fail still
    spends and reports, on a mask that says nothing: an error would be an answer about its data
    that no budget covers.
    """
    mechanism = _mechanism(question)
    select = selector(question)
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
        else refusal(answer)
        for entry, answer in zip(entries, answers, strict=True)
    ]


def answer_masks(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send masks and scores as they are: in simulation only, for baselines or trust = "none"."""
    station.simulation_only("to send its mask without noise")
    check_layout(question)
    scores = station.scores(question, clients)
    masks = selector(question)(scores)
    record_unprotected(station, question, clients, "raw-mask")
    packed = np.packbits(masks, axis=1)
    return [
        answer_content(
            client,
            {"mask": packed[i].tobytes(), "scores": scores[i].numpy().astype("<f4").tobytes()},
        )
        for i, client in enumerate(clients)
    ]


def _report_answer(station: Station, question: Question, entry: Entry, report: bytes) -> RecordDict:
    fields: dict[str, Scalar | bytes] = {
        "report": report,
        "epsilon": entry.epsilon,
        "fingerprint": question.text("fingerprint"),
        "receipt": receipt_line(station, replace(entry, stage=STORED, report=report)),
    }
    return answer_content(int(entry.client), fields)


def _mechanism(question: Question) -> ThresholdResponse:
    """Make the mechanism that was asked for; its parameters are checked, never trusted."""
    check_layout(question)
    _, layout = question.architecture.build()
    return ThresholdResponse(
        question.number("epsilon"),
        len(layout),
        block_units=question.whole("block_units", 1),
        threshold=question.whole("threshold", 1),
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


def selector(question: Question) -> Callable[[torch.Tensor], NDArray[np.bool_]]:
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
