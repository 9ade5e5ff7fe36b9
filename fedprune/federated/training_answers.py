"""A client's local training in the open: weights leave it unprotected, as its ledger says."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from fedprune.config import Scalar
from fedprune.errors import FedpruneError
from fedprune.federated.answering import Outcome, send_unprotected
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import RowSource, Station
from fedprune.federated.training import LocalTraining, train_locally
from fedprune.runs import load_weights_vector, weights_vector


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
        fields: dict[str, Scalar | bytes] = {"loss": loss, "rows": len(labels)}
        return answer_content(client, fields, weights_vector(model))

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=min(len(clients), os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(train_one, clients))
    torch.set_num_threads(threads)
    return send_unprotected(station, question, "model-update", clients, outcomes)
