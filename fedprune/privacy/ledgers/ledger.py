"""The durable ledger with which a client enforces its own budgets.

Order of events for a report: reserve -> fsync -> draw -> store the exact bytes -> send. After a
crash a reservation counts as spent; one without stored bytes may be completed once at no new
charge, because nothing is sent before it is stored. The same round and question get the same
bytes again, never a fresh draw; the same round with another question is refused, and so is
whatever would exceed one of the budgets that it counts under. A message that says nothing about
the data is reserved and stored in the same way, at no charge.

Rows are appended to one SQLite file (write-ahead log, synchronous = FULL) and hash-chained: row
k's SHA-256 covers all of its columns and row k-1's hash, row 0's covers the ledger's own terms.
Before anything is written, what is new in the file is verified: nothing is spent on a ledger that
was damaged. A chain proves that nothing inside it was changed; that its end was not cut off shows
against a head kept elsewhere (`head_copy`, a receipt, or the run folder's events).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.ledgers.chain import STORED, Entry, Numbers, to_row
from fedprune.privacy.ledgers.cohorts import CohortAnswer, CohortLedger, question_changed
from fedprune.privacy.ledgers.head_copy import read_head
from fedprune.privacy.ledgers.ledger_file import readable_failures
from fedprune.privacy.ledgers.ledger_state import LedgerState
from fedprune.privacy.ledgers.ledger_terms import (
    by_relation,
    check_key,
    check_terms,
    stored_budgets,
    terms_for,
)
from fedprune.privacy.ledgers.ledger_writer import as_sent, check_reservations, taken

_BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Memoised:
    """The question was answered before: these are the bytes that were stored."""

    report: bytes


@dataclass(frozen=True)
class Granted:
    """The budget is reserved and on disk: draw, then store."""

    resumed: bool = False  # the reservation is an earlier one that a crash left open


Answer: TypeAlias = Memoised | Granted | BudgetExceededError | QuestionChangedError


class Ledger(CohortLedger):
    """An open ledger file that can spend; use it as a context manager or call `close`."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        budget: Budget | Sequence[Budget] | None = None,
        owner: str = "simulation",
        private: bool = False,
        signing_key: str | None = None,
        read_only: bool = False,
        head_copy: str | Path | None = None,
    ) -> Ledger:
        """Open a ledger, or create it when `budget` is given and there is none.

        Args:
            path: the SQLite file.
            budget: the terms, one budget under each neighbouring relation that something may be
                charged under; must equal the stored ones if the file exists.
            owner: whose ledger it is ("simulation" for the shared one of a simulation).
            private: False stamps the ledger NOT PRIVATE (seeded randomness).
            signing_key: public half of the key that signs a private ledger's receipts; it is one
                of the terms, so the chain is tied to it.
            read_only: look without touching anything, as an auditor does.
            head_copy: the owner's copy of the ledger's last row, best kept in another place: a
                ledger without that row was rolled back and is refused. A missing copy is written.

        Raises:
            LedgerError: if it is missing, damaged, locked, rolled back, or was opened on other
                terms.
        """
        path, copy = Path(path), None if head_copy is None else Path(head_copy)
        budgets = by_relation(budget)
        if not path.exists():
            _check_absence(path, copy, known=bool(budgets) and not read_only)
        if signing_key is not None and not private:
            raise LedgerError(f"{path} gets no signing key: a simulation gives no receipts")
        wanted = terms_for(budgets, owner, private, signing_key)
        with readable_failures(path):
            # Autocommit; every write below opens its own immediate transaction.
            connection = _read_only(path) if read_only else _read_write(path)
        ledger = cls(connection, path)
        try:
            with readable_failures(path):
                terms = ledger._terms() or ledger._create(wanted)
            ledger.budgets = stored_budgets(path, terms)
            if wanted:
                check_terms(path, terms, wanted)
            elif signing_key is not None:
                check_key(path, terms, signing_key)
            if copy is not None:
                ledger._follow(copy, read_only)
        except BaseException:
            connection.close()
            raise
        return ledger

    # Spending.

    def reserve(self, entry: Entry) -> Memoised | Granted:
        """Reserve one event; on return the reservation is on disk.

        Raises:
            BudgetExceededError: if the client's events would exceed one of its budgets.
            QuestionChangedError: if this round was asked before with another question.
            PrivacyError: if the entry's figures are not those of its event.
        """
        answer = self.reserve_many([entry])[0]
        if isinstance(answer, PrivacyError):
            raise answer
        return answer

    def reserve_many(self, entries: Sequence[Entry]) -> list[Answer]:
        """Reserve for many clients in one durable transaction; refusals come back as values.

        Raises:
            PrivacyError: if an entry's figures are not those of its event, or this ledger has no
                budget under its relation; then nothing is reserved for anybody.
        """
        check_reservations(entries)
        with self._writing(sends=False) as state:
            wanted = [state.completed(entry) for entry in entries]
            for entry in wanted:
                state.charges(entry)
            answers, rows = [], []
            for entry in wanted:
                answer = self._decide(state, entry)
                answers.append(answer)
                if answer == Granted():
                    rows.append(taken(state, to_row(state.rows + 1, state.head, entry)))
            self._insert(rows)
        return answers

    def store(self, entry: Entry, report: bytes) -> None:
        """Store a reserved event's exact bytes; on return they are on disk and may be sent."""
        self.store_many([(entry, report)])

    def store_many(self, reports: Sequence[tuple[Entry, bytes]]) -> None:
        """Store many reports in one durable transaction.

        Raises:
            LedgerError: if an event was not reserved, or is stored already.
        """
        with self._writing() as state:
            rows = []
            for asked, report in reports:
                entry = state.completed(asked)
                self._check_storable(state, entry, _numbers(state, entry))
                stored = replace(entry, stage=STORED, report=report)
                rows.append(taken(state, to_row(state.rows + 1, state.head, stored)))
            self._insert(rows)

    # Recording.

    def record_unprotected(self, entries: Iterable[Entry]) -> None:
        """Write down messages that are not charged, before they are sent.

        Args:
            entries: under the relation "no-charge" if they say nothing about the data, else
                recorded as unprotected; a `content_hash` binds what is sent.

        Raises:
            PrivacyError: if a content hash is not a SHA-256.
        """
        sent = [as_sent(entry) for entry in entries]
        with self._writing() as state:
            self._insert([taken(state, to_row(state.rows + 1, state.head, e)) for e in sent])

    # The inside.

    def _decide(self, state: LedgerState, entry: Entry) -> Answer:
        known, client = state.round(entry), state.number_of(entry.client)
        place = known.asked.get(client)
        if place < 0:
            return state.refusal(entry, client) or Granted()
        if place != known.place_of(entry.asked):
            return question_changed(entry, entry.client)
        row = known.stored.get(client)
        if not row:
            return Granted(resumed=True)
        return Memoised(self._reports(np.array([client]), np.array([row]))[0])


def _numbers(state: LedgerState, entry: Entry) -> Numbers:
    return np.array([state.number_of(entry.client)], dtype=np.int64)


def _check_absence(path: Path, copy: Path | None, *, known: bool) -> None:
    """Refuse a missing ledger that cannot, or must not, be made anew."""
    if not known:
        raise LedgerError(f"there is no ledger at {path}")
    head = None if copy is None else read_head(copy)
    if head is not None and head.rows:
        raise LedgerError(
            f"there is no ledger at {path}, but its head copy {copy} names row {head.rows}: it was "
            "deleted or moved; restore it, its budget cannot be begun anew"
        )


def _read_write(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _read_only(path: Path) -> sqlite3.Connection:
    """Open without writing; a ledger without a write-ahead log beside it cannot change."""
    still = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    uri = f"{path.resolve().as_uri()}?mode=ro{still}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


__all__ = ["Answer", "CohortAnswer", "Granted", "Ledger", "Memoised"]
