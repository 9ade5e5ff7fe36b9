"""A ledger as it is read and verified: by its owner, by an auditor, before a receipt.

Nothing in this module changes a ledger; `fedprune.privacy.ledgers.ledger` spends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy.budgets.events import REPLACEMENT, UNIT_OF
from fedprune.privacy.budgets.filters import Filter
from fedprune.privacy.ledgers.chain import (
    COLUMNS,
    RESERVED,
    SENT,
    STORED,
    Entry,
    Numbers,
    Row,
    cohort_clients,
    cohort_parts,
    to_entries,
    to_entry,
)
from fedprune.privacy.ledgers.head_copy import read_head
from fedprune.privacy.ledgers.keys import SigningKey
from fedprune.privacy.ledgers.ledger_file import LedgerFile, readable_failures
from fedprune.privacy.ledgers.ledger_state import Totals
from fedprune.privacy.ledgers.receipts import Receipt


class LedgerReader(LedgerFile):
    """An open ledger that is looked at."""

    # What was spent.

    def spent(self, client: str, relation: str = REPLACEMENT) -> Fraction:
        """What a client has spent under a relation: exactly, in the currency of that budget.

        Under a relation that the ledger has no budget for, nothing can be spent.

        Raises:
            LedgerError: if the ledger cannot be read or its chain is broken.
            PrivacyError: if there is no such relation.
        """
        return self._spent(client, relation)[1]

    def epsilon_spent(self, client: str, relation: str = REPLACEMENT) -> float:
        """The same as an epsilon at the budget's delta, rounded up, for display."""
        kept, spent = self._spent(client, relation)
        return kept.epsilon_of(spent) if kept else 0.0

    def epsilon_left(self, client: str, relation: str = REPLACEMENT) -> float:
        """The most that one more event of a client may guarantee alone, at the budget's delta.

        Of a pure budget it is what is left of epsilon; in other currencies epsilons do not add
        up, so it is not the budget's epsilon less what was spent.
        """
        kept, spent = self._spent(client, relation)
        return kept.epsilon_of(kept.capacity - spent) if kept else 0.0

    def totals(self) -> Totals:
        """What the whole ledger adds up to.

        Raises:
            LedgerError: if the ledger cannot be read or its chain is broken.
        """
        with self._reading() as state:
            return state.totals()

    # What stands in it.

    def entries(self) -> Iterator[Entry]:
        """Read all entries in order, a cohort's one by one."""
        return (entry for _, entry in self.numbered_entries())

    def numbered_entries(self) -> Iterator[tuple[int, Entry]]:
        """Read all entries in order, each with the number of its row.

        Raises:
            LedgerError: if a row is not as they are written, naming it.
        """
        with readable_failures(self.path):
            for row in self._rows_after(0):
                try:
                    for entry in to_entries(row):
                        yield row.seq, entry
                except ValueError as error:
                    raise self._damaged(row, error) from None

    # Receipts.

    def receipt_head(self, entry: Entry) -> tuple[int, str]:
        """Number and hash of the row that stands for the answer to an event.

        Args:
            entry: as it was reserved, or as it was recorded as sent; its stage and report do not
                matter.

        Returns:
            The row of the stored report, the same at every repeat; of what was recorded as sent,
            the latest row with the entry's content hash.

        Raises:
            LedgerError: if nothing was stored or recorded for it.
        """
        row = self._answer(entry)
        return row.seq, row.hash

    def receipt(self, entry: Entry, key: SigningKey) -> Receipt:
        """Sign a receipt for the answer to an event; byte-identical at every repeat.

        Raises:
            LedgerError: if there is no answer in the ledger, if the ledger is tied to another key
                or to none, or if the row is damaged.
        """
        if self.signing_key != key.public:
            raise LedgerError(
                f"the ledger {self.path} is tied to {_key_words(self.signing_key)}; it gives no "
                f"receipt under key {key.public[:12]}"
            )
        row = self._answer(entry)
        receipt = Receipt.sign(self._entry(row), row=row.seq, previous=row.previous, key=key)
        if receipt.ledger_head != row.hash:
            raise LedgerError(f"row {row.seq} of the ledger {self.path} does not match its hash")
        return receipt

    def confirms(self, receipt: Receipt) -> str | None:
        """Compare a receipt with this ledger: None if it still says so, else what differs.

        A row that is gone or has another hash means that the ledger was rolled back, or that the
        receipt was given for another ledger under the same key.
        """
        flaw = receipt.flaw()
        if flaw:
            return flaw
        if self.signing_key != receipt.public_key:
            return (
                f"it is signed with key {receipt.public_key[:12]}, this ledger is tied to "
                f"{_key_words(self.signing_key)}"
            )
        return self._lacks(receipt.ledger_rows, receipt.ledger_head)

    # Verification.

    def verify(self) -> Iterator[str]:
        """Recompute the chain and the promises; yield one sentence for everything that is wrong.

        Checks: every hash, every link, consecutive numbers, report hashes, one reservation and at
        most one stored report per client and round, stored only after reserved, every charge what
        its event costs, and no client past any of its budgets.
        """
        with readable_failures(self.path):
            state = self._new_state()
            for row in self._rows_after(0):
                yield from state.read(row)

    def rolled_back(self, copy: Path) -> str | None:
        """Compare with the owner's copy of the head: None if its row is here, else what is wrong.

        Raises:
            LedgerError: if the copy is damaged or cannot be read.
        """
        head = read_head(copy)
        if head is None:
            return f"there is no head copy at {copy}"
        if head.ledger != self.hash_at(0):
            return f"the head copy {copy} is of a ledger on other terms"
        return self._lacks(head.rows, head.hash)

    # The inside.

    def _spent(self, client: str, relation: str) -> tuple[Filter | None, Fraction]:
        if relation not in UNIT_OF:
            raise PrivacyError(f"a relation must be one of {', '.join(UNIT_OF)}, got {relation!r}")
        with self._reading() as state:
            spending = state.spending(relation)
            if spending is None:
                return None, Fraction(0)
            return spending.kept, spending.of(state.number_of(client))

    def _lacks(self, seq: int, wanted: str) -> str | None:
        """Say that a row is gone or another; None if it is here."""
        found = self.hash_at(seq)
        if found is None:
            return f"row {seq} is not in the ledger, which has {self.head[0]}: it was rolled back"
        if found != wanted:
            return f"row {seq} of the ledger has another hash: it was rewritten"
        return None

    def _reports(self, clients: Numbers, rows: Numbers) -> tuple[bytes, ...]:
        """Read stored reports: of each client in its row."""
        found: list[bytes] = [b""] * len(clients)
        for seq in np.unique(rows).tolist():
            row, places = self._row(seq), np.flatnonzero(rows == seq)
            if not row.clients:
                found[int(places[0])] = row.report
                continue
            known, parts = cohort_clients(row), cohort_parts(row)
            order = np.argsort(known)
            at = order[np.searchsorted(known, clients[places], sorter=order)]
            for place, part in zip(places.tolist(), parts[at], strict=True):
                found[place] = part.tobytes()
        return tuple(found)

    def _entry(self, row: Row) -> Entry:
        try:
            return to_entry(row)
        except ValueError as error:
            raise self._damaged(row, error) from None

    def _damaged(self, row: Row, error: ValueError) -> LedgerError:
        return LedgerError(f"row {row.seq} of the ledger {self.path} is damaged: {error}")

    def _answer(self, entry: Entry) -> Row:
        """Find the row that stands for an event's answer."""
        entry = self._new_state().completed(entry)
        with readable_failures(self.path):
            found = self._connection.execute(
                f"SELECT {COLUMNS} FROM entries WHERE client = ? AND run = ? AND round = ? "
                "AND stage != ? ORDER BY seq DESC",
                (*entry.key, RESERVED),
            )
            rows = [Row._make(row) for row in found]
        for row in rows:
            past = self._entry(row)
            if past.stage == STORED and past.asked == entry.asked:
                return row
            if past.stage == SENT and past == replace(entry, stage=SENT, report=b""):
                return row
        raise LedgerError(
            f"the ledger {self.path} has no answer of client {entry.client} in round {entry.round} "
            f"of run {entry.run}, so no receipt is given"
        )


def _key_words(public_key: str | None) -> str:
    return "no signing key" if public_key is None else f"key {public_key[:12]}"
