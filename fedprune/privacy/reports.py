"""What a report looks like on the wire: a block number and the block's randomised bits.

Every report of one mechanism has the same size, so its length tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ReportError


@dataclass(frozen=True)
class Report:
    """The bytes that one client sends about its mask; nothing else about it leaves the client."""

    payload: bytes

    def __bytes__(self) -> bytes:
        """Return the payload as it goes on the wire."""
        return self.payload


@dataclass(frozen=True)
class ReportFormat:
    """Fixed-size encoding: big-endian block number, then `block_units` bits, zero-padded."""

    num_blocks: int
    block_units: int

    @property
    def block_bytes(self) -> int:
        """Bytes that hold the block number; none where there is one block."""
        return ((self.num_blocks - 1).bit_length() + 7) // 8

    @property
    def size(self) -> int:
        """Bytes of every report."""
        return self.block_bytes + (self.block_units + 7) // 8

    def encode(self, blocks: NDArray[np.int64], bits: NDArray[np.bool_]) -> list[Report]:
        """Encode [count] block numbers and [count, block_units] bits."""
        shifts = 8 * np.arange(self.block_bytes - 1, -1, -1)
        head = (blocks[:, None] >> shifts[None, :]).astype(np.uint8)
        rows = np.concatenate([head, np.packbits(bits, axis=1)], axis=1)
        return [Report(row.tobytes()) for row in rows]

    def decode(self, reports: Sequence[Report]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Decode into [count] block numbers and [count, block_units] bits.

        Raises:
            ReportError: for a wrong length, an unknown block or padding bits that are not zero.
        """
        for index, report in enumerate(reports):
            if len(report.payload) != self.size:
                raise ReportError(
                    f"report {index} must have {self.size} bytes, got {len(report.payload)}"
                )
        raw = np.frombuffer(b"".join(r.payload for r in reports), dtype=np.uint8)
        rows = raw.reshape(len(reports), self.size)
        shifts = 8 * np.arange(self.block_bytes - 1, -1, -1)
        blocks = (rows[:, : self.block_bytes].astype(np.int64) << shifts[None, :]).sum(axis=1)
        bits = np.unpackbits(rows[:, self.block_bytes :], axis=1).astype(bool)
        bad = np.flatnonzero((blocks >= self.num_blocks) | bits[:, self.block_units :].any(axis=1))
        if bad.size:
            raise ReportError(
                f"report {bad[0]} is not one that this mechanism can send: block "
                f"{blocks[bad[0]]} of {self.num_blocks}, or padding bits that are not zero"
            )
        return blocks, bits[:, : self.block_units]
