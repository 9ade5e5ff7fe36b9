"""A ledger in words: its terms, what was spent of its budget, and every row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy import Budget, Entry, Guarantee, Ledger, not_covered
from fedprune.privacy.accounting import UNPROTECTED
from fedprune.privacy.chain import RESERVED, SENT, STORED


@dataclass(frozen=True)
class Event:
    """One row of a ledger, with its report's size and hash instead of its bytes.

    Attributes:
        seq: number of the row.
        client, run, round, kind, question: as in the row.
        stage: "reserved" (charged), "stored" (the report, no new charge) or "sent" (unprotected).
        relation, epsilon, delta: the charge; epsilon has no meaning where unprotected.
        report_bytes, report_sha256: of the stored report; 0 and "" where there is none.
    """

    seq: int
    client: str
    run: str
    round: str
    kind: str
    stage: str
    question: str
    relation: str
    epsilon: float
    delta: float
    report_bytes: int
    report_sha256: str


@dataclass(frozen=True)
class Account:
    """What one client has spent of its budget: exact decimal numbers."""

    client: str
    spent: str
    remaining: str


@dataclass(frozen=True)
class LedgerReport:
    """A ledger in words.

    Attributes:
        path: of the file.
        owner: whose it is.
        private: whether its reports were drawn from the operating system's CSPRNG.
        statement: the budget with its unit, its relation and who must be trusted.
        unit, relation, budget: the same, apart; the budget is an exact decimal number.
        signing_key: public key of its receipts, or None.
        rows, head: how many rows there are, and the hash of the last.
        accounts: every client that was charged.
        not_covered: what was sent without protection, in words.
        events: all rows.
    """

    path: str
    owner: str
    private: bool
    statement: str
    unit: str
    relation: str
    budget: str
    signing_key: str | None
    rows: int
    head: str
    accounts: tuple[Account, ...]
    not_covered: tuple[str, ...]
    events: tuple[Event, ...]

    def to_json(self) -> dict[str, Any]:
        """Say it for programs."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Say it for people."""
        yield f"ledger of {self.owner}: {self.path}"
        yield f"  budget: {self.statement}"
        yield f"  receipts signed with: {self.signing_key or 'no key, no receipts'}"
        yield f"  {self.rows} rows, the last with hash {self.head}"
        for account in self.accounts:
            yield (
                f"  client {account.client}: epsilon = {account.spent} spent, {account.remaining} "
                f"left of {self.budget} (protects one {self.unit}; {self.relation}; "
                f"{'nobody need be trusted' if self.private else 'NOT PRIVATE'})"
            )
        if not self.accounts:
            yield f"  nothing was charged: epsilon = {self.budget} is left"
        for words in self.not_covered:
            yield f"  not covered by any epsilon: {words}"
        yield from _table(self.events)


def describe(path: str | Path) -> LedgerReport:
    """Read a ledger without changing it; whether it is intact is for `verify` to say.

    Raises:
        LedgerError: if it is missing, is no ledger, or a row cannot be read.
    """
    with Ledger.open(path, read_only=True) as ledger:
        try:
            events = tuple(_event(seq, entry) for seq, entry in ledger.numbered_entries())
        except ValueError as error:
            raise LedgerError(f"a row of the ledger {path} is damaged: {error}") from None
        terms, budget = ledger.terms, ledger.budget
        rows, head = ledger.head
    private = terms.get("privacy") == "private"
    return LedgerReport(
        path=str(path),
        owner=terms.get("owner", "nobody"),
        private=private,
        statement=_statement(budget, private),
        unit=budget.unit,
        relation=budget.relation,
        budget=exact_decimal(Fraction(budget.epsilon)),
        signing_key=terms.get("signing_key"),
        rows=rows,
        head=head,
        accounts=tuple(_accounts(events, Fraction(budget.epsilon))),
        not_covered=tuple(not_covered(e.kind for e in events if e.relation == UNPROTECTED)),
        events=events,
    )


def exact_decimal(value: Fraction) -> str:
    """Write a sum of floating-point numbers with all its digits: it always has finitely many.

    Raises:
        PrivacyError: if the denominator is not a power of two.
    """
    places = value.denominator.bit_length() - 1
    if value.denominator != 1 << places:
        raise PrivacyError(f"{value} is not a sum of floating-point numbers")
    digits = str(abs(value.numerator) * 5**places).rjust(places + 1, "0")
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
    return f"{'-' if value < 0 else ''}{whole}{'.' if part else ''}{part}"


def _event(seq: int, entry: Entry) -> Event:
    stored = entry.stage == STORED
    return Event(
        seq=seq,
        client=entry.client,
        run=entry.run,
        round=entry.round,
        kind=entry.kind,
        stage=entry.stage,
        question=entry.question,
        relation=entry.relation,
        epsilon=entry.epsilon,
        delta=entry.delta,
        report_bytes=len(entry.report),
        report_sha256=hashlib.sha256(entry.report).hexdigest() if stored else "",
    )


def _statement(budget: Budget, private: bool) -> str:
    if private:
        return Guarantee(
            budget.epsilon, budget.delta, budget.unit, budget.relation, "local"
        ).sentence()
    return (
        f"epsilon = {budget.epsilon:g} in a seeded simulation: NOT PRIVATE, whoever knows the seed "
        "knows every draw, so this protects nobody"
    )


def _accounts(events: Sequence[Event], budget: Fraction) -> Iterator[Account]:
    spent: dict[str, Fraction] = {}
    for event in events:
        if event.stage == RESERVED:
            before = spent.get(event.client, Fraction(0))
            spent[event.client] = before + Fraction(event.epsilon)
    for client, total in spent.items():
        yield Account(client, exact_decimal(total), exact_decimal(budget - total))


_ELSEWHERE = {STORED: "as reserved", SENT: "none"}  # what stands where nothing is charged


def _table(events: Sequence[Event]) -> Iterator[str]:
    """Lay the rows out in columns; an epsilon is shown where it is charged."""
    if not events:
        return
    head = ("row", "client", "run", "round", "kind", "stage", "epsilon", "relation", "report")
    rows = [head]
    for event in events:
        epsilon = f"{event.epsilon!r}" if event.stage == RESERVED else _ELSEWHERE[event.stage]
        report = f"{event.report_bytes} B {event.report_sha256[:12]}" if event.report_sha256 else ""
        rows.append(
            (
                str(event.seq),
                event.client,
                event.run,
                event.round,
                event.kind,
                event.stage,
                epsilon,
                event.relation,
                report,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
