"""Signed receipts: what a client's ledger says about an answer, in the hands of the server.

A receipt repeats one ledger row (the stored report, or an unprotected message), with its number,
its hash and the hash of the row before, and is signed with the client's key.

What receipts prove to whoever holds them: the key's holder stated this charge, this event, this
question and these exact bytes (in full for a report, by their SHA-256 for one of more than 256 KiB
and for what is not charged: model updates, count tables), and committed to a ledger whose row of
that number has that hash. A ledger that is cut off or rewritten later no longer has that row,
which its owner can check (`Ledger.confirms`) and which shows by itself as soon as a row number is
used again.

What they do not prove: that the ledger exists or names everything its owner spent elsewhere (other
runs, answers that never arrived), that the report was drawn by the mechanism, or who holds the key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy.budgets.events import UNIT_OF, PureEvent, event_from_text
from fedprune.privacy.ledgers.chain import SENT, STORED, Entry, framed, head_after, to_row
from fedprune.privacy.ledgers.keys import SigningKey, signature_holds
from fedprune.privacy.ledgers.receipt_fields import read_fields

SCHEMA = 2
_DOMAIN = "fedprune ledger receipt 2"
MOST_REPORT_BYTES = 1 << 18  # that a receipt repeats; a larger report it binds by its hash


@dataclass(frozen=True)
class Receipt:
    """One signed statement about one row of a client's ledger.

    Attributes:
        client, run, round, kind, stage, relation, epsilon, delta, event, question: as in the row.
        report: the exact bytes of a stored report; empty for one of more than `MOST_REPORT_BYTES`
            and for what was only recorded as sent.
        report_hash: SHA-256 of what was sent.
        ledger_rows: the row's number: how many rows the ledger had right after it.
        ledger_previous: hash of the row before.
        ledger_head: hash of the row; it covers everything above.
        public_key: of the signer, 64 hexadecimal digits.
        signature: Ed25519 over all other fields, 128 hexadecimal digits.
    """

    client: str
    run: str
    round: str
    kind: str
    stage: str
    relation: str
    epsilon: float
    delta: float
    event: str
    question: str
    report: bytes
    report_hash: str
    ledger_rows: int
    ledger_previous: str
    ledger_head: str
    public_key: str
    signature: str = ""

    @classmethod
    def sign(cls, entry: Entry, *, row: int, previous: str, key: SigningKey) -> Receipt:
        """Sign a receipt for an entry that stands in row `row`, after one with hash `previous`.

        Raises:
            LedgerError: if the entry is a reservation: nothing is sent on the strength of one; or
                if it binds nothing that was sent.
        """
        if entry.stage not in (STORED, SENT):
            raise LedgerError(f"a receipt is given for what was sent, got stage {entry.stage!r}")
        if entry.stage == SENT and not entry.content_hash:
            raise LedgerError(
                f"a receipt binds what was sent: client {entry.client}'s {entry.kind!r} in round "
                f"{entry.round} was recorded without its content's hash"
            )
        written = to_row(row, previous, entry)
        unsigned = cls(
            client=entry.client,
            run=entry.run,
            round=entry.round,
            kind=entry.kind,
            stage=entry.stage,
            relation=entry.relation,
            epsilon=float(entry.epsilon),
            delta=float(entry.delta),
            event=entry.event,
            question=entry.question,
            report=entry.report if len(entry.report) <= MOST_REPORT_BYTES else b"",
            report_hash=written.report_hash,
            ledger_rows=row,
            ledger_previous=previous,
            ledger_head=written.hash,
            public_key=key.public,
        )
        return replace(unsigned, signature=key.sign(unsigned.message).hex())

    @property
    def message(self) -> bytes:
        """What is signed: a version string and every field, each with its length in front."""
        signed = {"epsilon": self.epsilon.hex(), "delta": self.delta.hex()}
        names = [name for name in self.__dataclass_fields__ if name != "signature"]
        return framed([_DOMAIN, *(signed.get(name, getattr(self, name)) for name in names)])

    @property
    def entry(self) -> Entry:
        """The ledger row that the receipt repeats, as far as it does."""
        return Entry(
            client=self.client,
            run=self.run,
            round=self.round,
            kind=self.kind,
            question=self.question,
            relation=self.relation,
            epsilon=self.epsilon,
            delta=self.delta,
            event=self.event,
            stage=self.stage,
            report=self.report,
            content_hash=self.report_hash if self.stage == SENT else "",
        )

    @property
    def charged(self) -> bool:
        """Whether it stands for a report that spent epsilon."""
        return self.relation in UNIT_OF

    @property
    def subject(self) -> str:
        """Whose receipt it is and for what, in words."""
        return f"client {self.client} for round {self.round}"

    def flaw(self) -> str | None:
        """Say what is wrong with the receipt by itself, or None: signature, hashes, charge."""
        if not signature_holds(self.public_key, self.message, self.signature):
            return "its signature is not that of its key over its content"
        if self.report and self.report_hash != hashlib.sha256(self.report).hexdigest():
            return "its report does not match the report's hash"
        place = self.ledger_rows, self.ledger_previous
        if self.ledger_head != head_after(*place, self.entry, self.report_hash):
            return "its ledger hash is not that of a row with this content"
        return _charge_flaw(self)

    def verify(self) -> None:
        """Refuse a receipt that is wrong by itself.

        Raises:
            LedgerError: naming what is wrong.
        """
        flaw = self.flaw()
        if flaw:
            raise LedgerError(f"the receipt of {self.subject} is refused: {flaw}")

    def check_answers(self, asked: Entry, report: bytes = b"") -> None:
        """Refuse a receipt that is not for the answer which came with it.

        Args:
            asked: the entry that the question calls for: "sent" with the content's hash for a
                message that is not charged, else of any stage. An event that is not pure has the
                epsilon and delta of its client's own budget: those are not compared.
            report: the bytes that were sent; empty for what was only recorded as sent.

        Raises:
            LedgerError: naming the first field that differs.
        """
        stage = SENT if asked.stage == SENT else STORED
        repeated = report if len(report) <= MOST_REPORT_BYTES else b""
        wanted = vars(replace(asked, stage=stage, report=repeated))
        if stage == STORED and self.report_hash != hashlib.sha256(report).hexdigest():
            raise LedgerError(
                f"the receipt of {self.subject} is not for the answer it came with: its report is "
                "other bytes"
            )
        compared = [name for name in wanted if name not in _own_figures(asked)]
        for name in compared:
            found = vars(self.entry)[name]
            if found != wanted[name]:
                said = "other bytes" if name == "report" else f"{found!r}, not {wanted[name]!r}"
                raise LedgerError(
                    f"the receipt of {self.subject} is not for the answer it came with: its {name} "
                    f"is {said}"
                )

    def to_line(self) -> str:
        """Write as one line of JSON, without the line's end."""
        content = {"schema": SCHEMA, **vars(self), "report": self.report.hex()}
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Receipt:
        """Read what `to_line` wrote; the signature is not checked here.

        Raises:
            LedgerError: in one sentence, if the line is too long or is not such a receipt.
        """
        content = read_fields(line, SCHEMA, cls.__dataclass_fields__.keys())
        receipt = cls(**content)
        if receipt.to_line() != line:  # one receipt, one line: repeats are equal byte by byte
            raise LedgerError(f"the receipt of {receipt.subject} is not written as receipts are")
        return receipt


def _charge_flaw(receipt: Receipt) -> str | None:
    """Say where the stated guarantee is not that of the event."""
    if not receipt.charged:
        return None
    try:
        event = event_from_text(receipt.event)
    except PrivacyError as error:
        return str(error)
    if not isinstance(event, PureEvent):
        return None if receipt.delta > 0 else "an event that is not pure has a delta above 0"
    if (receipt.epsilon, receipt.delta) != (event.epsilon, 0):
        return f"it states epsilon = {receipt.epsilon:g}, its event has {event.epsilon:g}"
    return None


def _own_figures(asked: Entry) -> tuple[str, ...]:
    """Fields that follow from the client's own budget as well as from the question."""
    pure = not asked.event or isinstance(event_from_text(asked.event), PureEvent)
    return () if pure else ("epsilon", "delta")
