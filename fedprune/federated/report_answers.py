"""A client's answers about its mask: the randomised report, and in simulation the mask itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedprune import pruning
from fedprune.config import Scalar
from fedprune.errors import FederationError
from fedprune.federated.answering import (
    Outcome,
    charged,
    check_layout,
    receipt_line,
    refusal,
    reserve,
    send_unprotected,
    store,
)
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import Station
from fedprune.privacy import (
    Entry,
    Granted,
    Mechanism,
    Memoised,
    ThresholdResponse,
    assigned_blocks,
    public_ranks,
)
from fedprune.privacy.budgets.events import REPLACEMENT, PureEvent
from fedprune.privacy.ledgers.chain import STORED

_LOG = logging.getLogger(__name__)
_MOST_CLIENTS = 10**7


def answer_report(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send each client's randomised mask: reserve, score, draw, store, and only then answer.

    The reservation comes before the data are touched. A deployed client whose scores fail still
    spends and reports, on a mask that says nothing: an error would be an answer about its data
    that no budget covers.
    """
    asked_for = _asked_for(question)
    select = selector(question)
    template = report_entry(question)
    answers = reserve(station, template, clients)
    todo = [i for i, answer in enumerate(answers) if isinstance(answer, Granted)]
    if todo:
        asked = [clients[i] for i in todo]
        drawn = _draw(station, question, asked, asked_for, select)
        store(station, template, asked, drawn)
        for k, i in enumerate(todo):
            answers[i] = Memoised(drawn[k])
    return [
        _report_answer(station, question, replace(template, client=str(client)), answer.report)
        if isinstance(answer, Memoised)
        else refusal(answer)
        for client, answer in zip(clients, answers, strict=True)
    ]


def report_entry(question: Question) -> Entry:
    """The ledger row that each client reserves for its report, its number left open."""
    event = PureEvent(question.number("epsilon"))
    return charged(question, "", "mask-report", REPLACEMENT, event)


@dataclass(frozen=True)
class _AskedFor:
    """What a report must be about: some of the layout's units, and for each client which block."""

    mechanism: Mechanism
    units: NDArray[np.int64]
    num_units: int
    ranks: NDArray[np.int64] | None

    def blocks(self, clients: Sequence[int]) -> NDArray[np.int64] | None:
        """The block of each client; None where clients draw their own."""
        if self.ranks is None:
            return None
        return assigned_blocks(self.ranks[list(clients)], self.mechanism.num_blocks)


def _asked_for(question: Question) -> _AskedFor:
    """Read what the server asks for; nothing of it is trusted, all of it is checked."""
    check_layout(question)
    _, layout = question.architecture.build()
    units = _units(question, len(layout))
    mechanism = ThresholdResponse(
        question.number("epsilon"),
        len(units),
        block_units=question.whole("block_units", 1),
        threshold=question.whole("threshold", 1),
    )
    label, total = question.text("ranks"), question.whole("clients", 1)
    if not label:
        return _AskedFor(mechanism, units, len(layout), None)
    if total > _MOST_CLIENTS:
        raise FederationError(f"a federation has at most {_MOST_CLIENTS} clients, got {total}")
    return _AskedFor(mechanism, units, len(layout), public_ranks(total, label))


def _units(question: Question, num_units: int) -> NDArray[np.int64]:
    """Which units are asked about: a bitmap in hexadecimal, "" for all."""
    text = question.text("units")
    if not text:
        return np.arange(num_units, dtype=np.int64)
    try:
        packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        raise FederationError("the server's units are not hexadecimal digits") from None
    bits = np.unpackbits(packed)
    if len(packed) != (num_units + 7) // 8 or bits[num_units:].any() or not bits.any():
        raise FederationError(f"the server's units are no bitmap of {num_units} units, one set")
    return np.flatnonzero(bits).astype(np.int64)


def _draw(
    station: Station,
    question: Question,
    clients: Sequence[int],
    asked_for: _AskedFor,
    select: Callable[[torch.Tensor], NDArray[np.bool_]],
) -> list[bytes]:
    """Score, select and randomise for clients whose budget is reserved."""
    masks = _masks_or_nothing(station, question, clients, asked_for.num_units, select)
    sources = [station.randomness(question, "report", question.round, i) for i in clients]
    reports = asked_for.mechanism.randomize_many(
        masks[:, asked_for.units], sources, asked_for.blocks(clients)
    )
    return [bytes(report) for report in reports]


def answer_masks(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send masks and scores as they are: in simulation only, for baselines or trust = "none"."""
    station.simulation_only("to send its mask without noise")
    check_layout(question)
    scores = station.scores(question, clients)
    masks = selector(question)(scores)
    packed = np.packbits(masks, axis=1)
    contents: list[Outcome] = [
        answer_content(
            client,
            {"mask": packed[i].tobytes(), "scores": scores[i].numpy().astype("<f4").tobytes()},
        )
        for i, client in enumerate(clients)
    ]
    return send_unprotected(station, question, "raw-mask", clients, contents)


def _report_answer(station: Station, question: Question, entry: Entry, report: bytes) -> RecordDict:
    fields: dict[str, Scalar | bytes] = {
        "report": report,
        "epsilon": entry.epsilon,
        "fingerprint": question.text("fingerprint"),
        "receipt": receipt_line(station, replace(entry, stage=STORED, report=report)),
    }
    return answer_content(int(entry.client), fields)


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
