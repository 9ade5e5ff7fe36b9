"""receipts.jsonl: what deployed clients signed for the answers that the server used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

from flwr.app import Array, ConfigRecord, RecordDict

from fedprune.errors import LedgerError
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question
from fedprune.privacy import Entry, Receipt
from fedprune.privacy.chain import SENT, framed
from fedprune.privacy.events import REPLACEMENT, UNPROTECTED, PureEvent
from fedprune.runs import RunFolder
from fedprune.runs.receipts import RECEIPTS

CHARGED = "mask-report"
RECEIPT = "receipt"  # the field of an answer that holds its receipt
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
        line = record.get(RECEIPT)
        if not isinstance(line, str) or not line:
            raise LedgerError(f"client {client} sent no receipt for round {question.round}")
        receipt = Receipt.from_line(line)
        receipt.verify()
        if receipt.public_key != self.introductions[client].public_key:
            raise LedgerError(f"client {client} signed with another key than it introduced")
        expected = _expected(kind, question, client)
        if expected.stage == SENT:
            receipt.check_answers(replace(expected, content_hash=content_hash(answer)))
        else:
            report = record.get("report", b"")
            receipt.check_answers(expected, report if isinstance(report, bytes) else b"")
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


def content_hash(answer: RecordDict) -> str:
    """SHA-256 of everything in an answer but its receipt: what a receipt binds.

    Arrays count with their bytes as they are sent, other values with their type; the order of
    names does not matter.
    """
    parts: list[object] = []
    for name in sorted(answer):
        record = answer[name]
        for key in sorted(record):
            if isinstance(record, ConfigRecord) and key == RECEIPT:
                continue
            parts += [name, key, *_value_parts(record[key])]
    return hashlib.sha256(framed(parts)).hexdigest()


def _value_parts(value: object) -> list[object]:
    if isinstance(value, Array):
        return ["array", value.dtype, repr(tuple(value.shape)), value.stype, value.data]
    if isinstance(value, bytes):
        return ["bytes", value]
    return [type(value).__name__, repr(value)]


def _expected(kind: str, question: Question, client: int) -> Entry:
    """The ledger row that the client must have written for this answer."""
    name = LEDGER_KINDS[kind]
    if name != CHARGED:
        return Entry(
            str(client),
            question.run,
            question.round,
            name,
            question.digest_for(client),
            UNPROTECTED,
            stage=SENT,
        )
    return Entry.charged(
        client=str(client),
        run=question.run,
        round=question.round,
        kind=name,
        question=question.digest_for(client),
        relation=REPLACEMENT,
        event=PureEvent(question.number("epsilon")),
    )
