"""A client's local training in the open: weights leave it unprotected, as its ledger says.

A simulation's cohorts train in worker processes, once those are there; before that, for a single
client and on a deployed one they train in this process. What comes out is the same bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import FedpruneError
from fedprune.federated.answering import send_unprotected
from fedprune.federated.answers import Answers, Outcomes
from fedprune.federated.group_weights import read_weights
from fedprune.federated.messages import Question
from fedprune.federated.station import RowSource, Station, threads
from fedprune.federated.trainers import Trainers, margins, traits
from fedprune.federated.training import LocalTraining
from fedprune.federated.workers import (
    ClientFailedError,
    Trained,
    Work,
    WorkersUnavailableError,
    open_workers,
)
from fedprune.federated.workers.settings import cores

_STREAM = "train"
_TRAINERS = Trainers()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Done:
    """What a client's training came to: its loss, how many rows it has, its weights [size]."""

    loss: float
    rows: int
    weights: Tensor

    @staticmethod
    def of(found: Trained | FedpruneError, rows: int) -> _Result:
        """Take what a worker gave."""
        if isinstance(found, FedpruneError):
            return found
        return _Done(found.loss, rows, torch.from_numpy(found.weights.copy()))  # its slot is reused


_Result: TypeAlias = _Done | FedpruneError


def answer_train(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Train on each client's rows and send the updated weights."""
    how = LocalTraining(
        epochs=question.whole("local_epochs", 1),
        batch_size=question.whole("batch_size", 1),
        learning_rate=question.number("learning_rate", 0.0),
        momentum=question.number("momentum", 0.0),
        weight_decay=question.number("weight_decay", 0.0),
        **_margins(station, question),
    )
    done = _in_workers(station, question, how, clients)
    rest = {place: client for place, client in enumerate(clients) if place not in done}
    done |= _here(station, question, how, rest)
    return _sent(station, question, clients, [done[place] for place in range(len(clients))])


class _Margins(TypedDict, total=False):
    margin_radius: float
    input_std: Sequence[float]


def _margins(station: Station, question: Question) -> _Margins:
    """What a loss with margins needs; nothing where none is asked for."""
    if "margin_radius" not in question.settings:
        return {}
    std = station.dataset.schema.input_std
    return {
        "margin_radius": question.number("margin_radius", 0.0),
        "input_std": () if std is None else tuple(std),
    }


def _in_workers(
    station: Station, question: Question, how: LocalTraining, clients: Sequence[int]
) -> dict[int, _Result]:
    """Train in worker processes, if there are any; give the outcome at every place that is done."""
    done: dict[int, _Result] = {}
    workers, name = open_workers(), question.architecture.model
    if "group_weights" in question.settings:  # workers know rows, not groups
        return done
    if workers is None or not station.simulated or question.seed is None or len(clients) < 2:
        return done
    pool = workers.lend(name)
    if pool is None:
        return done
    work = Work(
        rows=station.dataset.train,
        architecture=question.architecture,
        weights=question.weights,
        how=how,
        seed=question.seed,
        labels=(_STREAM, question.round),
        clients=clients,
        places=[station.index(client, "train") for client in clients],
    )
    try:
        for place, found in pool.train(work, workers.settings.client_seconds):
            done[place] = _Done.of(found, len(work.places[place]))
    except WorkersUnavailableError as error:
        workers.refuse(name, error)
    return done


def _here(
    station: Station, question: Question, how: LocalTraining, clients: Mapping[int, int]
) -> dict[int, _Result]:
    """Train in this process, each client on one thread; give the outcome at every place."""
    if not clients:
        return {}

    def train_one(client: int) -> _Result:
        torch.set_num_threads(1)  # a thread's own setting: one thread a client, everywhere
        return _train_one(station, question, how, client, weight_of)

    # torch draws from one generator a process: who draws goes one after the other.
    workers = open_workers()
    most = cores() if workers is None else workers.settings.count
    at_once = 1 if traits(question.architecture).draws else most
    margins(question.architecture, how)  # made before there are threads
    weight_of = _group_weights(station, question)
    begun = time.monotonic()
    with (
        threads(torch.get_num_threads()),
        ThreadPoolExecutor(max_workers=min(len(clients), at_once)) as pool,
    ):
        outcomes = dict(zip(clients, pool.map(train_one, clients.values()), strict=True))
    if workers is not None and len(clients) > 1:
        workers.trained_here(time.monotonic() - begun)
    return outcomes


def _group_weights(station: Station, question: Question) -> Tensor | None:
    """The weight of every training row that this process sees, from those of its groups.

    Raises:
        FederationError: if the weights are not those of the groups.
        DataError: if there are no such groups.
    """
    if "group_weights" not in question.settings:
        return None
    column = station.dataset.train.group(question.text("groups"))
    weights = read_weights(question.text("group_weights"), len(column.names))
    return torch.from_numpy(weights[column.codes]).float()


def _train_one(
    station: Station,
    question: Question,
    how: LocalTraining,
    client: int,
    weight_of: Tensor | None,
) -> _Result:
    index = station.index(client, "train")
    source = RowSource(station.dataset.train, index)
    order = station.generator(question, _STREAM, question.round, client)
    trainer = _TRAINERS.take(question.architecture)
    try:
        inputs, labels = source.batch(0, len(source))
        loss_of = margins(question.architecture, how)
        weights = None if weight_of is None else weight_of[torch.from_numpy(index)]
        loss = trainer.train(question.weights, inputs, labels, how, order, loss_of, weights)
    except FedpruneError as error:
        return error
    except Exception as error:
        if not station.simulated:  # what it says may depend on the client's rows
            raise
        _LOG.exception("a client could not be trained")
        return ClientFailedError(
            f"client {client} could not be trained: {type(error).__name__}: {error}"
        )
    done = _Done(loss, len(labels), trainer.read())
    _TRAINERS.bring_back(question.architecture, trainer)
    return done


def _sent(
    station: Station, question: Question, clients: Sequence[int], results: Sequence[_Result]
) -> Outcomes:
    """Write down what is sent; of a client that failed nothing is, so that it has no row."""
    pairs = list(zip(clients, results, strict=True))
    lost = {c: found for c, found in pairs if isinstance(found, ClientFailedError)}
    refused = {c: found for c, found in pairs if isinstance(found, FedpruneError)}
    done = [(c, found) for c, found in pairs if isinstance(found, _Done)]
    answers = Answers(
        np.array([client for client, _ in done], dtype=np.int64),
        {"loss": [found.loss for _, found in done], "rows": [found.rows for _, found in done]},
        failures=refused,
        weights=[found.weights for _, found in done],
    )
    sent = [client for client in clients if client not in lost]
    return send_unprotected(station, question, "model-update", sent, answers) if sent else answers
