"""The durable ledger with which a client enforces its own budget.

Order of events for a report: reserve epsilon -> fsync -> draw -> store the exact bytes -> send.
After a crash a reservation counts as spent; one without stored bytes may be completed once at no
new charge, because nothing is sent before it is stored. The same round and question get the same
bytes again, never a fresh draw; the same round with another question is refused, and so is
whatever would exceed the budget.

Rows are appended to one SQLite file (write-ahead log, synchronous = FULL) and hash-chained: row
k's SHA-256 covers all of its columns and row k-1's hash, row 0's covers the ledger's own terms.
A chain proves that nothing inside it was changed; that its end was not cut off shows only
against a head kept elsewhere (a receipt, or the run folder's events).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy.accounting import UNPROTECTED, Budget
from fedprune.privacy.chain import RESERVED, SENT, STORED, TABLES, Entry, to_row
from fedprune.privacy.ledger_reader import LedgerReader, readable_failures, spent_in

SCHEMA = 1
_PRIVATE, _NOT_PRIVATE = "private", "NOT PRIVATE: seeded simulation"


@dataclass(frozen=True)
class Memoised:
    """The question was answered before: these are the bytes that were stored."""

    report: bytes


@dataclass(frozen=True)
class Granted:
    """The budget is reserved and on disk: draw, then store."""

    resumed: bool = False  # the reservation is an earlier one that a crash left open


Answer: TypeAlias = Memoised | Granted | BudgetExceededError | QuestionChangedError


class Ledger(LedgerReader):
    """An open ledger file that can spend; use it as a context manager or call `close`."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        budget: Budget | None = None,
        owner: str = "simulation",
        private: bool = False,
        signing_key: str | None = None,
        read_only: bool = False,
    ) -> Ledger:
        """Open a ledger, or create it when `budget` is given and there is none.

        Args:
            path: the SQLite file.
            budget: the terms; must equal the stored ones if the file exists.
            owner: whose ledger it is ("simulation" for the shared one of a simulation).
            private: False stamps the ledger NOT PRIVATE (seeded randomness).
            signing_key: public half of the key that signs a private ledger's receipts; it is one
                of the terms, so the chain is tied to it.
            read_only: look without touching anything, as an auditor does.

        Raises:
            LedgerError: if it is missing, damaged, locked, or was opened on other terms.
        """
        path = Path(path)
        if not path.exists() and budget is None:
            raise LedgerError(f"there is no ledger at {path}")
        if signing_key is not None and not private:
            raise LedgerError(f"{path} gets no signing key: a simulation gives no receipts")
        wanted = _terms_for(budget, owner, private, signing_key)
        with readable_failures(path):
            # Autocommit; every write below opens its own immediate transaction.
            connection = _read_only(path) if read_only else _read_write(path)
        ledger = cls(connection, path, budget or Budget(1.0))
        try:
            with readable_failures(path):
                terms = ledger._terms() or ledger._create(wanted)
            ledger.budget = _stored_budget(path, terms)
            if budget is not None:
                _check_terms(path, terms, wanted)
            elif signing_key is not None and terms.get("signing_key") != signing_key:
                raise LedgerError(_other_key(path, terms.get("signing_key"), signing_key))
        except BaseException:
            connection.close()
            raise
        return ledger

    # Spending.

    def reserve(self, entry: Entry) -> Memoised | Granted:
        """Reserve one event's epsilon; on return it is on disk.

        Raises:
            BudgetExceededError: if the client's events would exceed its budget.
            QuestionChangedError: if this round was asked before with another question.
        """
        answer = self.reserve_many([entry])[0]
        if isinstance(answer, PrivacyError):
            raise answer
        return answer

    def reserve_many(self, entries: Sequence[Entry]) -> list[Answer]:
        """Reserve for many clients in one durable transaction; refusals come back as values."""
        for entry in entries:
            if entry.stage != RESERVED or entry.report:
                raise PrivacyError(f"only a reservation can be reserved, got {entry.stage!r}")
            if entry.relation != self.budget.relation or entry.delta != 0 or not entry.epsilon > 0:
                raise PrivacyError(
                    f"this ledger counts pure epsilon under {self.budget.relation}, got "
                    f"{entry.relation} with epsilon = {entry.epsilon!r}, delta = {entry.delta!r}"
                )
        with self._transaction():
            history = self._history({entry.client for entry in entries})
            answers: list[Answer] = []
            granted: list[Entry] = []
            for entry in entries:
                answer = self._decide(entry, history.setdefault(entry.client, []))
                answers.append(answer)
                if isinstance(answer, Granted) and not answer.resumed:
                    history[entry.client].append(entry)
                    granted.append(entry)
            self._append(granted)
        return answers

    def store(self, entry: Entry, report: bytes) -> None:
        """Store a reserved event's exact bytes; on return they are on disk and may be sent."""
        self.store_many([(entry, report)])

    def store_many(self, reports: Sequence[tuple[Entry, bytes]]) -> None:
        """Store many reports in one durable transaction.

        Raises:
            LedgerError: if an event was not reserved, or is stored already.
        """
        with self._transaction():
            history = self._history({entry.client for entry, _ in reports})
            for entry, report in reports:
                past = history.setdefault(entry.client, [])
                if [e for e in past if e.key == entry.key] != [entry]:
                    raise LedgerError(
                        f"a report of client {entry.client} in round {entry.round} can be stored "
                        f"once, after its own reservation; {self.path} has another history"
                    )
                past.append(replace(entry, stage=STORED, report=report))
            self._append(replace(entry, stage=STORED, report=report) for entry, report in reports)

    def record_unprotected(self, entries: Iterable[Entry]) -> None:
        """Write down messages that carry no guarantee, before they are sent."""
        with self._transaction():
            self._append(
                replace(e, stage=SENT, relation=UNPROTECTED, epsilon=0.0, delta=0.0)
                for e in entries
            )

    # The inside.

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
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _decide(self, entry: Entry, history: list[Entry]) -> Answer:
        same_round = [past for past in history if past.key == entry.key]
        if any(replace(past, stage=RESERVED, report=b"") != entry for past in same_round):
            return QuestionChangedError(
                f"client {entry.client} was asked another question in round {entry.round} of run "
                f"{entry.run}; one round gets one answer"
            )
        for past in same_round:
            if past.stage == STORED:
                return Memoised(past.report)
        if same_round:
            return Granted(resumed=True)
        total = spent_in(history) + Fraction(entry.epsilon)
        if total > Fraction(self.budget.epsilon):
            return BudgetExceededError(
                f"client {entry.client} has spent epsilon = {float(spent_in(history)):g} of its "
                f"budget of {self.budget.epsilon:g}; another {entry.epsilon:g} is refused"
            )
        return Granted()

    def _append(self, entries: Iterable[Entry]) -> None:
        seq, previous = self._head()
        rows = []
        for entry in entries:
            seq += 1
            rows.append(to_row(seq, previous, entry))
            previous = str(rows[-1][-1])
        marks = ",".join("?" * 14)
        self._connection.executemany(f"INSERT INTO entries VALUES ({marks})", rows)


