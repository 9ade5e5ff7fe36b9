"""A client's DP-SGD rounds: record-level protected weights, charged to its own ledger.

Nothing else leaves the client: no loss and no number of rows, which no noise covers. The server
therefore weighs clients equally. Batch norms and every other buffer come back as they were sent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedprune.config import Scalar
from fedprune.errors import FederationError, LedgerError, ModelError
from fedprune.federated.answering import (
    Outcome,
    charged,
    check_scorable,
    receipt_line,
    refusal,
)
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.per_record import (
    PerRecordGradients,
    freeze,
    per_record_gradients,
    trainable_places,
)
from fedprune.federated.private_steps import PrivateTraining, train_privately
from fedprune.federated.station import RowSource, Station, threads
from fedprune.privacy import Entry, Granted, Memoised
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD
from fedprune.privacy.ledgers.chain import STORED
from fedprune.runs import load_weights_vector

KIND = "dp-update"

_LOG = logging.getLogger(__name__)


def training_settings(how: PrivateTraining) -> dict[str, Scalar]:
    """Write the settings of a round as a question carries them."""
    return dict(vars(how))


def training_asked_for(question: Question, least_noise_multiplier: float) -> PrivateTraining:
    """Read the settings that a server asks for; a client's own larger noise goes first.

    Raises:
        FederationError: if a setting is missing or no number.
        PrivacyError: if it is out of range.
    """
    return PrivateTraining(
        steps=question.whole("steps", 1),
        sample_rate=question.number("sample_rate"),
        noise_multiplier=max(least_noise_multiplier, question.number("noise_multiplier")),
        max_grad_norm=question.number("max_grad_norm"),
        batch_size=question.whole("batch_size", 1),
        learning_rate=question.number("learning_rate", 0.0),
        momentum=question.number("momentum", 0.0),
        weight_decay=question.number("weight_decay", 0.0),
    )


def answer_train_private(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    """Train on each client's rows under privacy and send the updated weights.

    The reservation comes before the data are touched, the bytes are stored before they are sent,
    and a retry gets the same bytes: a deployed client's ledger keeps them, a simulation's keeps
    their SHA-256, and they are computed again and compared. A deployed client whose training
    fails trains on no record: an error would be an answer about its data that no budget covers.
    """
    own = 0.0 if station.node is None else station.node.least_noise_multiplier
    how = training_asked_for(question, own)
    prepare = _preparer(question, how)
    check_scorable(station, question)
    entries = [update_entry(question, client, how) for client in clients]
    unsent = question.counterfactual and station.simulated  # a baseline
    answers = [Granted() for _ in entries] if unsent else station.ledger.reserve_many(entries)
    todo = [i for i, answer in enumerate(answers) if _must_train(station, answer)]
    trained = _train(station, question, how, prepare, [clients[i] for i in todo])
    updates: dict[int, bytes] = dict(zip(todo, trained, strict=True))
    if not unsent:
        _store(station, entries, answers, updates)
    outcomes: list[Outcome] = []
    for i, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
        if i in updates:
            outcomes.append(_answer(station, question, how, entry, updates[i]))
        elif isinstance(answer, Memoised):
            outcomes.append(_answer(station, question, how, entry, answer.report))
        else:
            outcomes.append(refusal(answer))
    return outcomes


def _preparer(question: Question, how: PrivateTraining) -> Callable[[], PerRecordGradients]:
    """Check, before anything is spent, that the network can be trained under privacy."""

    def prepare() -> PerRecordGradients:
        return per_record_gradients(question.architecture, how.batch_size)

    try:
        with threads(1):
            prepare()
    except ModelError as error:  # it follows from the architecture alone, so it may be told
        raise FederationError(str(error)) from error
    return prepare


def update_entry(question: Question, client: int, how: PrivateTraining) -> Entry:
    """The ledger row that a client reserves for its update."""
    return charged(question, str(client), KIND, ADD_REMOVE_RECORD, how.event)


def update_of(question: Question, weights: Tensor) -> bytes:
    """The trained numbers among all of an answer's weights, as a ledger stores them."""
    model, _ = question.architecture.build()
    freeze(model, question.architecture.model)
    return weights[trainable_places(model)].numpy().astype("<f4").tobytes()


