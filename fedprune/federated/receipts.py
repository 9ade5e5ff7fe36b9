"""receipts.jsonl: what deployed clients signed for the answers that the server used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from flwr.app import RecordDict

from fedprune.errors import LedgerError
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question
from fedprune.privacy import Entry, Receipt
from fedprune.privacy.accounting import REPLACEMENT, UNPROTECTED
from fedprune.runs import RunFolder
from fedprune.runs.receipts import RECEIPTS

CHARGED = "mask-report"
# What a client's ledger calls its answer to each kind of question; others leave no row.
LEDGER_KINDS = {"query.report": CHARGED, "train": "model-update", "evaluate": "count-table"}


@dataclass(frozen=True)
class ReceiptBook:
    """Checks the receipt of every answer and keeps those of the answers that are used."""

    folder: RunFolder
    introductions: Mapping[int, Introduction]

    def check(self, kind: str, question: Question, client: int, answer: RecordDict) -> str:
        """Check the receipt that came with an answer; give its line, "" where none is due.

        Raises:
            LedgerError: if it is missing, forged, of another key, or for another answer.
        """
        if kind not in LEDGER_KINDS:
            return ""
        record = answer.config_records["answer"]
        line = record.get("receipt")
        if not isinstance(line, str) or not line:
            raise LedgerError(f"client {client} sent no receipt for round {question.round}")
        receipt = Receipt.from_line(line)
        receipt.verify()
        if receipt.public_key != self.introductions[client].public_key:
            raise LedgerError(f"client {client} signed with another key than it introduced")
        report = record.get("report", b"")
        receipt.check_answers(
            _expected(kind, question, client), report if isinstance(report, bytes) else b""
        )
        return line

    def keep(self, line: str) -> None:
        """Append a receipt durably, first cutting off what a crash left of another."""
        with open(self.folder.path / RECEIPTS, "a+b") as file:
            _cut_torn_end(file)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_end(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _expected(kind: str, question: Question, client: int) -> Entry:
    """The ledger row that the client must have written for this answer."""
    charged = LEDGER_KINDS[kind] == CHARGED
    return Entry(
        client=str(client),
        run=question.run,
        round=question.round,
        kind=LEDGER_KINDS[kind],
        question=question.digest,
        relation=REPLACEMENT if charged else UNPROTECTED,
        epsilon=question.number("epsilon") if charged else 0.0,
    )
