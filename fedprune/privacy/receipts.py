"""Signed receipts: what a client's ledger says about an answer, in the hands of the server.

A receipt repeats one ledger row (the stored report, or an unprotected message), with its number,
its hash and the hash of the row before, and is signed with the client's key.

What receipts prove to whoever holds them: the key's holder stated this charge, this question and,
for a mask report, these exact bytes, and committed to a ledger whose row of that number has that
hash. A ledger that is cut off or rewritten later no longer has that row, which its owner can
check (`Ledger.confirms`) and which shows by itself as soon as a row number is used again.

What they do not prove: that the ledger exists or names everything its owner spent elsewhere (other
runs, answers that never arrived), that the report was drawn by the mechanism, that the content of
an unprotected message was this or that (a receipt does not bind it), or who holds the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedprune.errors import LedgerError
from fedprune.privacy.accounting import UNPROTECTED
from fedprune.privacy.chain import SENT, STORED, Entry, framed, to_row
from fedprune.privacy.keys import SigningKey, signature_holds

SCHEMA = 1
_DOMAIN = "fedprune ledger receipt 1"
_MOST_CHARACTERS = 1 << 20  # of a line; a report of a million units has 250,000
_MOST_TEXT = 200
_MOST_ROWS = 2**63 - 1
_MOST_EPSILON = 2**53
_TEXTS = ("client", "run", "round", "kind", "relation", "question")
_HEX = {
    "report_hash": 64,
    "ledger_previous": 64,
    "ledger_head": 64,
    "public_key": 64,
    "signature": 128,
}


@dataclass(frozen=True)
class Receipt:
    """One signed statement about one row of a client's ledger.

    Attributes:
        client, run, round, kind, relation, epsilon, delta, question: as in the row.
        report: the exact bytes of a charged report; empty for an unprotected message.
        report_hash: SHA-256 of `report`.
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
    relation: str
    epsilon: float
    delta: float
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
            LedgerError: if the entry is a reservation: nothing is sent on the strength of one.
        """
        if entry.stage not in (STORED, SENT):
            raise LedgerError(f"a receipt is given for what was sent, got stage {entry.stage!r}")
        unsigned = cls(
            client=entry.client,
            run=entry.run,
            round=entry.round,
            kind=entry.kind,
            relation=entry.relation,
            epsilon=float(entry.epsilon),
            delta=float(entry.delta),
            question=entry.question,
            report=entry.report,
            report_hash=hashlib.sha256(entry.report).hexdigest(),
            ledger_rows=row,
            ledger_previous=previous,
            ledger_head=str(to_row(row, previous, entry)[-1]),
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
        """The ledger row that the receipt repeats."""
        return Entry(
            client=self.client,
            run=self.run,
            round=self.round,
            kind=self.kind,
            question=self.question,
            relation=self.relation,
            epsilon=self.epsilon,
            delta=self.delta,
            stage=SENT if self.relation == UNPROTECTED else STORED,
            report=self.report,
        )

    @property
    def charged(self) -> bool:
        """Whether it stands for a report that spent epsilon."""
        return self.relation != UNPROTECTED

    @property
    def subject(self) -> str:
        """Whose receipt it is and for what, in words."""
        return f"client {self.client} for round {self.round}"

    def flaw(self) -> str | None:
        """Say what is wrong with the receipt by itself, or None: signature, hashes."""
        if not signature_holds(self.public_key, self.message, self.signature):
            return "its signature is not that of its key over its content"
        if self.report_hash != hashlib.sha256(self.report).hexdigest():
            return "its report does not match the report's hash"
        if self.ledger_head != to_row(self.ledger_rows, self.ledger_previous, self.entry)[-1]:
            return "its ledger hash is not that of a row with this content"
        return None

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
            asked: the entry that the question calls for, of any stage.
            report: the bytes that were sent; empty for an unprotected message.

        Raises:
            LedgerError: naming the first field that differs.
        """
        wanted = vars(replace(asked, stage=self.entry.stage, report=report))
        for name, found in vars(self.entry).items():
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
        content = _parse(line)
        if content.get("schema") != SCHEMA:
            raise LedgerError(
                f"a receipt has schema {_brief(content.get('schema'))}, this reads {SCHEMA}"
            )
        del content["schema"]
        if content.keys() != cls.__dataclass_fields__.keys():
            odd = content.keys() ^ cls.__dataclass_fields__.keys()
            raise LedgerError(f"a receipt lacks or has a field too many: {_brief(sorted(odd)[0])}")
        _check_fields(content)
        content["report"] = bytes.fromhex(content["report"])
        content["epsilon"], content["delta"] = float(content["epsilon"]), float(content["delta"])
        receipt = cls(**content)
        if receipt.to_line() != line:  # one receipt, one line: repeats are equal byte by byte
            raise LedgerError(f"the receipt of {receipt.subject} is not written as receipts are")
        return receipt


def _parse(line: str) -> dict[str, Any]:
    if len(line) > _MOST_CHARACTERS:
        raise LedgerError(
            f"a receipt may have {_MOST_CHARACTERS} characters, this line has {len(line)}"
        )
    try:
        content = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"a receipt is not a line of JSON: {_brief(str(error))}") from None
    if not isinstance(content, dict):
        raise LedgerError(f"a receipt must be a JSON object, got {_brief(content)}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _check_fields(content: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        value = content[name]
        fits = isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and value.isprintable()
        _demand(fits, name, f"printable text of at most {_MOST_TEXT} characters", value)
    for name, digits in _HEX.items():
        fits = _is_hex(content[name]) and len(content[name]) == digits
        _demand(fits, name, f"{digits} lower-case hexadecimal digits", content[name])
    fits = _is_hex(content["report"]) and len(content["report"]) % 2 == 0
    _demand(fits, "report", "lower-case hexadecimal digits in pairs", content["report"])
    rows = content["ledger_rows"]
    fits = isinstance(rows, int) and not isinstance(rows, bool) and 1 <= rows <= _MOST_ROWS
    _demand(fits, "ledger_rows", "a whole number of at least 1", rows)
    charged = content["relation"] != UNPROTECTED
    for name in ("epsilon", "delta"):
        value = content[name]
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and 0 <= value < _MOST_EPSILON and (charged or value == 0)
        fits = fits and not (charged and name == "epsilon" and value == 0)
        _demand(fits, name, "a number that fits its relation", value)


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and not set(value) - set("0123456789abcdef")


def _demand(fits: bool, name: str, allowed: str, value: object) -> None:
    if not fits:
        raise LedgerError(f"a receipt's {name} must be {allowed}, got {_brief(value)}")


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