def _must_train(station: Station, answer: object) -> bool:
    return isinstance(answer, Granted) or (station.simulated and isinstance(answer, Memoised))


def _train(
    station: Station,
    question: Question,
    how: PrivateTraining,
    prepare: Callable[[], PerRecordGradients],
    clients: Sequence[int],
) -> list[bytes]:
    """Train on each client's rows, one thread a client; give the trained numbers as bytes."""
    workers = threading.local()

    def train_one(client: int) -> bytes:
        if not hasattr(workers, "gradients"):
            torch.set_num_threads(1)  # a worker's own setting: one thread a client, everywhere
            workers.gradients = prepare()
        return _train_one(station, question, how, workers.gradients, client)

    if not clients:
        return []
    with (
        threads(torch.get_num_threads()),
        ThreadPoolExecutor(max_workers=min(len(clients), os.cpu_count() or 1)) as pool,
    ):
        return list(pool.map(train_one, clients))


def _train_one(
    station: Station,
    question: Question,
    how: PrivateTraining,
    gradients: PerRecordGradients,
    client: int,
) -> bytes:
    source = RowSource(station.dataset.train, station.index(client, "train"))
    try:
        update = _trained(station, question, how, gradients, client, source.batch(0, len(source)))
    except Exception as error:
        if station.simulated:  # nobody's data are at stake: say what is wrong
            raise
        _LOG.error("training failed; the update is drawn from no record", exc_info=error)
        nothing = torch.zeros(0, *question.architecture.input_shape), torch.zeros(0).long()
        update = _trained(station, question, how, gradients, client, nothing)
    return update.numpy().astype("<f4").tobytes()


def _trained(
    station: Station,
    question: Question,
    how: PrivateTraining,
    gradients: PerRecordGradients,
    client: int,
    rows: tuple[Tensor, Tensor],
) -> Tensor:
    load_weights_vector(gradients.model, question.weights)
    random = station.randomness(question, KIND, question.round, client)
    train_privately(gradients, *rows, how, random)
    return torch.cat([parameter.detach().reshape(-1) for parameter in gradients.trainable])


def _store(
    station: Station,
    entries: Sequence[Entry],
    answers: Sequence[object],
    updates: Mapping[int, bytes],
) -> None:
    """Store what was trained for the first time; compare what a simulation trained again."""
    kept = {i: _kept(station, update) for i, update in updates.items()}
    for i, answer in enumerate(answers):
        if isinstance(answer, Memoised) and i in kept and kept[i] != answer.report:
            raise LedgerError(
                f"client {entries[i].client} gives another update in round {entries[i].round} than "
                "the one its ledger knows: this machine does not repeat that one's arithmetic"
            )
    new = [i for i in kept if isinstance(answers[i], Granted)]
    station.ledger.store_many([(entries[i], kept[i]) for i in new])


def _kept(station: Station, update: bytes) -> bytes:
    return hashlib.sha256(update).digest() if station.simulated else update


def _answer(
    station: Station, question: Question, how: PrivateTraining, entry: Entry, update: bytes
) -> Outcome:
    """Put the trained numbers among the received ones, which come back bit for bit."""
    model, _ = question.architecture.build()
    freeze(model, question.architecture.model)
    weights = question.weights.clone()
    weights[trainable_places(model)] = torch.from_numpy(np.frombuffer(update, "<f4").copy())
    fields: dict[str, Scalar | bytes] = {
        "noise_multiplier": how.noise_multiplier,
        "receipt": receipt_line(station, replace(entry, stage=STORED, report=update)),
    }
    return answer_content(int(entry.client), fields, weights)
