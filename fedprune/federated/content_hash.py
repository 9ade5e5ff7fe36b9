"""What a receipt binds of an answer that no ledger stores."""

from __future__ import annotations

import hashlib

from flwr.app import Array, ConfigRecord, RecordDict

from fedprune.privacy.ledgers.chain import framed

RECEIPT = "receipt"  # the field of an answer that holds its receipt


def content_hash(answer: RecordDict) -> str:
    """SHA-256 of everything in an answer but its receipt: what a receipt binds.

    Arrays count with their bytes as they are sent, other values with their type; the order of
    names does not matter.
    """
    parts: list[object] = []
    for name in sorted(answer):
        record = answer[name]
        for key in sorted(record):
            if isinstance(record, ConfigRecord) and key == RECEIPT:
                continue
            parts += [name, key, *_value_parts(record[key])]
    return hashlib.sha256(framed(parts)).hexdigest()


def _value_parts(value: object) -> list[object]:
    if isinstance(value, Array):
        return ["array", value.dtype, repr(tuple(value.shape)), value.stype, value.data]
    if isinstance(value, bytes):
        return ["bytes", value]
    return [type(value).__name__, repr(value)]
