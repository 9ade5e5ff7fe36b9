"""An owner's second copy of a ledger's head: what makes a rollback visible.

A chain proves that nothing inside it was changed, not that its end is still there: an old backup
of the file is a sound ledger with less spent. A copy of the head, kept in another place (another
disk, a share of another machine), names the last row, and a ledger without that row is refused.

The copy is written after the commit and before anything may be sent. After a crash between the
two it names an older row, which the ledger still has, so nobody is locked out; and what was sent
is always covered.

It finds: a ledger that was restored from a backup, cut off, begun anew, or deleted; a write-ahead
log that was lost. It does not find: a copy that was taken back together with the ledger (a
snapshot of a machine that holds both), or that was deleted: a missing copy is written anew.
Against those, only receipts that others keep help.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedprune.errors import LedgerError
from fedprune.privacy.ledgers.chain import is_content_hash

_SCHEMA = 1
_MOST_BYTES = 10_000


@dataclass(frozen=True)
class Head:
    """A ledger's last row.

    Attributes:
        ledger: hash of the ledger's terms.
        rows: number of the row; 0 before the first.
        hash: of the row; of the terms before the first.
    """

    ledger: str
    rows: int
    hash: str


def read_head(path: Path) -> Head | None:
    """Read a copy; None where there is none.

    Raises:
        LedgerError: if it cannot be read or is no such copy.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"cannot read the head copy {path}: {error.strerror}") from None
    try:
        content = json.loads(raw)
        head = Head(content["ledger"], content["rows"], content["hash"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LedgerError(_damaged(path)) from None
    texts = [head.ledger, head.hash]
    sound = all(isinstance(text, str) and text and is_content_hash(text) for text in texts)
    sound = sound and type(head.rows) is int and head.rows >= 0
    if not sound or raw != _text(head):
        raise LedgerError(_damaged(path))
    return head


def write_head(path: Path, head: Head) -> None:
    """Replace a copy; on return the new one is on disk, and at no time is there half of one.

    Raises:
        LedgerError: if it cannot be written; the old copy is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(_text(head))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise LedgerError(
            f"cannot write the head copy {path}: {error.strerror}; nothing is sent without it, "
            "and the ledger keeps what was reserved"
        ) from None


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(head: Head) -> bytes:
    content = {"schema": _SCHEMA, "ledger": head.ledger, "rows": head.rows, "hash": head.hash}
    return json.dumps(content).encode() + b"\n"


def _damaged(path: Path) -> str:
    return (
        f"the head copy {path} is damaged, so whether the ledger was rolled back cannot be told; "
        "check the ledger against receipts before the copy is removed"
    )
