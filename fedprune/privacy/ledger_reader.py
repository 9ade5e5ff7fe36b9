"""A ledger file as it is read and verified: by its owner, by an auditor, before a receipt.

Nothing in this module changes a ledger; `fedprune.privacy.ledger` spends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

from fedprune.errors import LedgerError
from fedprune.privacy.accounting import Budget, compose_pure
from fedprune.privacy.chain import (
    COLUMNS,
    RESERVED,
    SENT,
    STORED,
    Entry,
    genesis,
    order_flaws,
    row_flaws,
    to_entry,
)
from fedprune.privacy.keys import SigningKey
from fedprune.privacy.receipts import Receipt

_CHUNK = 10_000


class LedgerReader:
    """An open ledger file; use it as a context manager or call `close`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, budget: Budget) -> None:
        """Wrap an open connection; use `Ledger.open`."""
        self._connection = connection
        self.path, self.budget = path, budget

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def spent(self, client: str) -> Fraction:
        """Sum of the epsilon that a client has reserved, exactly."""
        with readable_failures(self.path):
            return spent_in(self._history({client}).get(client, []))

    def entries(self) -> Iterator[Entry]:
        """Read all rows in order."""
        return (entry for _, entry in self.numbered_entries())

    def numbered_entries(self) -> Iterator[tuple[int, Entry]]:
        """Read all rows in order, each with its number."""
        with readable_failures(self.path):
            for row in self._connection.execute(f"SELECT {COLUMNS} FROM entries ORDER BY seq"):
                yield int(row[0]), to_entry(row)

    @property
    def head(self) -> tuple[int, str]:
        """Number of rows, and the hash of the last one (of the terms, if there is none)."""
        with readable_failures(self.path):
            return self._head()

    @property
    def terms(self) -> dict[str, str]:
        """The ledger's own terms: schema, owner, budget, privacy and, if it has one, its key."""
        with readable_failures(self.path):
            return self._terms()

    @property
    def signing_key(self) -> str | None:
        """The public key that the ledger is tied to; None in simulation."""
        return self.terms.get("signing_key")

    def hash_at(self, seq: int) -> str | None:
        """Hash of row `seq` (of the terms for 0), or None if there is no such row."""
        with readable_failures(self.path):
            if seq == 0:
                return genesis(self._terms())
            row = self._connection.execute(
                "SELECT hash FROM entries WHERE seq = ?", (seq,)
            ).fetchone()
        return str(row[0]) if row else None

    # Receipts.

    def receipt_head(self, entry: Entry) -> tuple[int, str]:
        """Number and hash of the row that stands for the answer to an event.

        Args:
            entry: as it was reserved, or as it was recorded unprotected; its stage and report do
                not matter.

        Returns:
            The row of the stored report, the same at every repeat; of an unprotected message, the
            latest row that records it.

        Raises:
            LedgerError: if nothing was stored or recorded for it.
        """
        seq, _, found = self._answer(entry)
        del found
        return seq, str(self.hash_at(seq))

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
        seq, previous, found = self._answer(entry)
        receipt = Receipt.sign(found, row=seq, previous=previous, key=key)
        if receipt.ledger_head != self.hash_at(seq):
            raise LedgerError(f"row {seq} of the ledger {self.path} does not match its hash")
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
        found = self.hash_at(receipt.ledger_rows)
        if found is None:
            return (
                f"row {receipt.ledger_rows} is not in the ledger, which has {self.head[0]}: it was "
                "rolled back"
            )
        if found != receipt.ledger_head:
            return f"row {receipt.ledger_rows} of the ledger has another hash: it was rewritten"
        return None

    # Verification.

    def verify(self) -> Iterator[str]:
        """Recompute the chain and the promises; yield one sentence for everything that is wrong.

        Checks: every hash, every link, consecutive numbers, report hashes, one reservation and at
        most one stored report per round, stored only after reserved, and no client past its budget.
        """
        with readable_failures(self.path):
            previous, expected = genesis(self._terms()), 1
            reserved: dict[tuple[str, str, str], Entry] = {}
            stored: set[tuple[str, str, str]] = set()
            spent: dict[str, list[float]] = {}
            for row in self._connection.execute(f"SELECT {COLUMNS} FROM entries ORDER BY seq"):
                where = f"ledger row {row[0]}"
                yield from (f"{where}: {flaw}" for flaw in row_flaws(row, expected, previous))
                previous, expected = row[13], row[0] + 1
                try:
                    entry = to_entry(row)
                except ValueError as error:
                    yield f"{where}: epsilon or delta is not a number ({error})"
                    continue
                yield from (f"{where}: {f}" for f in order_flaws(entry, reserved, stored))
                if entry.stage == RESERVED:
                    spent.setdefault(entry.client, []).append(entry.epsilon)
            for client, epsilons in spent.items():
                if compose_pure(epsilons) > Fraction(self.budget.epsilon):
                    yield (
                        f"client {client} reserved epsilon = {float(compose_pure(epsilons)):g}, "
                        f"past its budget of {self.budget.epsilon:g}"
                    )

    # The inside.

    def _terms(self) -> dict[str, str]:
        found = self._connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('terms', 'entries')"
        ).fetchone()[0]
        if not found:
            return {}
        return dict(self._connection.execute("SELECT name, value FROM terms ORDER BY name"))

    def _head(self) -> tuple[int, str]:
        row = self._connection.execute(
            "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return (int(row[0]), str(row[1])) if row else (0, genesis(self._terms()))

    def _history(self, clients: set[str]) -> dict[str, list[Entry]]:
        """Read the charged rows of some clients."""
        history: dict[str, list[Entry]] = {}
        names = sorted(clients)
        for start in range(0, len(names), _CHUNK):
            part = names[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(
                f"SELECT {COLUMNS} FROM entries WHERE client IN ({marks}) AND stage != ? "
                "ORDER BY seq",
                (*part, SENT),
            )
            for row in rows:
                history.setdefault(row[1], []).append(to_entry(row))
        return history

    def _answer(self, entry: Entry) -> tuple[int, str, Entry]:
        """Find the row that stands for an event's answer: number, previous hash, entry."""
        with readable_failures(self.path):
            rows = self._connection.execute(
                f"SELECT {COLUMNS} FROM entries WHERE client = ? AND run = ? AND round = ? "
                "AND stage != ? ORDER BY seq DESC",
                (*entry.key, RESERVED),
            ).fetchall()
        for row in rows:
            found = to_entry(row)
            same = replace(entry, stage=found.stage, report=found.report)
            if found.stage == STORED and found == same:
                return int(row[0]), str(row[12]), found
            if found.stage == SENT and (found.kind, found.question) == (entry.kind, entry.question):
                return int(row[0]), str(row[12]), found
        raise LedgerError(
            f"the ledger {self.path} has no answer of client {entry.client} in round {entry.round} "
            f"of run {entry.run}, so no receipt is given"
        )


def spent_in(history: Iterable[Entry]) -> Fraction:
    """Sum of the epsilon of all reservations, exactly."""
    return compose_pure(entry.epsilon for entry in history if entry.stage == RESERVED)


@contextmanager
def readable_failures(path: Path) -> Iterator[None]:
    """Say SQLite's failures (locked, full, not a database) in one sentence."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise LedgerError(f"the ledger {path} cannot be used: {error}") from error


def _key_words(public_key: str | None) -> str:
    return "no signing key" if public_key is None else f"key {public_key[:12]}"
