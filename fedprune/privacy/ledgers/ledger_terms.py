"""A ledger's own terms: whose it is, what may be spent, and with which key receipts are signed.

The first row links to their hash, so they cannot be changed without breaking the chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy.budgets.accounting import Budget

SCHEMA = 2
PRIVATE, NOT_PRIVATE = "private", "NOT PRIVATE: seeded simulation"
_BUDGET = "budget of "


def by_relation(budget: Budget | Sequence[Budget] | None) -> dict[str, Budget]:
    """Sort budgets by their neighbouring relation.

    Raises:
        PrivacyError: if two have the same one, or the sequence is empty.
    """
    if budget is None:
        return {}
    given = [budget] if isinstance(budget, Budget) else list(budget)
    found = {one.relation: one for one in given}
    if len(found) != len(given):
        raise PrivacyError(f"a ledger has one budget under each relation, got {given!r}")
    if not given:
        raise PrivacyError("a ledger needs a budget under at least one relation, got none")
    return found


def terms_for(
    budgets: Mapping[str, Budget], owner: str, private: bool, signing_key: str | None
) -> dict[str, str]:
    """Write the terms of a ledger with these budgets; empty for no budgets."""
    if not budgets:
        return {}
    terms = {
        "schema": str(SCHEMA),
        "owner": owner,
        "privacy": PRIVATE if private else NOT_PRIVATE,
        **{f"{_BUDGET}{name}": budget.to_text() for name, budget in budgets.items()},
    }
    return terms if signing_key is None else terms | {"signing_key": signing_key}


def stored_budgets(path: Path, terms: Mapping[str, str]) -> dict[str, Budget]:
    """Read the budgets of a ledger's terms.

    Raises:
        LedgerError: if the ledger has another schema, or its terms are damaged.
    """
    if terms.get("schema") != str(SCHEMA):
        raise LedgerError(
            f"{path} has ledger schema {terms.get('schema')!r:.40}, this reads schema {SCHEMA} "
            "only; keep the file for its records and begin a new ledger"
        )
    try:
        texts = {name: text for name, text in terms.items() if name.startswith(_BUDGET)}
        budgets = by_relation([Budget.from_text(text) for text in texts.values()])
    except PrivacyError as error:
        raise LedgerError(f"the terms of {path} are damaged: {error}") from None
    if {f"{_BUDGET}{relation}" for relation in budgets} != texts.keys():
        raise LedgerError(f"the terms of {path} are damaged: a budget has another's name")
    return budgets


def check_terms(path: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to go on with a ledger on other terms than it was made for.

    Raises:
        LedgerError: naming what differs.
    """
    if stored.get("privacy") != wanted["privacy"]:
        raise LedgerError(
            f"{path} is stamped {stored.get('privacy')!r}; it cannot be opened as "
            f"{wanted['privacy']!r}"
        )
    if _owned(stored) != _owned(wanted):
        raise LedgerError(
            f"{path} is the ledger of {stored.get('owner')!r} with {_allowed(stored)}; it cannot "
            f"be opened for {wanted['owner']!r} with {_allowed(wanted)}"
        )
    check_key(path, stored, wanted.get("signing_key"))


def check_key(path: Path, stored: Mapping[str, str], given: str | None) -> None:
    """Refuse a signing key that the ledger is not tied to.

    Raises:
        LedgerError: naming both keys.
    """
    tied = stored.get("signing_key")
    if tied == given:
        return
    words = "has no signing key" if tied is None else f"is tied to signing key {tied[:12]}"
    got = "none was given" if given is None else f"{given[:12]} was given"
    raise LedgerError(f"{path} {words}, {got}; restore the key file that belongs to it")


def _owned(terms: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in terms.items() if k == "owner" or k.startswith(_BUDGET)}


def _allowed(terms: Mapping[str, str]) -> str:
    texts = [text for name, text in sorted(terms.items()) if name.startswith(_BUDGET)]
    return " and ".join(_in_words(Budget.from_text(text)) for text in texts)


def _in_words(budget: Budget) -> str:
    delta = f", delta = {budget.delta:g}" if budget.delta else ""
    order = f" of order {budget.order:g}" if budget.order else ""
    return (
        f"epsilon = {budget.epsilon:g}{delta} under {budget.relation} ({budget.composition}{order})"
    )
