"""Receipts against each other: forks, rollbacks, doubled answers, sums past a budget.

What one receipt says by itself is checked in `fedprune.privacy.ledgers.receipts`; here several are
compared in the order in which they arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import COUNTS_UNDER, REPLACEMENT, event_from_text
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.receipts import Receipt


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
    lines: Iterable[str],
    *,
    run: str | None = None,
    budget: float | Budget | Sequence[Budget] | None = None,
) -> Iterator[str]:
    """Check receipts in the order in which they arrived; yield one sentence for every flaw.

    A line that repeats an earlier one exactly is no flaw: a report that is asked for again gets
    the same bytes and the same receipt, and counts once.

    Args:
        lines: of receipts.jsonl.
        run: the run that all of them must be of, where known.
        budget: what no client may exceed over all of them, where known: budgets of different
            relations, or the epsilon of a pure one under replacement.
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
    for one in _budgets(budget):
        yield from _overspent(list(seen.answers.values()), one)


def epsilon_of(receipts: Iterable[Receipt], relation: str = REPLACEMENT) -> dict[str, Fraction]:
    """Add up the epsilon of each client's distinct answers that count under a relation, exactly.

    This is basic composition: deltas add up as well, and a filter of the client's own budget may
    have charged less. Epsilons of other relations are never added.
    """
    spent: dict[str, Fraction] = {}
    for receipt in _counted(receipts, relation):
        spent[receipt.client] = spent.get(receipt.client, Fraction(0)) + Fraction(receipt.epsilon)
    return spent


def charged_to(receipts: Iterable[Receipt], budget: Budget) -> dict[str, Fraction]:
    """Add up what each client's distinct answers cost of a budget, in its currency.

    Raises:
        PrivacyError: if the budget cannot count an event.
    """
    kept, spent = filter_of(budget), dict[str, Fraction]()
    for receipt in _counted(receipts, budget.relation):
        charge = kept.charge(event_from_text(receipt.event))
        spent[receipt.client] = spent.get(receipt.client, Fraction(0)) + charge
    return spent


def _counted(receipts: Iterable[Receipt], relation: str) -> list[Receipt]:
    """Distinct answers that were charged and count under a relation."""
    charged = {r.entry.key: r for r in receipts if r.charged}
    return [r for r in charged.values() if relation in COUNTS_UNDER[r.relation]]


def _budgets(given: float | Budget | Sequence[Budget] | None) -> Sequence[Budget]:
    if given is None:
        return ()
    if isinstance(given, int | float):
        return (Budget(float(given)),)
    return (given,) if isinstance(given, Budget) else given


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
    if first is not None and receipt.charged and first.charged and _differ(first, receipt):
        yield f"round {receipt.round} was answered before with another report or question"


def _differ(first: Receipt, second: Receipt) -> bool:
    return (first.entry, first.report_hash) != (second.entry, second.report_hash)


def _remember(receipt: Receipt, seen: _Seen) -> None:
    seen.whole.add(receipt)
    seen.key_of.setdefault(receipt.client, receipt.public_key)
    seen.client_of.setdefault(receipt.public_key, receipt.client)
    seen.rows.setdefault((receipt.client, receipt.ledger_rows), receipt)
    last = seen.last_row.get(receipt.client, 0)
    seen.last_row[receipt.client] = max(last, receipt.ledger_rows)
    if receipt.charged:
        seen.answers.setdefault(receipt.entry.key, receipt)


def _overspent(receipts: Sequence[Receipt], budget: Budget) -> Iterator[str]:
    kept = filter_of(budget)
    try:
        spent = charged_to(receipts, budget)
    except PrivacyError as error:
        yield f"a receipt under {budget.relation} charges what its budget cannot count: {error}"
        return
    for client, total in spent.items():
        if total > kept.capacity:
            yield (
                f"client {client} signed for epsilon = {kept.epsilon_of(total):g}, past the budget "
                f"of {budget.epsilon:g}"
            )
