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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy.accounting import UNPROTECTED, Budget, compose_pure
from fedprune.privacy.chain import (
    COLUMNS,
    RESERVED,
    SENT,
    STORED,
    TABLES,
    Entry,
    genesis,
    order_flaws,
    row_flaws,
    to_entry,
    to_row,
)

SCHEMA = 1
_CHUNK = 10_000


@dataclass(frozen=True)
class Memoised:
    """The question was answered before: these are the bytes that were stored."""

    report: bytes


@dataclass(frozen=True)
class Granted:
    """The budget is reserved and on disk: draw, then store."""

    resumed: bool = False  # the reservation is an earlier one that a crash left open


Answer: TypeAlias = Memoised | Granted | BudgetExceededError | QuestionChangedError


class Ledger:
    """An open ledger file; use it as a context manager or call `close`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, budget: Budget) -> None:
        """Wrap an open connection; use `Ledger.open`."""
        self._connection = connection
        self.path, self.budget = path, budget

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        budget: Budget | None = None,
        owner: str = "simulation",
        private: bool = False,
        read_only: bool = False,
    ) -> Ledger:
        """Open a ledger, or create it when `budget` is given and there is none.

        Args:
            path: the SQLite file.
            budget: the terms; must equal the stored ones if the file exists.
            owner: whose ledger it is ("simulation" for the shared one of a simulation).
            private: False stamps the ledger NOT PRIVATE (seeded randomness).
            read_only: look without touching anything, as an auditor does.

        Raises:
            LedgerError: if it is missing, damaged, locked, or was opened on other terms.
        """
        path = Path(path)
        if not path.exists() and budget is None:
            raise LedgerError(f"there is no ledger at {path}")
        with _readable_failures(path):
            # Autocommit; every write below opens its own immediate transaction.
            connection = _read_only(path) if read_only else _read_write(path)
            ledger = cls(connection, path, budget or Budget(1.0))
            terms = ledger._terms() or ledger._create(budget, owner, private)
        if terms.get("schema") != str(SCHEMA):
            raise LedgerError(f"{path} has ledger schema {terms.get('schema')}, this is {SCHEMA}")
        try:
            stored = Budget(float.fromhex(terms["epsilon"]), float.fromhex(terms["delta"]))
        except (KeyError, ValueError, PrivacyError) as error:
            raise LedgerError(f"the terms of {path} are damaged: {error}") from None
        if budget is not None and (stored != budget or terms["owner"] != owner):
            raise LedgerError(
                f"{path} is the ledger of {terms['owner']!r} with epsilon = {stored.epsilon:g}; "
                f"it cannot be opened for {owner!r} with epsilon = {budget.epsilon:g}"
            )
        ledger.budget = stored
        return ledger

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Ledger:
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

    # Reading.

    def spent(self, client: str) -> Fraction:
        """Sum of the epsilon that a client has reserved, exactly."""
        with _readable_failures(self.path):
            return _spent(self._history({client}).get(client, []))

    def entries(self) -> Iterator[Entry]:
        """Read all rows in order."""
        with _readable_failures(self.path):
            for row in self._connection.execute(f"SELECT {COLUMNS} FROM entries ORDER BY seq"):
                yield to_entry(row)

    @property
    def head(self) -> tuple[int, str]:
        """Number of rows, and the hash of the last one (of the terms, if there is none)."""
        with _readable_failures(self.path):
            return self._head()

    @property
    def terms(self) -> dict[str, str]:
        """The ledger's own terms: schema, owner, budget, and whether it is private."""
        with _readable_failures(self.path):
            return self._terms()

    def verify(self) -> Iterator[str]:
        """Recompute the chain and the promises; yield one sentence for everything that is wrong.

        Checks: every hash, every link, consecutive numbers, report hashes, one reservation and at
        most one stored report per round, stored only after reserved, and no client past its budget.
        """
        with _readable_failures(self.path):
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

    def _create(self, budget: Budget | None, owner: str, private: bool) -> dict[str, str]:
        if budget is None:
            raise LedgerError(f"{self.path} is not a ledger")
        terms = {
            "schema": str(SCHEMA),
            "owner": owner,
            "privacy": "private" if private else "NOT PRIVATE: seeded simulation",
            "unit": budget.unit,
            "relation": budget.relation,
            "epsilon": float(budget.epsilon).hex(),
            "delta": float(budget.delta).hex(),
        }
        with self._transaction():
            if self._terms():  # another process was faster
                return self._terms()
            for statement in TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO terms VALUES (?, ?)", sorted(terms.items()))
        return terms

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _readable_failures(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

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
        total = _spent(history) + Fraction(entry.epsilon)
        if total > Fraction(self.budget.epsilon):
            return BudgetExceededError(
                f"client {entry.client} has spent epsilon = {float(_spent(history)):g} of its "
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

    def _head(self) -> tuple[int, str]:
        row = self._connection.execute(
            "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return (int(row[0]), str(row[1])) if row else (0, genesis(self._terms()))

    def hash_at(self, seq: int) -> str | None:
        """Hash of row `seq` (of the terms for 0), or None if there is no such row."""
        with _readable_failures(self.path):
            if seq == 0:
                return genesis(self._terms())
            row = self._connection.execute(
                "SELECT hash FROM entries WHERE seq = ?", (seq,)
            ).fetchone()
        return str(row[0]) if row else None


@contextmanager
def _readable_failures(path: Path) -> Iterator[None]:
    """Say SQLite's failures (locked, full, not a database) in one sentence."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise LedgerError(f"the ledger {path} cannot be used: {error}") from error


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


def _spent(history: Iterable[Entry]) -> Fraction:
    return compose_pure(entry.epsilon for entry in history if entry.stage == RESERVED)
