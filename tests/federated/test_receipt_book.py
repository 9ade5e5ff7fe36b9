"""What a receipt binds: every byte of the answer that it comes with, and nothing but it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedprune import models
from fedprune.data.schema import Schema
from fedprune.errors import LedgerError
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.receipts import ReceiptBook, content_hash
from fedprune.privacy import Budget, Entry, Ledger, SigningKey
from fedprune.privacy.budgets.events import REPLACEMENT, UNPROTECTED, PureEvent
from fedprune.privacy.ledgers.chain import SENT
from fedprune.runs import Architecture, RunFolder, weights_vector

ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))


def update() -> RecordDict:
    return answer_content(3, {"loss": 0.25, "rows": 7, "receipt": "line"}, torch.arange(5.0))


def changed(change: Callable[[RecordDict], object]) -> RecordDict:
    answer = update()
    change(answer)
    return answer


def test_the_receipt_itself_and_the_trip_over_the_network_change_no_hash() -> None:
    expected = content_hash(update())
    assert len(expected) == 64
    assert content_hash(recorddict_from_proto(recorddict_to_proto(update()))) == expected
    without = changed(lambda a: a.config_records["answer"].pop("receipt"))
    assert content_hash(without) == expected
    other = changed(lambda a: a.config_records["answer"].update(receipt="another"))
    assert content_hash(other) == expected
    record = dict(reversed(list(update().config_records["answer"].items())))
    turned = RecordDict({"arrays": update()["arrays"], "answer": ConfigRecord(record)})
    assert content_hash(turned) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.config_records["answer"].update(loss=0.5),
        lambda a: a.config_records["answer"].update(rows=7.0),
        lambda a: a.config_records["answer"].update(rows=True),
        lambda a: a.config_records["answer"].update(client=4),
        lambda a: a.config_records["answer"].update(more=b"x"),
        lambda a: a.config_records["answer"].update(more="x"),
        lambda a: a.config_records["answer"].pop("loss"),
        lambda a: a.pop("arrays"),
        lambda a: a.update(
            {"arrays": ArrayRecord({"weights": Array(np.arange(5, dtype=np.float64))})}
        ),
        lambda a: a.update({"arrays": ArrayRecord({"weights": Array(np.ones(5, np.float32))})}),
        lambda a: a.update({"arrays": ArrayRecord({"other": a["arrays"]["weights"]})}),
        lambda a: a.update({"second": ConfigRecord({"receipts": 1})}),
    ],
)
def test_every_change_of_an_answer_changes_its_hash(change: Callable[[RecordDict], object]) -> None:
    answer = changed(change)
    assert content_hash(answer) != content_hash(update())


class Client:
    """A ledger and a key, and the server's book that knows the key."""

    def __init__(self, folder: Path) -> None:
        self.key = SigningKey.open(folder / "key")
        self.ledger = Ledger.open(
            folder / "ledger", budget=Budget(4.0), owner="c", private=True,
            signing_key=self.key.public,
        )  # fmt: skip
        met = Introduction(
            3, False, Schema(10, (1, 8, 8), "pixels"), epsilon_left=4.0, public_key=self.key.public
        )
        self.book = ReceiptBook(RunFolder(folder), {3: met})

    def line(self, entry: Entry) -> str:
        return self.ledger.receipt(entry, self.key).to_line()


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def asked(round_name: str, **settings: float) -> Question:
    return Question("run", round_name, ARCHITECTURE, WEIGHTS, settings)


def sent(question: Question, answer: RecordDict) -> Entry:
    shared = question.run, question.round, "model-update", question.digest, UNPROTECTED
    return Entry("3", *shared, stage=SENT, content_hash=content_hash(answer))


def test_the_server_takes_the_update_that_was_signed_and_no_other(client: Client) -> None:
    question, answer = asked("train-1"), update()
    client.ledger.record_unprotected([sent(question, answer)])
    answer.config_records["answer"]["receipt"] = client.line(sent(question, answer))
    line = client.book.check("train", question, 3, answer)
    assert line == answer.config_records["answer"]["receipt"]
    answer.config_records["answer"]["loss"] = 0.0
    with pytest.raises(LedgerError, match="its content_hash is"):
        client.book.check("train", question, 3, answer)
    with pytest.raises(LedgerError, match="its round is 'train-1', not 'train-2'"):
        client.book.check("train", asked("train-2"), 3, answer)


def test_the_server_takes_the_report_that_was_charged_and_no_other(client: Client) -> None:
    question = asked("report-1", epsilon=4.0)
    entry = Entry.charged(
        client="3", run="run", round="report-1", kind="mask-report", question=question.digest,
        relation=REPLACEMENT, event=PureEvent(4.0),
    )  # fmt: skip
    client.ledger.reserve(entry)
    client.ledger.store(entry, b"\x01\x02")
    answer = answer_content(3, {"report": b"\x01\x02", "receipt": client.line(entry)})
    assert client.book.check("query.report", question, 3, answer)
    answer.config_records["answer"]["report"] = b"\x01\x03"
    with pytest.raises(LedgerError, match="its report is other bytes"):
        client.book.check("query.report", question, 3, answer)
    answer.config_records["answer"]["report"] = b"\x01\x02"
    with pytest.raises(LedgerError, match="its question is"):
        client.book.check("query.report", replace(question, settings={"epsilon": 2.0}), 3, answer)
