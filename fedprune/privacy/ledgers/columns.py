"""A ledger's tables, and one row as it lies in the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

TABLES = """
CREATE TABLE terms (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE entries (
  seq INTEGER PRIMARY KEY,
  client TEXT NOT NULL,
  run TEXT NOT NULL,
  round TEXT NOT NULL,
  kind TEXT NOT NULL,
  stage TEXT NOT NULL,
  question TEXT NOT NULL,
  relation TEXT NOT NULL,
  epsilon TEXT NOT NULL,
  delta TEXT NOT NULL,
  event TEXT NOT NULL,
  report_hash TEXT NOT NULL,
  previous TEXT NOT NULL,
  hash TEXT NOT NULL,
  clients BLOB NOT NULL,
  report BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX once ON entries (client, run, round, stage)
  WHERE stage != 'sent' AND client != '';
CREATE INDEX by_client ON entries (client, run, round);
"""


class Row(NamedTuple):
    """One row as it lies in the file.

    `client` is "" in a cohort's row, whose `clients` are little-endian 32-bit numbers and whose
    `report` holds as many reports (or content hashes) of one size, in the same order.
    """

    seq: int
    client: str
    run: str
    round: str
    kind: str
    stage: str
    question: str
    relation: str
    epsilon: str
    delta: str
    event: str
    report_hash: str
    previous: str
    hash: str
    clients: bytes
    report: bytes


COLUMNS = ", ".join(Row._fields)
_TYPES: tuple[type, ...] = tuple(get_type_hints(Row).values())
_SQL_NAMES: Mapping[type, str] = {
    int: "an integer",
    float: "a real number",
    str: "text",
    bytes: "bytes",
    type(None): "NULL",
}


def type_flaw(row: Row) -> str | None:
    """Name the first column that holds another type than the schema's; None where all fit.

    SQLite checks types when it writes: a bit that flips later can still make NULL of a text, or
    bytes of a number.
    """
    found: tuple[type[Any], ...] = tuple(map(type, row))
    if found == _TYPES:
        return None
    name, is_, wanted = next(
        (name, is_, wanted)
        for name, is_, wanted in zip(Row._fields, found, _TYPES, strict=True)
        if is_ is not wanted
    )
    return f"its {name} is {_SQL_NAMES[is_]}, not {_SQL_NAMES[wanted]}"
