"""Many clients of a simulation asked one question: decided at once, told apart by arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import BudgetExceededError, PrivacyError, QuestionChangedError
from fedprune.privacy.ledgers.chain import (
    MOST_CLIENTS,
    STORED,
    Entry,
    Numbers,
    Row,
    is_content_hash,
    packed_reports,
    to_cohort_row,
)
from fedprune.privacy.ledgers.ledger_state import LedgerState
from fedprune.privacy.ledgers.ledger_writer import LedgerWriter, as_sent, check_reservations, taken

_MOST_ROW_BYTES = 1 << 26  # of a cohort's reports in one row

Places = NDArray[np.int64]
Refusal = BudgetExceededError | QuestionChangedError


@dataclass(frozen=True)
class CohortAnswer:
    """What a ledger says to every client of a cohort, each in one of three parts.

    Attributes:
        clients: [n] their numbers, in the order in which they were asked.
        granted: [g] places in `clients` of those whose budget is reserved and on disk: draw,
            then store.
        resumed: [g] bool, whether the reservation is an earlier one that a crash left open.
        memoised: [m] places of those who were answered before.
        reports: the m stored reports, in the order of `memoised`.
        refused: place -> why nothing may be sent; nothing was charged.
    """

    clients: Numbers
    granted: Places
    resumed: NDArray[np.bool_]
    memoised: Places
    reports: tuple[bytes, ...]
    refused: dict[int, Refusal]


@dataclass(frozen=True)
class Decision:
    """A cohort's answer before it is written down.

    Attributes:
        new, resumed: [n] bool, who may draw: on a new reservation, or on an open one.
        stored: [n] row of the stored report, 0 for none.
        refused: place -> why nothing may be sent.
    """

    new: NDArray[np.bool_]
    resumed: NDArray[np.bool_]
    stored: Numbers
    refused: dict[int, Refusal]


class CohortLedger(LedgerWriter):
    """An open ledger that answers many clients at once; only a simulation's does."""

    def reserve_cohort(self, template: Entry, clients: Sequence[int] | Numbers) -> CohortAnswer:
        """Reserve the same event for many clients of a simulation in one durable transaction.

        Args:
            template: the reservation that all share; its client does not matter.
            clients: [n] different numbers; client 7 is the one that `reserve` calls "7".

        Raises:
            PrivacyError: as `reserve_many`, or if the ledger is a deployed client's.
        """
        template = replace(template, client="cohort")
        check_reservations([template])
        self._check_shared()
        numbers = numbers_of(clients)
        with self._writing(sends=False) as state:
            template = state.completed(template)
            decision = decide(state, template, numbers)
            memoised = np.flatnonzero(decision.stored)
            reports = self._reports(numbers[memoised], decision.stored[memoised])
            self._insert(_cohort_rows(state, template, numbers[decision.new], b""))
        granted = np.flatnonzero(decision.new | decision.resumed)
        return CohortAnswer(
            clients=numbers,
            granted=granted,
            resumed=decision.resumed[granted],
            memoised=memoised,
            reports=reports,
            refused=decision.refused,
        )

    def store_cohort(
        self,
        template: Entry,
        clients: Sequence[int] | Numbers,
        reports: Sequence[bytes] | NDArray[np.uint8],
    ) -> None:
        """Store the reports of many clients of a simulation in one durable transaction.

        Args:
            template: as it was reserved.
            clients: [n] different numbers.
            reports: n reports of one size, or packed as [n, size] uint8.

        Raises:
            LedgerError: if a client's event was not reserved so, or is stored already.
        """
        self._check_shared()
        numbers = numbers_of(clients)
        packed = packed_reports(reports, len(numbers))
        template = replace(template, client="cohort", stage=STORED)
        with self._writing() as state:
            template = state.completed(template)
            self._check_storable(state, template, numbers)
            self._insert(_cohort_rows(state, template, numbers, packed))

    def record_unprotected_cohort(
        self,
        template: Entry,
        clients: Sequence[int] | Numbers,
        content_hashes: Sequence[str] = (),
    ) -> None:
        """Write down messages of many clients of a simulation that are not charged.

        Args:
            template: what all share.
            clients: [n] different numbers.
            content_hashes: n SHA-256 of what each sends; empty binds nothing.
        """
        self._check_shared()
        numbers = numbers_of(clients)
        if not all(is_content_hash(text) and text for text in content_hashes):
            raise PrivacyError("a content hash must have 64 lower-case hexadecimal digits")
        hashes = [bytes.fromhex(text) for text in content_hashes]
        packed = packed_reports(hashes, len(numbers)) if hashes else b""
        with self._writing() as state:
            template = as_sent(replace(template, client="cohort", content_hash=""))
            self._insert(_cohort_rows(state, template, numbers, packed))

    def _check_shared(self) -> None:
        if self.private:
            raise PrivacyError(f"{self.path} is one client's own ledger: it answers no cohorts")


def numbers_of(clients: Sequence[int] | Numbers) -> Numbers:
    """Check a cohort's client numbers: [n] int64.

    Raises:
        PrivacyError: if one is not a whole number in [0, 2**32), or occurs twice.
    """
    found = np.asarray(clients)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise PrivacyError(f"a cohort's clients must be whole numbers, got {clients!r:.120}")
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < MOST_CLIENTS:
        raise PrivacyError(
            f"a cohort's clients must be in [0, {MOST_CLIENTS}), got {found.min()} to {found.max()}"
        )
    numbers = found.astype(np.int64)
    if len(np.unique(numbers)) != len(numbers):
        raise PrivacyError("a client occurs twice in one cohort")
    return numbers


def decide(state: LedgerState, template: Entry, clients: Numbers) -> Decision:
    """Decide for every client of a cohort as `Ledger.reserve` would for each by itself.

    Args:
        state: of the ledger.
        template: the reservation that all share; its client does not matter.
        clients: [n] different numbers.
    """
    known = state.round(template)
    asked = known.asked.get_many(clients)
    fresh = asked < 0
    changed = ~fresh & (asked != known.place_of(template.asked))
    stored = np.where(changed, 0, known.stored.get_many(clients))
    new = fresh.copy()
    for spending, charge in state.charges(template):
        new &= spending.fits(clients, charge)
    refused: dict[int, Refusal] = {
        place: question_changed(template, state.name_of(int(clients[place])))
        for place in np.flatnonzero(changed).tolist()
    }
    for place in np.flatnonzero(fresh & ~new).tolist():
        refusal = state.refusal(template, int(clients[place]))
        if refusal is not None:
            refused[place] = refusal
    resumed = ~fresh & ~changed & (stored == 0)
    return Decision(new=new, resumed=resumed, stored=stored, refused=refused)


def question_changed(entry: Entry, client: str) -> QuestionChangedError:
    """Say that a round was asked with another question before."""
    return QuestionChangedError(
        f"client {client} was asked another question in round {entry.round} of run {entry.run}; "
        "one round gets one answer"
    )


def _cohort_rows(state: LedgerState, template: Entry, clients: Numbers, packed: bytes) -> list[Row]:
    """Write a cohort's rows: one, or more where its reports are very large."""
    size = len(packed) // max(len(clients), 1)
    each = max(1, _MOST_ROW_BYTES // max(size, 4))
    rows = []
    for start in range(0, len(clients), each):
        part = packed[start * size : (start + each) * size]
        row = to_cohort_row(
            state.rows + 1, state.head, template, clients[start : start + each], part
        )
        rows.append(taken(state, row))
    return rows
