"""A ledger's file: its terms, its rows, and what they add up to so far."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fedprune.errors import LedgerError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.ledgers.chain import COLUMNS, Row, genesis
from fedprune.privacy.ledgers.ledger_state import LedgerState
from fedprune.privacy.ledgers.ledger_terms import PRIVATE


class LedgerFile:
    """An open ledger file; use it as a context manager or call `close`.

    Attributes:
        path: of the file.
        budgets: what may be spent, by neighbouring relation.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Wrap an open connection; use `Ledger.open`."""
        # Bytes that are no text must reach the hash, which names their row.
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        self._connection = connection
        self._state: LedgerState | None = None
        self.path = path
        self.budgets: Mapping[str, Budget] = {}

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

    @property
    def head(self) -> tuple[int, str]:
        """Number of rows, and the hash of the last one (of the terms, if there is none)."""
        with readable_failures(self.path):
            return self._head()

    @property
    def terms(self) -> dict[str, str]:
        """The ledger's own terms: schema, owner, budgets, privacy and, if it has one, its key."""
        with readable_failures(self.path):
            return self._terms()

    @property
    def private(self) -> bool:
        """Whether it is a deployed client's own; False for the shared one of a simulation."""
        return self.terms.get("privacy") == PRIVATE

    @property
    def signing_key(self) -> str | None:
        """The public key that the ledger is tied to; None in simulation."""
        return self.terms.get("signing_key")

    def hash_at(self, seq: int) -> str | None:
        """Hash of row `seq` (of the terms for 0), or None if there is no such row."""
        with readable_failures(self.path):
            return self._hash_at(seq)

    # The inside.

    @contextmanager
    def _reading(self) -> Iterator[LedgerState]:
        with readable_failures(self.path):
            try:
                self._connection.execute("BEGIN")
                yield self._current()
            except BaseException:
                self._state = None
                raise
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _current(self) -> LedgerState:
        """Bring the state up to the file, inside a transaction; refuse a file that is damaged."""
        state = self._state or self._new_state()
        if self._hash_at(state.rows) != state.head:
            raise LedgerError(
                f"row {state.rows} of the ledger {self.path} changed while it was open: it was "
                "replaced or rolled back"
            )
        for row in self._rows_after(state.rows):
            for flaw in state.read(row):
                raise LedgerError(f"the ledger {self.path} is damaged: {flaw}")
        self._state = state
        return state

    def _new_state(self) -> LedgerState:
        terms = self._terms()
        return LedgerState(self.budgets, genesis(terms), shared=terms.get("privacy") != PRIVATE)

    def _terms(self) -> dict[str, str]:
        found = self._connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('terms', 'entries')"
        ).fetchone()[0]
        if not found:
            return {}
        terms = dict(self._connection.execute("SELECT name, value FROM terms ORDER BY name"))
        for name, value in terms.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise LedgerError(f"the terms of {self.path} are damaged: {name!r:.80} is not text")
        return terms

    def _head(self) -> tuple[int, str]:
        row = self._connection.execute(
            "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        if row and not isinstance(row[0], int):
            raise LedgerError(f"the last row of the ledger {self.path} has no number: {row[0]!r}")
        return (row[0], str(row[1])) if row else (0, genesis(self._terms()))

    def _hash_at(self, seq: int) -> str | None:
        if seq == 0:
            return genesis(self._terms())
        found = self._connection.execute("SELECT hash FROM entries WHERE seq = ?", (seq,))
        row = found.fetchone()
        return str(row[0]) if row else None

    def _rows_after(self, seq: int) -> Iterator[Row]:
        found = self._connection.execute(
            f"SELECT {COLUMNS} FROM entries WHERE seq > ? ORDER BY seq", (seq,)
        )
        return map(Row._make, found)

    def _row(self, seq: int) -> Row:
        found = self._connection.execute(f"SELECT {COLUMNS} FROM entries WHERE seq = ?", (seq,))
        return Row._make(found.fetchone())


@contextmanager
def readable_failures(path: Path) -> Iterator[None]:
    """Say SQLite's failures (locked, full, not a database) in one sentence."""
    try:
        yield
    except (sqlite3.Error, UnicodeError) as error:
        raise LedgerError(f"the ledger {path} cannot be used: {error}") from error
