"""The fields of a receipt's line: what may stand in each, before anything is believed.

A line comes from somebody else, so that its size is bounded and nothing in it is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from fedprune.errors import LedgerError
from fedprune.privacy.budgets.events import NO_CHARGE, UNIT_OF, UNPROTECTED
from fedprune.privacy.ledgers.chain import SENT, STORED

_MOST_CHARACTERS = 1 << 20  # of a line
_MOST_TEXT = 200
_MOST_ROWS = 2**63 - 1
_MOST_EPSILON = 2**53
_TEXTS = ("client", "run", "round", "kind", "stage", "relation", "question")
_RELATIONS = (*UNIT_OF, NO_CHARGE, UNPROTECTED)
_HEX = {
    "report_hash": 64,
    "ledger_previous": 64,
    "ledger_head": 64,
    "public_key": 64,
    "signature": 128,
}


def read_fields(line: str, schema: int, names: Set[str]) -> dict[str, Any]:
    """Read a line of JSON with exactly these fields, beside its schema.

    Raises:
        LedgerError: in one sentence, naming what is wrong.
    """
    content = _parse(line)
    if content.get("schema") != schema:
        raise LedgerError(
            f"a receipt has schema {_brief(content.get('schema'))}, this reads {schema}"
        )
    del content["schema"]
    if content.keys() != names:
        odd = sorted(content.keys() ^ names)[0]
        raise LedgerError(f"a receipt lacks or has a field too many: {_brief(odd)}")
    _check_fields(content)
    content["report"] = bytes.fromhex(content["report"])
    content["epsilon"], content["delta"] = float(content["epsilon"]), float(content["delta"])
    return content


def _parse(line: str) -> dict[str, Any]:
    if len(line) > _MOST_CHARACTERS:
        raise LedgerError(
            f"a receipt may have {_MOST_CHARACTERS} characters, this line has {len(line)}"
        )
    try:
        content = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"a receipt is not a line of JSON: {_brief(str(error))}") from None
    if not isinstance(content, dict):
        raise LedgerError(f"a receipt must be a JSON object, got {_brief(content)}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _check_fields(content: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        value = content[name]
        fits = isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and value.isprintable()
        _demand(fits, name, f"printable text of at most {_MOST_TEXT} characters", value)
    for name, digits in _HEX.items():
        fits = _is_hex(content[name]) and len(content[name]) == digits
        _demand(fits, name, f"{digits} lower-case hexadecimal digits", content[name])
    fits = _is_hex(content["report"]) and len(content["report"]) % 2 == 0
    _demand(fits, "report", "lower-case hexadecimal digits in pairs", content["report"])
    rows = content["ledger_rows"]
    fits = isinstance(rows, int) and not isinstance(rows, bool) and 1 <= rows <= _MOST_ROWS
    _demand(fits, "ledger_rows", "a whole number of at least 1", rows)
    _check_charge(content)


def _check_charge(content: Mapping[str, Any]) -> None:
    """Check what must agree: relation, event, stage, report and figures."""
    relation, event = content["relation"], content["event"]
    _demand(relation in _RELATIONS, "relation", f"one of {', '.join(_RELATIONS)}", relation)
    charged = relation in UNIT_OF
    fits = isinstance(event, str) and len(event) <= _MOST_TEXT and event.isprintable()
    fits = fits and bool(event) == charged
    _demand(fits, "event", "printable text that fits its relation", event)
    stages = (STORED,) if charged else (SENT,) if relation == UNPROTECTED else (STORED, SENT)
    _demand(content["stage"] in stages, "stage", " or ".join(stages), content["stage"])
    fits = content["stage"] == STORED or not content["report"]
    _demand(fits, "report", "empty where it was only recorded as sent", content["report"])
    for name in ("epsilon", "delta"):
        value = content[name]
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and 0 <= value < _MOST_EPSILON and (charged or value == 0)
        fits = fits and not (charged and name == "epsilon" and value == 0)
        _demand(fits, name, "a number that fits its relation", value)


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and not set(value) - set("0123456789abcdef")


def _demand(fits: bool, name: str, allowed: str, value: object) -> None:
    if not fits:
        raise LedgerError(f"a receipt's {name} must be {allowed}, got {_brief(value)}")


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
