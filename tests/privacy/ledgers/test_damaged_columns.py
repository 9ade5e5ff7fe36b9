"""A column of a damaged file may hold any type or text: that is named, never a crash."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprune.audit.client_ledger import describe, verify
from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy import Budget, Entry, Ledger, SigningKey
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    REPLACEMENT,
    UNPROTECTED,
    SubsampledGaussianEvent,
    event_from_text,
)
from fedprune.privacy.ledgers.chain import SENT, Row

COLUMNS = get_type_hints(Row)
LOOSE = {
    "entries": f"CREATE TABLE entries (seq INTEGER PRIMARY KEY, {', '.join(list(COLUMNS)[1:])})",
    "terms": "CREATE TABLE terms (name PRIMARY KEY, value)",
}
WORDS = {int: "an integer", float: "a real number", str: "text", bytes: "bytes", type(None): "NULL"}
VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)  # SQLite stores NULL for what is not a number
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
)
ODD = (
    "nan",
    "inf",
    "-0x1p+0",
    "0x1p99999",
    "sent",
    "stored",
    "reserved",
    "no-charge",
    "r3",
    b"\xff",
)


def report(round_: str) -> Entry:
    return Entry("3", "run", round_, "mask-report", "q", REPLACEMENT, 0.5)


def filled(path: Path, *, private: bool) -> Path:
    steps = SubsampledGaussianEvent(1.2, 0.1, 10)
    budgets = [Budget(4.0), Budget.renyi(8.0, 1e-5, ADD_REMOVE_RECORD, [steps])]
    key = SigningKey.open(path.with_suffix(".key")).public if private else None
    with Ledger.open(path, budget=budgets, private=private, signing_key=key) as ledger:
        ledger.reserve(report("r1"))
        ledger.store(report("r1"), b"\x01\x02\x03")
        update = Entry("3", "run", "t1", "model-update", "q", UNPROTECTED, stage=SENT)
        ledger.record_unprotected([update])
        ledger.reserve(report("r2"))
        if not private:
            ledger.reserve_cohort(report("r3"), [4, 5])
            ledger.store_cohort(report("r3"), [4, 5], [b"four", b"five"])
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["a client's", "a simulation's"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("whole") / "ledger.sqlite", private=request.param)


@contextmanager
def without_types(path: Path) -> Iterator[sqlite3.Connection]:
    """Open tables that take any value; afterwards their schema says again that they do not.

    Rows lie on disk in the same way with and without types, so this leaves the file as flipped
    bits would.
    """
    with closing(sqlite3.connect(path)) as database:
        strict = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    declare(path, LOOSE)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("DROP INDEX once")  # it too holds for what SQLite writes only
        yield database
        database.commit()
    declare(path, strict)


def declare(path: Path, tables: Mapping[str, str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.executemany(
            "UPDATE sqlite_master SET sql = ? WHERE name = ? AND type = 'table'",
            [(sql, name) for name, sql in tables.items()],
        )


@contextmanager
def damaged(whole: Path, change: str, *values: object) -> Iterator[Path]:
    """Give a copy of a ledger that a statement has changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(whole, folder))
        with without_types(path) as database:
            database.execute(change, values)
        yield path


def refused(path: Path) -> str:
    """Make every use of a ledger fail; give what a client is told when it wants to spend."""
    with Ledger.open(path, read_only=True) as ledger:
        with pytest.raises(LedgerError):
            ledger.totals()
        with pytest.raises(LedgerError):
            list(ledger.entries())
    with pytest.raises(LedgerError):
        describe(path)
    assert not verify(path).holds
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="damaged") as caught:
        ledger.reserve(report("new"))
    return str(caught.value)


def test_the_whole_ledgers_are_whole(whole: Path) -> None:
    assert verify(whole).holds
    with damaged(whole, "UPDATE entries SET report = report") as path:
        assert verify(path).holds


