"""A client's answers about its mask: the randomised report, and in simulation the mask itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune import pruning
from fedprune.config import Scalar
from fedprune.errors import FederationError, FedpruneError
from fedprune.federated.answering import (
    charged,
    check_layout,
    check_scorable,
    receipt_line,
    reserve,
    send_unprotected,
    store,
)
from fedprune.federated.answers import Answers, Column, Outcomes, Rows, as_rows
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import (
    Entry,
    Mechanism,
    ThresholdResponse,
    assigned_blocks,
    public_ranks,
)
from fedprune.privacy.budgets.events import REPLACEMENT, PureEvent
from fedprune.privacy.ledgers.chain import STORED

_LOG = logging.getLogger(__name__)
_MOST_CLIENTS = 10**7


def answer_report(station: Station, question: Question, clients: Sequence[int]) -> Answers:
    """Send each client's randomised mask: reserve, score, draw, store, and only then answer.

    The reservation comes before the data are touched. A deployed client whose scores fail still
    spends and reports, on a mask that says nothing: an error would be an answer about its data
    that no budget covers.
    """
    asked_for = _asked_for(question)
    select = selector(question)
    asked_for.check_numbers(clients)
    check_scorable(station, question, question.text("criterion"))
    template = report_entry(question)
    found = reserve(station, template, clients)
    size = asked_for.mechanism.report_bytes
    reports = np.zeros((len(clients), size), dtype=np.uint8)
    if len(found.granted):
        asked = found.clients[found.granted].tolist()
        drawn = _draw(station, question, asked, asked_for, select)
        store(station, template, asked, drawn)
        reports[found.granted] = drawn
    reports[found.memoised] = as_rows(found.reports, size)
    refused = {int(found.clients[place]): error for place, error in found.refused.items()}
    answering = np.ones(len(clients), dtype=bool)
    answering[list(found.refused)] = False
    return _report_answers(
        station, question, template, found.clients[answering], reports[answering], refused
    )


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

    def check_numbers(self, clients: Sequence[int]) -> None:
        """Refuse to look for a block of a client that the server does not count.

        Raises:
            FederationError: naming the first such client.
        """
        total = math.inf if self.ranks is None else len(self.ranks)
        for client in clients:
            if client >= total:
                raise FederationError(
                    f"the server assigns blocks to {total} clients, numbers 0 to {total - 1}; this "
                    f"client is number {client}; nothing was spent"
                )

    def blocks(self, clients: Sequence[int]) -> NDArray[np.int64] | None:
        """The block of each client; None where clients draw their own."""
        if self.ranks is None:
            return None
        return assigned_blocks(self.ranks[list(clients)], self.mechanism.num_blocks)


def _asked_for(question: Question) -> _AskedFor:
    """Read what the server asks for; nothing of it is trusted, all of it is checked."""
    check_layout(question)
    layout = question.architecture.own_layout
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
) -> Rows:
    """Score, select and randomise for clients whose budget is reserved: [count, report_bytes]."""
    masks = _masks_or_nothing(station, question, clients, asked_for.num_units, select)
    sources = [station.randomness(question, "report", question.round, i) for i in clients]
    return asked_for.mechanism.randomize_rows(
        masks[:, asked_for.units], sources, asked_for.blocks(clients)
    )


def answer_masks(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Send masks and scores as they are: in simulation only, for baselines or trust = "none"."""
    station.simulation_only("to send its mask without noise")
    check_layout(question)
    scores = station.scores(question, clients)
    columns = {
        "mask": np.packbits(selector(question)(scores), axis=1),
        "scores": np.ascontiguousarray(scores.numpy(), dtype="<f4").view(np.uint8),
    }
    answers = Answers(np.array(clients, dtype=np.int64), columns)
    return send_unprotected(station, question, "raw-mask", clients, answers)


def _report_answers(
    station: Station,
    question: Question,
    template: Entry,
    clients: NDArray[np.int64],
    reports: Rows,
    refused: Mapping[int, FedpruneError],
) -> Answers:
    shared: dict[str, Scalar | bytes] = {
        "epsilon": template.epsilon,
        "fingerprint": question.text("fingerprint"),
    }
    columns: dict[str, Column] = {"report": reports}
    if station.signing_key is None:
        return Answers(clients, columns, {**shared, "receipt": ""}, refused)
    columns["receipt"] = [
        receipt_line(
            station, replace(template, client=str(client), stage=STORED, report=report.tobytes())
        )
        for client, report in zip(clients.tolist(), reports, strict=True)
    ]
    return Answers(clients, columns, shared, refused)


def selector(question: Question) -> Callable[[torch.Tensor], NDArray[np.bool_]]:
    """Check what selection needs, before any data are touched; give the selection."""
    layout = question.architecture.own_layout
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
