"""A ledger's rows and the hash chain over them, without any file.

Row k's SHA-256 covers all of its columns (its report by the report's own SHA-256) and row k-1's
hash; row 0's predecessor is the hash of the ledger's own terms. A row holds one client's entry or,
in a simulation's shared ledger, the entries of a whole cohort that was asked one question: their
numbers and reports, packed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.ledgers.columns import COLUMNS, TABLES, Row, type_flaw
from fedprune.privacy.ledgers.entry import RESERVED, SENT, STORED, Entry

HASH_BYTES = 32  # of a content hash, packed in a cohort's row
MOST_CLIENTS = 2**32  # a cohort's clients are numbers below this

Numbers = NDArray[np.int64]


def to_row(seq: int, previous: str, entry: Entry) -> Row:
    """Write one client's entry as row `seq`."""
    report_hash = entry.content_hash if entry.stage == SENT else _sha256(entry.report)
    return _chained(seq, previous, entry, entry.client, report_hash, b"", entry.report)


def to_cohort_row(
    seq: int, previous: str, template: Entry, clients: Numbers, packed: bytes = b""
) -> Row:
    """Write a cohort's entries as row `seq`.

    Args:
        seq: number of the row.
        previous: hash of the row before.
        template: what all entries share, its stage too; its client and report do not matter.
        clients: [n] numbers below 2**32.
        packed: their reports or content hashes in order, all of one size; empty for none.
    """
    numbers = clients.astype("<u4").tobytes()
    return _chained(seq, previous, template, "", _sha256(packed), numbers, packed)


def head_after(seq: int, previous: str, entry: Entry, report_hash: str) -> str:
    """Hash of the row that holds one client's entry, from its report's hash alone."""
    return _chained(seq, previous, entry, entry.client, report_hash, b"", b"").hash


def _chained(
    seq: int,
    previous: str,
    entry: Entry,
    client: str,
    report_hash: str,
    clients: bytes,
    report: bytes,
) -> Row:
    before = (
        seq,
        client,
        entry.run,
        entry.round,
        entry.kind,
        entry.stage,
        entry.question,
        entry.relation,
        float(entry.epsilon).hex(),
        float(entry.delta).hex(),
        entry.event,
        report_hash,
        previous,
    )
    return Row(*before, _sha256(framed((*before, clients))), clients, report)


def to_entry(row: Row) -> Entry:
    """Read one client's row back.

    Raises:
        ValueError: if a column holds another type than it should, or epsilon or delta is no
            number.
    """
    flaw = type_flaw(row)
    if flaw:
        raise ValueError(flaw)
    sent = row.stage == SENT
    return Entry(
        client=row.client,
        run=row.run,
        round=row.round,
        kind=row.kind,
        question=row.question,
        relation=row.relation,
        epsilon=_number(row.epsilon),
        delta=_number(row.delta),
        event=row.event,
        stage=row.stage,
        report=b"" if sent else row.report,
        content_hash=row.report_hash if sent else "",
    )


def _number(text: str) -> float:
    try:
        return float.fromhex(text)
    except OverflowError as error:
        raise ValueError(f"{text[:40]!r}: {error}") from None


def to_entries(row: Row) -> Iterator[Entry]:
    """Read a row's entries: one, or one for every client of a cohort.

    Raises:
        ValueError: if it is not a row as they are written.
    """
    shared = to_entry(row)
    if not row.clients:
        yield shared
        return
    sent = row.stage == SENT
    for number, raw in zip(cohort_clients(row).tolist(), cohort_parts(row), strict=True):
        part = raw.tobytes()
        one = object.__new__(Entry)  # a copy field by field takes four times as long
        one.__dict__.update(
            shared.__dict__,
            client=str(number),
            report=b"" if sent else part,
            content_hash=part.hex() if sent else "",
        )
        yield one


def cohort_clients(row: Row) -> Numbers:
    """Read the numbers of a cohort's clients: [n].

    Raises:
        ValueError: if they are not whole numbers, or one occurs twice.
    """
    numbers = np.frombuffer(row.clients, dtype="<u4").astype(np.int64)
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError("a client occurs twice in one cohort")
    return numbers


def cohort_parts(row: Row) -> NDArray[np.uint8]:
    """Read what a cohort's row holds for each of its clients: [n, size].

    Raises:
        ValueError: if it cannot be divided evenly.
    """
    count = len(row.clients) // 4
    return np.frombuffer(row.report, dtype=np.uint8).reshape(count, len(row.report) // count)


# Hashes.


def row_hash(row: Row) -> str:
    """SHA-256 over all columns but the hash itself and the report, which has one of its own.

    Each has its length in front, so that no two rows give one text.
    """
    place = Row._fields.index("hash")
    return _sha256(framed((*row[:place], row.clients)))


def framed(fields: Iterable[object]) -> bytes:
    """Join fields, each with its length in front: two different sequences never give one text."""
    raws = [
        field if isinstance(field, bytes) else str(field).encode("utf-8", "surrogateescape")
        for field in fields
    ]
    return b"".join([part for raw in raws for part in (len(raw).to_bytes(8, "big"), raw)])


def genesis(terms: dict[str, str]) -> str:
    """Hash of a ledger's terms: what row 1 links to."""
    return _sha256(framed(part for item in sorted(terms.items()) for part in item))


def row_flaws(row: Row, expected: int, previous: str) -> Iterator[str]:
    """Say what is wrong with a row by itself and its link."""
    if row.seq != expected:
        yield f"row number {expected} is missing"
    if row.previous != previous:
        yield "its link does not match the hash of the row before"
    if row.hash != row_hash(row):
        yield "its content does not match its hash"
    if row.stage == SENT and not row.clients:
        if row.report or not is_content_hash(row.report_hash):
            yield "what is only recorded as sent has a hash and no bytes"
    elif row.report_hash != _sha256(row.report):
        yield "its report does not match the report's hash"


def is_content_hash(text: str) -> bool:
    """Whether a text is a SHA-256 as it is written here, or "" for none."""
    return text == "" or (len(text) == 2 * HASH_BYTES and not set(text) - set("0123456789abcdef"))


def packed_reports(reports: Sequence[bytes] | NDArray[np.uint8], count: int) -> bytes:
    """Pack a cohort's reports.

    Raises:
        PrivacyError: if there are not `count`, or they differ in size.
    """
    if isinstance(reports, np.ndarray):
        if reports.dtype != np.uint8 or reports.ndim != 2 or len(reports) != count:
            raise PrivacyError(
                f"packed reports must be a [{count}, size] array of bytes, got "
                f"{reports.dtype} {list(reports.shape)}"
            )
        return reports.tobytes()
    sizes = set(map(len, reports))
    if len(reports) != count or len(sizes) > 1:
        raise PrivacyError(
            f"a cohort's reports must be {count} of one size, got {len(reports)} of sizes "
            f"{sorted(sizes)[:5]}"
        )
    return b"".join(reports)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


__all__ = [
    "COLUMNS",
    "HASH_BYTES",
    "MOST_CLIENTS",
    "RESERVED",
    "SENT",
    "STORED",
    "TABLES",
    "Entry",
    "Numbers",
    "Row",
    "cohort_clients",
    "cohort_parts",
    "framed",
    "genesis",
    "head_after",
    "is_content_hash",
    "packed_reports",
    "row_flaws",
    "row_hash",
    "to_cohort_row",
    "to_entries",
    "to_entry",
    "to_row",
    "type_flaw",
]
