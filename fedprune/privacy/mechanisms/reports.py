"""What a report looks like on the wire: a block number and the block's randomised bits.

Every report of one mechanism has the same size, so its length tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ReportError

Rows: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
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
        return self.split(self.encode_rows(blocks, bits))

    def encode_rows(self, blocks: NDArray[np.int64], bits: NDArray[np.bool_]) -> Rows:
        """Encode as one array: [count, size] uint8, a report a row."""
        shifts = 8 * np.arange(self.block_bytes - 1, -1, -1)
        head = (blocks[:, None] >> shifts[None, :]).astype(np.uint8)
        return np.concatenate([head, np.packbits(bits, axis=1)], axis=1)

    def split(self, rows: Rows) -> list[Report]:
        """Cut [count, size] uint8 into reports."""
        joined, size = rows.tobytes(), self.size
        return [Report(joined[start : start + size]) for start in range(0, len(joined), size)]

    def decode(
        self, reports: Sequence[Report] | Rows, *, first: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Decode into [count] block numbers and [count, block_units] bits.

        Args:
            reports: reports, or the bytes of all of them: [count, size] uint8.
            first: the number that the first of them has in a message.

        Raises:
            ReportError: for a wrong length, an unknown block or padding bits that are not zero.
        """
        rows = self._rows(reports, first)
        blocks = np.zeros(len(rows), dtype=np.int64)
        for column in range(self.block_bytes):
            blocks = (blocks << 8) | rows[:, column]
        bits = np.unpackbits(rows[:, self.block_bytes :], axis=1).view(np.bool_)
        bad = np.flatnonzero((blocks >= self.num_blocks) | bits[:, self.block_units :].any(axis=1))
        if bad.size:
            raise ReportError(
                f"report {first + bad[0]} is not one that this mechanism can send: block "
                f"{blocks[bad[0]]} of {self.num_blocks}, or padding bits that are not zero"
            )
        return blocks, bits[:, : self.block_units]

    def _rows(self, reports: Sequence[Report] | Rows, first: int) -> Rows:
        if isinstance(reports, np.ndarray):
            if reports.dtype != np.uint8 or reports.ndim != 2 or reports.shape[1] != self.size:
                raise ReportError(
                    f"rows of reports must be [count, {self.size}] uint8, got {reports.shape} of "
                    f"{reports.dtype}"
                )
            return reports
        payloads = [report.payload for report in reports]
        if not set(map(len, payloads)) <= {self.size}:
            bad, length = next((i, n) for i, n in enumerate(map(len, payloads)) if n != self.size)
            raise ReportError(f"report {first + bad} must have {self.size} bytes, got {length}")
        return np.frombuffer(b"".join(payloads), dtype=np.uint8).reshape(len(payloads), self.size)


def in_parts(reports: Iterable[Report] | Rows, size: int) -> Iterator[list[Report] | Rows]:
    """Read reports `size` at a time, so that any number takes constant memory."""
    if isinstance(reports, np.ndarray):
        yield from (reports[start : start + size] for start in range(0, len(reports), size))
        return
    source = iter(reports)
    while part := list(islice(source, size)):
        yield part
