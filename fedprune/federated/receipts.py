"""receipts.jsonl: what deployed clients signed for the answers that the server used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

from flwr.app import RecordDict

from fedprune.errors import LedgerError
from fedprune.federated.content_hash import RECEIPT, content_hash
from fedprune.federated.introduction import Introduction
from fedprune.federated.messages import Question, answer_bytes, answer_number, answer_weights
from fedprune.federated.private_training import training_asked_for, update_entry, update_of
from fedprune.federated.record_answers import record_entry
from fedprune.federated.report_answers import report_entry
from fedprune.federated.secure_questions import INPUT, sum_entry
from fedprune.federated.table_answers import table_entry
from fedprune.privacy import Entry, Receipt
from fedprune.privacy.budgets.events import UNPROTECTED
from fedprune.privacy.ledgers.chain import SENT
from fedprune.runs import RunFolder
from fedprune.runs.receipts import RECEIPTS


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
        if kind not in _EXPECTED:
            return ""
        record = answer.config_records["answer"]
        line = record.get(RECEIPT)
        if not isinstance(line, str) or not line:
            raise LedgerError(f"client {client} sent no receipt for round {question.round}")
        receipt = Receipt.from_line(line)
        receipt.verify()
        if receipt.public_key != self.introductions[client].public_key:
            raise LedgerError(f"client {client} signed with another key than it introduced")
        expected, report = _EXPECTED[kind](question, client, answer)
        if expected.stage == SENT:
            expected = replace(expected, content_hash=content_hash(answer))
        receipt.check_answers(expected, report)
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


# The ledger row that a client must have written for its answer, and the bytes it stored.

_Expected = tuple[Entry, bytes]


def _unprotected(kind: str) -> Callable[[Question, int, RecordDict], _Expected]:
    def expected(question: Question, client: int, answer: RecordDict) -> _Expected:
        del answer
        run, round_name, asked = question.run, question.round, question.digest_for(client)
        return Entry(str(client), run, round_name, kind, asked, UNPROTECTED, stage=SENT), b""

    return expected


def _report(question: Question, client: int, answer: RecordDict) -> _Expected:
    return replace(report_entry(question), client=str(client)), _stored(answer)


def _record_scores(question: Question, client: int, answer: RecordDict) -> _Expected:
    return record_entry(question, client), _stored(answer)


def _table(question: Question, client: int, answer: RecordDict) -> _Expected:
    own = table_entry(question)
    return replace(own, client=str(client)), _stored(answer)


def _sum_input(question: Question, client: int, answer: RecordDict) -> _Expected:
    return sum_entry(INPUT, question, client), _stored(answer)


def _update(question: Question, client: int, answer: RecordDict) -> _Expected:
    """A client may have added more noise than it was asked for, never less."""
    how = training_asked_for(question, answer_number(answer, "noise_multiplier"))
    weights = answer_weights(answer, question.weights.numel())
    return update_entry(question, client, how), update_of(question, weights)


def _stored(answer: RecordDict) -> bytes:
    return answer_bytes(answer, "report", "report")


_EXPECTED: Mapping[str, Callable[[Question, int, RecordDict], _Expected]] = {
    "query.report": _report,
    "query.record_scores": _record_scores,
    INPUT: _sum_input,
    "train": _unprotected("model-update"),
    "train.private": _update,
    "evaluate": _unprotected("count-table"),
    "query.table": _table,
    "query.norms": _unprotected("norm-statistics"),
}
