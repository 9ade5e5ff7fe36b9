"""What a deployed client sends beside reports and weights is signed for and refused where wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fedprune import data, models
from fedprune.errors import FederationError, FedpruneError, LedgerError, RobustnessError
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question
from fedprune.federated.node_settings import NodeSettings
from fedprune.federated.norm_answers import answer_norms
from fedprune.federated.receipts import ReceiptBook
from fedprune.federated.station import Station
from fedprune.federated.training_answers import answer_train
from fedprune.privacy import Budget, Ledger, SigningKey
from fedprune.runs import Architecture, RunFolder, weights_vector

CLIENT = 3
TRAINING: dict[str, str | float] = {
    "local_epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0,
}  # fmt: skip
NETWORK = """
from torch import nn

def build(input_shape, num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, num_classes))
"""


@dataclass
class Deployed:
    """A deployed client and the server's book of its receipts."""

    station: Station
    book: ReceiptBook
    architecture: Architecture

    def ask(self, round_name: str, settings: dict[str, str | float]) -> Question:
        network = models.load(
            self.architecture.model, num_classes=10, input_shape=(1, 8, 8), seed=1
        )
        weights = weights_vector(network)
        return Question("run", round_name, self.architecture, weights, settings)


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    (tmp_path / "net_of_a_node.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    dataset = data.load("digits", "", seed=1)
    key = SigningKey.open(tmp_path / "key")
    node = NodeSettings(CLIENT, "", tmp_path / "own.sqlite", 4.0, tmp_path / "key")
    met = Introduction(CLIENT, False, dataset.schema, epsilon_left=4.0, public_key=key.public)
    with Ledger.open(
        node.ledger, budget=[Budget(4.0)], owner="client 3", private=True, signing_key=key.public
    ) as ledger:
        yield Deployed(
            Station(ledger, dataset, None, node=node, signing_key=key),
            ReceiptBook(RunFolder(tmp_path), {CLIENT: met}),
            Architecture.dense("net_of_a_node:build", 10, (1, 8, 8)),
        )


def content(outcomes: object) -> RecordDict:
    found = outcomes[0] if isinstance(outcomes, list) else None
    assert isinstance(found, RecordDict), found
    return found


def test_statistics_are_signed_for_and_cost_no_budget(deployed: Deployed) -> None:
    question = deployed.ask("norms-1-1", {})
    answer = content(answer_norms(deployed.station, question, [CLIENT]))
    assert deployed.book.check("query.norms", question, CLIENT, answer)
    assert deployed.station.ledger.spent(str(CLIENT)) == 0
    kinds = [entry.kind for entry in deployed.station.ledger.entries()]
    assert kinds == ["norm-statistics"]
    sums = bytearray(answer.config_records["answer"]["sums"])  # type: ignore[arg-type]
    sums[0] ^= 1
    answer.config_records["answer"]["sums"] = bytes(sums)
    with pytest.raises(LedgerError, match="content_hash"):
        deployed.book.check("query.norms", question, CLIENT, answer)


def test_a_network_without_batch_norm_has_no_statistics(deployed: Deployed) -> None:
    deployed.architecture = Architecture.dense("mlp", 10, (1, 8, 8))
    with pytest.raises(RobustnessError, match="no batch norm"):
        answer_norms(deployed.station, deployed.ask("norms-1-1", {}), [CLIENT])


def test_weighted_training_is_signed_for_and_wrong_weights_are_refused(deployed: Deployed) -> None:
    weights = " ".join(["1.5"] * 5 + ["0.5"] * 5)
    settings = {**TRAINING, "groups": "class", "group_weights": weights}
    question = deployed.ask("tune-1-1", settings)
    answer = content(answer_train(deployed.station, question, [CLIENT]))
    assert deployed.book.check("train", question, CLIENT, answer)
    plain = content(answer_train(deployed.station, deployed.ask("tune-1-2", TRAINING), [CLIENT]))
    updates = [
        torch.from_numpy(one.array_records["arrays"]["weights"].numpy()) for one in (answer, plain)
    ]
    assert not torch.allclose(*updates, atol=1e-4)
    for wrong in ({"group_weights": "1 2"}, {"groups": "sex"}):
        asked = deployed.ask("tune-1-3", {**settings, **wrong})
        with pytest.raises(FedpruneError):
            answer_train(deployed.station, asked, [CLIENT])
    with pytest.raises(FederationError, match="group weights must be 10"):
        answer_train(
            deployed.station, deployed.ask("tune-1-3", {**settings, "group_weights": "x"}), [CLIENT]
        )