def _terms_for(
    budget: Budget | None, owner: str, private: bool, signing_key: str | None
) -> dict[str, str]:
    if budget is None:
        return {}
    terms = {
        "schema": str(SCHEMA),
        "owner": owner,
        "privacy": _PRIVATE if private else _NOT_PRIVATE,
        "unit": budget.unit,
        "relation": budget.relation,
        "epsilon": float(budget.epsilon).hex(),
        "delta": float(budget.delta).hex(),
    }
    return terms if signing_key is None else terms | {"signing_key": signing_key}


def _stored_budget(path: Path, terms: Mapping[str, str]) -> Budget:
    if terms.get("schema") != str(SCHEMA):
        raise LedgerError(f"{path} has ledger schema {terms.get('schema')}, this is {SCHEMA}")
    try:
        return Budget(float.fromhex(terms["epsilon"]), float.fromhex(terms["delta"]))
    except (KeyError, ValueError, PrivacyError) as error:
        raise LedgerError(f"the terms of {path} are damaged: {error}") from None


def _check_terms(path: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to go on with a ledger on other terms than it was made for."""
    if any(stored.get(name) != wanted[name] for name in ("owner", "epsilon", "delta")):
        raise LedgerError(
            f"{path} is the ledger of {stored.get('owner')!r} with epsilon = "
            f"{float.fromhex(stored['epsilon']):g}; it cannot be opened for {wanted['owner']!r} "
            f"with epsilon = {float.fromhex(wanted['epsilon']):g}"
        )
    if stored.get("privacy") != wanted["privacy"]:
        raise LedgerError(
            f"{path} is stamped {stored.get('privacy')!r}; it cannot be opened as "
            f"{wanted['privacy']!r}"
        )
    if stored.get("signing_key") != wanted.get("signing_key"):
        raise LedgerError(_other_key(path, stored.get("signing_key"), wanted.get("signing_key")))


def _other_key(path: Path, stored: str | None, given: str | None) -> str:
    tied = "has no signing key" if stored is None else f"is tied to signing key {stored[:12]}"
    got = "none was given" if given is None else f"{given[:12]} was given"
    return f"{path} {tied}, {got}; restore the key file that belongs to it"


def _read_write(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _read_only(path: Path) -> sqlite3.Connection:
    """Open without writing; a ledger without a write-ahead log beside it cannot change."""
    still = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    uri = f"{path.resolve().as_uri()}?mode=ro{still}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)
