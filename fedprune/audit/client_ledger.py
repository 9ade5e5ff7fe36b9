"""A client's own ledger, shown to its owner and verified where it lies.

The auditor of a deployed run sees receipts only; here the other half is checked: that the ledger
still holds every row that its key has signed for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedprune.audit.findings import Audit, Finding, check
from fedprune.audit.ledger_report import Account, Allowance, Event, LedgerReport, describe
from fedprune.errors import LedgerError
from fedprune.privacy import Ledger, Receipt, verify_receipts

_UNSEEN = (
    "rows that were cut off the end, unless a receipt or a copy of the head names one of them",
    "a ledger, its key and its head's copy that were deleted together and begun anew: only who "
    "keeps the old receipts can tell",
    "whether the reports were drawn by the mechanism that they were charged for",
)


def verify(
    path: str | Path,
    receipts: str | Path | None = None,
    head_copy: str | Path | None = None,
) -> Audit:
    """Check a ledger's chain and promises and, with receipts, that it still holds what it signed.

    Args:
        path: of the ledger.
        receipts: a receipts.jsonl, of a run's folder or the owner's own copy; receipts of other
            keys are left aside.
        head_copy: the owner's copy of the ledger's last row, kept elsewhere.

    Raises:
        LedgerError: if there is no ledger to look at, or no file of receipts.
    """
    with Ledger.open(path, read_only=True) as ledger:
        findings = [
            check(
                "ledger",
                "chain, report bytes, charges, promises and budgets are intact",
                lambda: next(ledger.verify(), None),
                f"{ledger.head[0]} rows recomputed",
            )
        ]
        if head_copy is not None:
            copy = Path(head_copy)
            findings.append(
                check(
                    "ledger",
                    "the owner's copy of the head names a row that is here",
                    lambda: ledger.rolled_back(copy),
                    f"no row up to that of {copy} was cut off",
                )
            )
        if receipts is not None:
            findings += _confirmations(ledger, _lines(Path(receipts)))
    return Audit(tuple(findings), _UNSEEN)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except OSError as error:
        raise LedgerError(f"cannot read the receipts {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LedgerError(f"the receipts {path} are damaged: {error}") from None
    return lines if lines[-1] else lines[:-1]


def _confirmations(ledger: Ledger, lines: Sequence[str]) -> Iterator[Finding]:
    """Check the lines by themselves, then those of this ledger's key against the ledger."""
    receipts, unreadable = [], ""
    for number, line in enumerate(lines, start=1):
        try:
            receipts.append((number, Receipt.from_line(line)))
        except LedgerError as error:
            unreadable = unreadable or f"line {number}: {error}"
    own = [(n, receipt) for n, receipt in receipts if receipt.public_key == ledger.signing_key]
    yield check(
        "receipts", "every line is a receipt", lambda: unreadable or None, f"{len(lines)} lines"
    )
    yield check(
        "receipts",
        "the ledger still holds every row that its key has signed for",
        lambda: _denied(ledger, own),
        f"{len(own)} receipts of this ledger's key, each found by row and hash",
    )
    yield check(
        "receipts",
        "this ledger's receipts do not contradict each other",
        lambda: next(verify_receipts(receipt.to_line() for _, receipt in own), None),
        "one key, one history",
    )
    yield check(
        "receipts",
        "nobody else signed as this ledger's client",
        lambda: _impersonated(ledger, receipts),
        "compared by client and run",
    )


def _impersonated(ledger: Ledger, receipts: Sequence[tuple[int, Receipt]]) -> str | None:
    known = {(entry.client, entry.run) for entry in ledger.entries()}
    for number, receipt in receipts:
        own = receipt.public_key == ledger.signing_key
        if not own and (receipt.client, receipt.run) in known:
            return f"line {number}, {receipt.subject}: key {receipt.public_key[:12]} is another's"
    return None


def _denied(ledger: Ledger, own: Sequence[tuple[int, Receipt]]) -> str | None:
    if ledger.signing_key is None:
        return "this ledger has no signing key, so no receipt is its own"
    if not own:
        return f"no receipt is signed with this ledger's key {ledger.signing_key[:12]}"
    for number, receipt in own:
        denial = ledger.confirms(receipt)
        if denial:
            return f"line {number}, {receipt.subject}: {denial}"
    return None


__all__ = ["Account", "Allowance", "Event", "LedgerReport", "describe", "verify"]
