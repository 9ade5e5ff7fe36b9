"""Receipts against each other: forks, rollbacks, doubled answers, sums past a budget.

What one receipt says by itself is checked in `fedprune.privacy.receipts`; here several are
compared in the order in which they arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from fedprune.errors import LedgerError
from fedprune.privacy.receipts import Receipt


@dataclass
class _Seen:
    """What the receipts before said, for comparison with the next."""

    whole: set[Receipt] = field(default_factory=set)
    key_of: dict[str, str] = field(default_factory=dict)
    client_of: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, int], Receipt] = field(default_factory=dict)
    last_row: dict[str, int] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], Receipt] = field(default_factory=dict)


def verify_receipts(
    lines: Iterable[str], *, run: str | None = None, budget: float | None = None
) -> Iterator[str]:
    """Check receipts in the order in which they arrived; yield one sentence for every flaw.

    A line that repeats an earlier one exactly is no flaw: a report that is asked for again gets
    the same bytes and the same receipt, and counts once.

    Args:
        lines: of receipts.jsonl.
        run: the run that all of them must be of, where known.
        budget: epsilon that no client may exceed over all of them, where known.
    """
    seen = _Seen()
    for number, line in enumerate(lines, start=1):
        try:
            receipt = Receipt.from_line(line)
        except LedgerError as error:
            yield f"receipt {number}: {error}"
            continue
        flaw = receipt.flaw()
        if flaw:
            yield f"receipt {number} of {receipt.subject}: {flaw}"
        elif receipt not in seen.whole:
            found = list(_contradictions(receipt, seen, run))
            yield from (f"receipt {number} of {receipt.subject}: {flaw}" for flaw in found)
            _remember(receipt, seen)
    if budget is not None:
        yield from _overspent(epsilon_of(seen.answers.values()), budget)


def epsilon_of(receipts: Iterable[Receipt]) -> dict[str, Fraction]:
    """Add up what each client was charged by distinct answers, exactly."""
    charges = {r.entry.key: r for r in receipts if r.charged}
    spent: dict[str, Fraction] = {}
    for receipt in charges.values():
        spent[receipt.client] = spent.get(receipt.client, Fraction(0)) + Fraction(receipt.epsilon)
    return spent


def _contradictions(receipt: Receipt, seen: _Seen, run: str | None) -> Iterator[str]:
    """Say what a sound receipt contradicts among those before it."""
    client, row = receipt.client, receipt.ledger_rows
    if run is not None and receipt.run != run:
        yield f"it is of run {receipt.run}, not of {run}"
    if seen.key_of.get(client, receipt.public_key) != receipt.public_key:
        yield "the client signed with another key before"
    owner = seen.client_of.get(receipt.public_key, client)
    if owner != client:
        yield f"its key is that of client {owner}"
    same_row = seen.rows.get((client, row))
    if same_row is not None and same_row.ledger_head != receipt.ledger_head:
        yield f"ledger row {row} had another content before: the ledger was rolled back"
    elif row < seen.last_row.get(client, 0):
        yield (
            f"its ledger row {row} comes after row {seen.last_row[client]}: the ledger was rolled "
            "back, or the receipts were reordered"
        )
    before, after = seen.rows.get((client, row - 1)), seen.rows.get((client, row + 1))
    if before is not None and before.ledger_head != receipt.ledger_previous:
        yield f"ledger row {row} does not follow the row {row - 1} of an earlier receipt"
    if after is not None and after.ledger_previous != receipt.ledger_head:
        yield f"the row {row + 1} of an earlier receipt does not follow ledger row {row}"
    first = seen.answers.get(receipt.entry.key)
    if first is not None and receipt.charged and first.charged and first.entry != receipt.entry:
        yield f"round {receipt.round} was answered before with another report or question"


def _remember(receipt: Receipt, seen: _Seen) -> None:
    seen.whole.add(receipt)
    seen.key_of.setdefault(receipt.client, receipt.public_key)
    seen.client_of.setdefault(receipt.public_key, receipt.client)
    seen.rows.setdefault((receipt.client, receipt.ledger_rows), receipt)
    last = seen.last_row.get(receipt.client, 0)
    seen.last_row[receipt.client] = max(last, receipt.ledger_rows)
    if receipt.charged:
        seen.answers.setdefault(receipt.entry.key, receipt)


def _overspent(spent: Mapping[str, Fraction], budget: float) -> Iterator[str]:
    for client, total in spent.items():
        if total > Fraction(budget):
            yield (
                f"client {client} signed for epsilon = {float(total):g}, past the budget of "
                f"{budget:g}"
            )
