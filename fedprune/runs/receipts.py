"""receipts.jsonl: what deployed clients signed, as it lies in a run folder."""

from __future__ import annotations

import hashlib
from typing import Any

from fedprune.errors import LedgerError, RunError
from fedprune.privacy import Receipt
from fedprune.runs.folder import RunFolder

RECEIPTS = "receipts.jsonl"


def receipt_lines(folder: RunFolder) -> list[str]:
    """Read the lines of receipts.jsonl in order; a torn last line (a crash) is ignored.

    Raises:
        RunError: if there is no such file or it is not text.
    """
    try:
        return [line.decode("ascii") for line in _whole_lines(folder)]
    except UnicodeDecodeError as error:
        raise RunError(f"{folder.path / RECEIPTS} is damaged: {error}") from None


def read_receipts(folder: RunFolder) -> list[Receipt]:
    """Read the distinct receipts of a run in order; their signatures are not checked here.

    Raises:
        RunError: if there is no such file or it is not text.
        LedgerError: naming the first line that is no receipt.
    """
    found: dict[Receipt, None] = {}
    for number, line in enumerate(receipt_lines(folder), start=1):
        try:
            found[Receipt.from_line(line)] = None
        except LedgerError as error:
            raise LedgerError(f"{folder.path / RECEIPTS}, line {number}: {error}") from None
    return list(found)


def receipts_head(folder: RunFolder) -> dict[str, Any]:
    """Say where receipts.jsonl stands: what an event names so that a later cut is visible.

    Returns:
        `receipt_lines` and `receipts_sha256` (of these lines with their ends); empty where there
        is no such file.
    """
    if not folder.has(RECEIPTS):
        return {}
    lines = _whole_lines(folder)
    return {"receipt_lines": len(lines), "receipts_sha256": _digest(lines)}


def receipts_contradiction(folder: RunFolder) -> str | None:
    """Say where receipts.jsonl does not begin with what a finished phase ended with.

    Returns:
        None where the file passed every point that the run's events name.
    """
    named = [event for event in folder.events() if "receipt_lines" in event]
    if not named:
        return None
    lines = _whole_lines(folder)
    for event in named:
        count = int(event["receipt_lines"])
        if count > len(lines) or _digest(lines[:count]) != event["receipts_sha256"]:
            return f"{RECEIPTS} is not the one that phase {event['phase']} ended with"
    return None


def _whole_lines(folder: RunFolder) -> list[bytes]:
    try:
        return (folder.path / RECEIPTS).read_bytes().split(b"\n")[:-1]
    except OSError:
        raise RunError(f"{RECEIPTS} is missing from the run folder {folder.path}") from None


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()
