"""A ledger in words: its terms, what was spent of its budget, and every row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy import Budget, Entry, Guarantee, Ledger, not_covered
from fedprune.privacy.budgets.accounting import PURE
from fedprune.privacy.budgets.events import COUNTS_UNDER, UNIT_OF, UNPROTECTED, event_from_text
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import RESERVED, SENT, STORED


@dataclass(frozen=True)
class Event:
    """One row of a ledger, with its report's size and hash instead of its bytes.

    Attributes:
        seq: number of the row.
        client, run, round, kind, question: as in the row.
        stage: "reserved" (charged), "stored" (the report, no new charge) or "sent" (recorded).
        relation, epsilon, delta: what the event alone guarantees; epsilon has no meaning where
            unprotected.
        released: the event as `event_to_text` writes it; "" where nothing is charged.
        report_bytes: of the stored report; 0 where there is none.
        report_sha256: of the stored report, or of what was sent; "" where neither is known.
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
    released: str
    report_bytes: int
    report_sha256: str


@dataclass(frozen=True)
class Allowance:
    """One budget of a ledger in words.

    Attributes:
        statement: the budget with its unit, its relation and who must be trusted.
        unit, relation, composition: the same, apart.
        epsilon: an exact decimal number.
        delta: 0 where the budget is pure.
    """

    statement: str
    unit: str
    relation: str
    composition: str
    epsilon: str
    delta: float


@dataclass(frozen=True)
class Account:
    """What one client has spent of one budget.

    Exact decimal numbers of a pure budget; of others the epsilon that the charges mean at the
    budget's delta, rounded up, and what is missing from the budget's.
    """

    client: str
    relation: str
    spent: str
    remaining: str


@dataclass(frozen=True)
class LedgerReport:
    """A ledger in words.

    Attributes:
        path: of the file.
        owner: whose it is.
        private: whether its reports were drawn from the operating system's CSPRNG.
        budgets: what may be spent, one under each neighbouring relation.
        signing_key: public key of its receipts, or None.
        rows, head: how many rows there are, and the hash of the last.
        accounts: what every client that was charged spent of every budget.
        not_covered: what was sent without protection, in words.
        events: all entries.
    """

    path: str
    owner: str
    private: bool
    budgets: tuple[Allowance, ...]
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
        for budget in self.budgets:
            yield f"  budget: {budget.statement}"
        yield f"  receipts signed with: {self.signing_key or 'no key, no receipts'}"
        yield f"  {self.rows} rows, the last with hash {self.head}"
        allowed = {budget.relation: budget for budget in self.budgets}
        for account in self.accounts:
            budget = allowed[account.relation]
            delta = f" at delta = {budget.delta:g}" if budget.delta else ""
            yield (
                f"  client {account.client}: epsilon = {account.spent}{delta} spent, "
                f"{account.remaining} left of {budget.epsilon} (protects one {budget.unit}; "
                f"{budget.relation}; {'nobody need be trusted' if self.private else 'NOT PRIVATE'})"
            )
        if not self.accounts:
            for budget in self.budgets:
                yield (
                    f"  nothing was charged: epsilon = {budget.epsilon} is left under "
                    f"{budget.relation}"
                )
        for words in self.not_covered:
            yield f"  not covered by any epsilon: {words}"
        yield from _table(self.events)


def describe(path: str | Path) -> LedgerReport:
    """Read a ledger without changing it; whether it is intact is for `verify` to say.

    Raises:
        LedgerError: if it is missing, is no ledger, or a row cannot be read.
    """
    with Ledger.open(path, read_only=True) as ledger:
        terms, budgets, private = ledger.terms, ledger.budgets, ledger.private
        rows, head = ledger.head
        events = tuple(_event(seq, entry) for seq, entry in ledger.numbered_entries())
        try:
            accounts = tuple(_accounts(events, budgets))
        except PrivacyError as error:
            raise LedgerError(f"a row of the ledger {path} is damaged: {error}") from None
    return LedgerReport(
        path=str(path),
        owner=_printable(terms.get("owner", "nobody")),
        private=private,
        budgets=tuple(_allowance(budget, private) for budget in budgets.values()),
        signing_key=_printable(terms["signing_key"]) if "signing_key" in terms else None,
        rows=rows,
        head=_printable(head),
        accounts=accounts,
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
    found = hashlib.sha256(entry.report).hexdigest() if stored else entry.content_hash
    return Event(
        seq=seq,
        client=_printable(entry.client),
        run=_printable(entry.run),
        round=_printable(entry.round),
        kind=_printable(entry.kind),
        stage=_printable(entry.stage),
        question=_printable(entry.question),
        relation=_printable(entry.relation),
        epsilon=entry.epsilon,
        delta=entry.delta,
        released=_printable(entry.event),
        report_bytes=len(entry.report),
        report_sha256=_printable(found),
    )


def _printable(text: str) -> str:
    """Write what was no text in a damaged file so that it can be printed."""
    return text.encode(errors="backslashreplace").decode()


def _allowance(budget: Budget, private: bool) -> Allowance:
    return Allowance(
        statement=_statement(budget, private),
        unit=budget.unit,
        relation=budget.relation,
        composition=budget.composition,
        epsilon=exact_decimal(Fraction(budget.epsilon)),
        delta=budget.delta,
    )


def _statement(budget: Budget, private: bool) -> str:
    if private:
        return Guarantee(
            budget.epsilon, budget.delta, budget.unit, budget.relation, "local"
        ).sentence()
    delta = f", delta = {budget.delta:g}" if budget.delta else ""
    return (
        f"epsilon = {budget.epsilon:g}{delta} for one {budget.unit} ({budget.relation}) in a "
        "seeded simulation: NOT PRIVATE, whoever knows the seed knows every draw, so this protects "
        "nobody"
    )


def _accounts(events: Sequence[Event], budgets: Mapping[str, Budget]) -> Iterator[Account]:
    """Add up what was reserved: every event under every budget that it counts under."""
    filters = {relation: filter_of(budget) for relation, budget in budgets.items()}
    spent: dict[tuple[str, str], Fraction] = {}
    for event in events:
        if event.stage != RESERVED or event.relation not in UNIT_OF:
            continue
        for relation in filters.keys() & set(COUNTS_UNDER[event.relation]):
            before = spent.get((event.client, relation), Fraction(0))
            charge = filters[relation].charge(event_from_text(event.released))
            spent[event.client, relation] = before + charge
    for (client, relation), total in spent.items():
        budget = budgets[relation]
        if budget.composition == PURE:
            left = Fraction(budget.epsilon) - total
            yield Account(client, relation, exact_decimal(total), exact_decimal(left))
        else:
            epsilon = filters[relation].epsilon_of(total)
            yield Account(client, relation, f"{epsilon:.6g}", f"{budget.epsilon - epsilon:.6g}")


_ELSEWHERE = {STORED: "as reserved", SENT: "none"}  # what stands where nothing is charged


def _table(events: Sequence[Event]) -> Iterator[str]:
    """Lay the rows out in columns; an epsilon is shown where it is charged."""
    if not events:
        return
    head = ("row", "client", "run", "round", "kind", "stage", "epsilon", "relation", "report")
    rows = [head]
    for event in events:
        charged = event.stage == RESERVED
        epsilon = f"{event.epsilon!r}" if charged else _ELSEWHERE.get(event.stage, "not known")
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
