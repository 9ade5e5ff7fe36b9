"""Writing to a ledger: durable transactions, and the owner's copy of the head after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy.budgets.events import NO_CHARGE, UNPROTECTED
from fedprune.privacy.ledgers.chain import (
    RESERVED,
    SENT,
    TABLES,
    Entry,
    Numbers,
    Row,
    genesis,
    is_content_hash,
)
from fedprune.privacy.ledgers.head_copy import Head, read_head, write_head
from fedprune.privacy.ledgers.ledger_file import readable_failures
from fedprune.privacy.ledgers.ledger_reader import LedgerReader
from fedprune.privacy.ledgers.ledger_state import LedgerState


class LedgerWriter(LedgerReader):
    """An open ledger that rows are appended to."""

    _head_copy: Path | None = None
    _copied = -1  # up to which row the copy is known to reach

    def _create(self, terms: dict[str, str]) -> dict[str, str]:
        if not terms:
            raise LedgerError(f"{self.path} is not a ledger")
        with self._transaction():
            if self._terms():  # another process was faster
                return self._terms()
            for statement in TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO terms VALUES (?, ?)", sorted(terms.items()))
        return terms

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with readable_failures(self.path):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:  # SQLite ends some that fail by itself
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self, *, sends: bool = True) -> Iterator[LedgerState]:
        """Give the state as the file has it; what is taken into it is on disk at the end.

        Args:
            sends: whether something may be sent on the strength of the new rows: then the copy of
                the head has to name them. Nothing is sent on a mere reservation.
        """
        try:
            with self._transaction():
                state = self._current()
                before = state.rows
                yield state
        except BaseException:
            self._state = None  # it may have rows that the file has not
            raise
        needed = state.rows if sends else before
        if self._head_copy is not None and needed > self._copied:
            self._copy_head(self._head_copy)

    def _follow(self, copy: Path, read_only: bool) -> None:
        """Compare with the copy of the head and, unless only looking, keep it up to date."""
        if read_head(copy) is not None:
            flaw = self.rolled_back(copy)
            if flaw:
                raise LedgerError(f"the ledger {self.path} is refused: {flaw}")
        if not read_only:
            self._head_copy = copy
            self._copy_head(copy)

    def _copy_head(self, copy: Path) -> None:
        with self._transaction():  # nobody else writes meanwhile, so the copy never goes back
            head = Head(genesis(self._terms()), *self._head())
            if head != read_head(copy):
                write_head(copy, head)
        self._copied = head.rows

    def _check_storable(self, state: LedgerState, entry: Entry, clients: Numbers) -> None:
        known = state.round(entry)
        fits = known.asked.get_many(clients) == known.place_of(entry.asked)
        fits &= known.stored.get_many(clients) == 0
        if not fits.all():
            raise LedgerError(
                f"a report of client {state.name_of(int(clients[~fits][0]))} in round "
                f"{entry.round} can be stored once, after its own reservation; {self.path} has "
                "another history"
            )

    def _insert(self, rows: Sequence[Row]) -> None:
        marks = ",".join("?" * len(Row._fields))
        self._connection.executemany(f"INSERT INTO entries VALUES ({marks})", rows)


def taken(state: LedgerState, row: Row) -> Row:
    """Take a row into the state; a ledger writes nothing that it would not verify."""
    flaws = state.take(row)
    if flaws:
        raise LedgerError(f"row {row.seq} is not written: {flaws[0]}")
    return row


def check_reservations(entries: Iterable[Entry]) -> None:
    """Refuse to reserve what is no reservation.

    Raises:
        PrivacyError: naming its stage and client.
    """
    for entry in entries:
        if entry.stage != RESERVED or entry.report or entry.content_hash or not entry.client:
            raise PrivacyError(
                f"only a client's reservation can be reserved, got stage {entry.stage!r} of client "
                f"{entry.client!r}"
            )


def as_sent(entry: Entry) -> Entry:
    """Write an entry as the record of a message that is not charged.

    Raises:
        PrivacyError: if it names no client, or its content hash is no SHA-256.
    """
    if not is_content_hash(entry.content_hash) or not entry.client:
        raise PrivacyError(
            f"what client {entry.client!r} sends has a content hash of 64 lower-case hexadecimal "
            f"digits or none, got {entry.content_hash!r:.80}"
        )
    relation = NO_CHARGE if entry.relation == NO_CHARGE else UNPROTECTED
    plain = replace(entry, stage=SENT, relation=relation, epsilon=0.0, delta=0.0, report=b"")
    return replace(plain, event="")