@settings(max_examples=20)
@given(
    column=st.sampled_from([name for name in COLUMNS if name != "seq"]),
    row=st.integers(1, 4),
    value=VALUES,
)
def test_a_column_of_another_type_is_named_with_its_row(
    whole: Path, column: str, row: int, value: object
) -> None:
    assume(type(value) is not COLUMNS[column])
    flaw = f"its {column} is {WORDS[type(value)]}, not {WORDS[COLUMNS[column]]}"
    with damaged(whole, f"UPDATE entries SET {column} = ? WHERE seq = ?", value, row) as path:
        with Ledger.open(path, read_only=True) as ledger:
            assert f"ledger row {row}: {flaw}" in list(ledger.verify())
        with pytest.raises(LedgerError, match=rf"row {row} of the ledger .*: {flaw}"):
            describe(path)
        assert f"row {row}: {flaw}" in refused(path)


@settings(max_examples=40)
@given(
    column=st.sampled_from([name for name in COLUMNS if name != "seq"]),
    row=st.integers(1, 6),
    value=VALUES | st.sampled_from(ODD),
    as_text=st.booleans(),
)
def test_whatever_a_column_holds_ends_in_a_sentence_and_never_unseen(
    whole: Path, column: str, row: int, value: object, as_text: bool
) -> None:
    new = "CAST(? AS TEXT)" if as_text and isinstance(value, str | bytes) else "?"
    change = f"UPDATE entries SET {column} = {new} WHERE seq = ?"
    with damaged(whole, change, value, row) as path:
        if contents(path) == contents(whole):
            return
        assert not verify(path).holds
        with suppress(LedgerError):
            found = describe(path)
            "\n".join([*found.lines(), json.dumps(found.to_json())]).encode()
        with Ledger.open(path) as ledger:
            with pytest.raises(LedgerError):
                ledger.reserve(report("new"))
            with suppress(LedgerError):
                ledger.receipt_head(report("r1"))


def contents(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        return list(database.execute("SELECT * FROM entries ORDER BY seq"))


@pytest.mark.parametrize("column", ["name", "value"])
@pytest.mark.parametrize("value", [None, 7, 1.5, b"owner", b"\xff"])
@pytest.mark.parametrize("term", ["owner", "schema", "privacy", "budget of replacement"])
def test_terms_of_another_type_are_refused_at_once(
    whole: Path, column: str, value: object, term: str
) -> None:
    change = f"UPDATE terms SET {column} = ? WHERE name = ?"
    with damaged(whole, change, value, term) as path:
        for read_only in (True, False):
            with pytest.raises(LedgerError, match=r"terms of .* are damaged"):
                Ledger.open(path, read_only=read_only)


def test_a_row_without_a_number_is_no_row(whole: Path) -> None:
    loose = LOOSE["entries"].replace("INTEGER PRIMARY KEY", "")
    for value in ("three", b"3", 2.5):
        with damaged(whole, "SELECT 1") as path:
            with closing(sqlite3.connect(path)) as database:
                rows = database.execute("SELECT * FROM entries ORDER BY seq").fetchall()
                rows[-1] = (value, *rows[-1][1:])
                database.execute("DROP TABLE entries")
                database.execute(loose)
                marks = ", ".join("?" * len(COLUMNS))
                database.executemany(f"INSERT INTO entries VALUES ({marks})", rows)
                database.commit()
            with Ledger.open(path, read_only=True) as ledger:
                assert "its seq is" in " ".join(ledger.verify())
                with pytest.raises(LedgerError):
                    ledger.totals()


@pytest.mark.parametrize("steps", ["Infinity", '"0x1p99999"', "1e999", "[1]", "null"])
def test_an_event_with_an_impossible_number_is_no_event(steps: str) -> None:
    text = '{"event":"subsampled-gaussian","noise_multiplier":"0x1p+0","sampling_rate":"0x1p-1",'
    with pytest.raises(PrivacyError, match="not an event"):
        event_from_text(f'{text}"steps":{steps}}}')
