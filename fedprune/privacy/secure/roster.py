"""Who may take part in a secure sum: public signing keys that operators exchanged themselves.

A roster is a JSON file, {"0": "64 hexadecimal digits", "1": ...}: for every client's number the
public half of the key that signs its receipts. A server never supplies it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from fedprune.errors import PrivacyError

_MOST_BYTES = 64 * 2**20
_PUBLIC_KEY = re.compile("[0-9a-f]{64}")


def read_roster(path: str | Path) -> Mapping[int, str]:
    """Read a roster: public key by client number.

    Raises:
        PrivacyError: if the file cannot be read, is no such table, or gives two clients one key.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise PrivacyError(f"cannot read the roster {path}: {error.strerror}") from None
    try:
        found = json.loads(raw) if len(raw) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found:
        raise PrivacyError(f"the roster {path} is no JSON table of clients and public keys")
    for number, key in found.items():
        good = number.isascii() and number.isdecimal() and str(int(number)) == number
        if not good or not isinstance(key, str) or not _PUBLIC_KEY.fullmatch(key):
            raise PrivacyError(
                f"the roster {path} must give each client's number a public key of 64 lower-case "
                f"hexadecimal digits, got {number!r}: {key!r:.80}"
            )
    if len(set(found.values())) < len(found):
        raise PrivacyError(f"the roster {path} gives two clients the same key")
    return {int(number): key for number, key in found.items()}
