"""A ledger's rows and the hash chain over them, without any file.

Row k's SHA-256 covers all of its columns and row k-1's hash; row 0's predecessor is the hash of
the ledger's own terms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

RESERVED, STORED, SENT = "reserved", "stored", "sent"

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
  report BLOB NOT NULL,
  report_hash TEXT NOT NULL,
  previous TEXT NOT NULL,
  hash TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX once ON entries (client, run, round, stage) WHERE stage != 'sent';
CREATE INDEX by_client ON entries (client, run, round);
"""
COLUMNS = (
    "seq, client, run, round, kind, stage, question, relation, epsilon, delta, "
    "report, report_hash, previous, hash"
)


@dataclass(frozen=True)
class Entry:
    """One row: what a client reserved, stored or sent.

    Attributes:
        client: who; run, round: for which question of which run.
        kind: "mask-report", "model-update", "count-table", ...
        question: SHA-256 of everything that the server asked.
        relation: neighbouring relation of `epsilon`, or "unprotected".
        epsilon, delta: charge of this event; 0 where unprotected, which then has no meaning.
        stage: "reserved", "stored" (with the report's exact bytes) or "sent" (unprotected).
    """

    client: str
    run: str
    round: str
    kind: str
    question: str
    relation: str
    epsilon: float = 0.0
    delta: float = 0.0
    stage: str = RESERVED
    report: bytes = b""

    @property
    def key(self) -> tuple[str, str, str]:
        """One answer is given per client, run and round."""
        return self.client, self.run, self.round


def to_row(seq: int, previous: str, entry: Entry) -> tuple[object, ...]:
    """Write an entry as row `seq`, its hash last."""
    fields = (
        seq,
        entry.client,
        entry.run,
        entry.round,
        entry.kind,
        entry.stage,
        entry.question,
        entry.relation,
        float(entry.epsilon).hex(),
        float(entry.delta).hex(),
        entry.report,
        hashlib.sha256(entry.report).hexdigest(),
        previous,
    )
    return (*fields, row_hash(fields))


def to_entry(row: tuple[object, ...]) -> Entry:
    """Read a row back.

    Raises:
        ValueError: if epsilon or delta is no number.
    """
    _, client, run, round_, kind, stage, question, relation, epsilon, delta, report, *_ = row
    return Entry(
        client=str(client),
        run=str(run),
        round=str(round_),
        kind=str(kind),
        question=str(question),
        relation=str(relation),
        epsilon=float.fromhex(str(epsilon)),
        delta=float.fromhex(str(delta)),
        stage=str(stage),
        report=report if isinstance(report, bytes) else b"",
    )


def row_hash(fields: Sequence[object]) -> str:
    """SHA-256 over the columns, each with its length in front, so that no two rows collide."""
    return hashlib.sha256(framed(fields)).hexdigest()


def framed(fields: Sequence[object]) -> bytes:
    """Join fields, each with its length in front: two different sequences never give one text."""
    raws = [field if isinstance(field, bytes) else str(field).encode() for field in fields]
    return b"".join(len(raw).to_bytes(8, "big") + raw for raw in raws)


def genesis(terms: dict[str, str]) -> str:
    """Hash of a ledger's terms: what row 1 links to."""
    return row_hash([part for item in sorted(terms.items()) for part in item])


def row_flaws(row: tuple[object, ...], expected: int, previous: str) -> Iterator[str]:
    """Say what is wrong with a row by itself and its link."""
    if row[0] != expected:
        yield f"row number {expected} is missing"
    if row[12] != previous:
        yield "its link does not match the hash of the row before"
    if row[13] != row_hash(row[:13]):
        yield "its content does not match its hash"
    if isinstance(row[10], bytes) and row[11] != hashlib.sha256(row[10]).hexdigest():
        yield "its report does not match the report's hash"


def order_flaws(
    entry: Entry,
    reserved: dict[tuple[str, str, str], Entry],
    stored: set[tuple[str, str, str]],
) -> Iterator[str]:
    """Say what is wrong with an entry after those before it, and remember it."""
    if entry.stage == RESERVED:
        if entry.key in reserved:
            yield f"client {entry.client} reserved round {entry.round} twice"
        reserved[entry.key] = entry
    elif entry.stage == STORED:
        if entry.key in stored:
            yield f"client {entry.client} stored two reports in round {entry.round}"
        if reserved.get(entry.key) != replace(entry, stage=RESERVED, report=b""):
            yield f"client {entry.client} stored a report that it did not reserve so"
        stored.add(entry.key)
    elif entry.stage != SENT:
        yield f"stage {entry.stage!r} is unknown"
