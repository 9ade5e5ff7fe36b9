"""What everybody in one secure sum knows: who takes part, about what, and who is whose neighbour.

A neighbourhood has k + 1 slots, the client itself among them, in the order of the ring; what is
sent about a neighbourhood is a row of slots of fixed size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.ledgers.chain import framed
from fedprune.privacy.mechanisms.assignment import public_ranks
from fedprune.privacy.secure.secure_graph import SharingPlan

_MODULUS_BITS = (32, 64)


@dataclass(frozen=True)
class SumTerms:
    """The terms of one secure sum.

    Attributes:
        run, name: what the sum is called; one client takes part in a name once.
        participants: numbers of the clients that announced keys, rising.
        min_survivors: the least number of clients whose inputs may be summed.
        colluding: how many of them may help the server.
        entries: length of every input.
        modulus_bits: inputs are added modulo 2 to this power.
    """

    run: str
    name: str
    participants: tuple[int, ...]
    min_survivors: int
    colluding: int
    entries: int
    modulus_bits: int

    def __post_init__(self) -> None:
        """Refuse terms that contradict themselves.

        Raises:
            PrivacyError: naming what is wrong.
        """
        rising = all(a < b for a, b in zip(self.participants, self.participants[1:], strict=False))
        if not self.participants or self.participants[0] < 0 or not rising:
            raise PrivacyError("a secure sum's participants must be different, rising numbers")
        if self.modulus_bits not in _MODULUS_BITS or self.entries < 1:
            raise PrivacyError(
                f"a secure sum needs a modulus of 32 or 64 bits and at least one entry, got "
                f"{self.modulus_bits!r} bits and {self.entries!r} entries"
            )
        _ = self.plan

    @cached_property
    def plan(self) -> SharingPlan:
        """Degree and threshold."""
        return SharingPlan.of(len(self.participants), self.min_survivors, self.colluding)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian unsigned integers of the modulus."""
        return np.dtype(f"<u{self.modulus_bits // 8}")

    @property
    def vector_bytes(self) -> int:
        """Size of a masked input."""
        return self.entries * self.dtype.itemsize

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the terms: it goes into every key that is made under them."""
        fields = (
            "fedprune secure sum terms 1",
            self.run,
            self.name,
            " ".join(map(str, self.participants)),
            self.min_survivors,
            self.colluding,
            self.entries,
            self.modulus_bits,
        )
        return hashlib.sha256(framed(fields)).hexdigest()

    @cached_property
    def _rank(self) -> Mapping[int, int]:
        ranks = public_ranks(len(self.participants), self.digest)
        return dict(zip(self.participants, ranks.tolist(), strict=True))

    @cached_property
    def _ring(self) -> tuple[int, ...]:
        return tuple(sorted(self.participants, key=self._rank.__getitem__))

    def holders(self, client: int) -> tuple[int, ...]:
        """Who holds a share of a client's secrets, by slot: k + 1 clients, itself among them.

        Raises:
            ReportError: if the client does not take part.
        """
        self.check_member(client)
        start = self._rank[client] - self.plan.degree // 2
        count = len(self.participants)
        return tuple(self._ring[(start + slot) % count] for slot in range(self.plan.holders))

    def slot(self, owner: int, holder: int) -> int:
        """Where a holder stands in an owner's neighbourhood.

        Raises:
            ReportError: if they are not neighbours.
        """
        self.check_member(owner)
        self.check_member(holder)
        ahead = self._rank[holder] - self._rank[owner] + self.plan.degree // 2
        slot = ahead % len(self.participants)
        if slot >= self.plan.holders:
            raise ReportError(f"client {holder} is no neighbour of client {owner} in {self.name}")
        return slot

    def check_member(self, client: int) -> None:
        """Refuse a client that does not take part.

        Raises:
            ReportError: naming it.
        """
        if client not in self._rank:
            raise ReportError(f"client {client} does not take part in {self.name}")

    def check_members(self, clients: Set[int], what: str) -> None:
        """Refuse a set with unknown clients, or with fewer than the least number of survivors.

        Raises:
            ReportError: naming the set.
        """
        unknown = sorted(set(clients) - self._rank.keys())
        if unknown:
            raise ReportError(f"{what} of {self.name} name client {unknown[0]}, which has no part")
        if len(clients) < self.min_survivors:
            raise ReportError(
                f"{what} of {self.name} are {len(clients)} clients, fewer than min_reports = "
                f"{self.min_survivors}"
            )


def join_slots(parts: Iterable[bytes | None], size: int) -> bytes:
    """Write a row of slots; None gives an empty one."""
    return b"".join(bytes(size) if part is None else part for part in parts)


def split_slots(row: bytes, size: int, count: int, what: str) -> list[bytes]:
    """Read a row of slots.

    Raises:
        ReportError: if it has another length.
    """
    if len(row) != size * count:
        raise ReportError(f"{what} must have {size * count} bytes, got {len(row)}")
    return [row[start : start + size] for start in range(0, len(row), size)]
