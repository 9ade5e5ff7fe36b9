"""What clients have spent of one budget: exact sums, for single clients or many at once."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.filters import Filter
from fedprune.privacy.ledgers.int_map import IntMap, Numbers


class Spending:
    """What every client has spent of one budget, in the budget's currency, exactly."""

    def __init__(self, kept: Filter) -> None:
        """Begin with nothing spent."""
        self.kept = kept
        self._level_of = IntMap(0)  # client -> place in _levels: few sums are different
        self._levels, self._places = [Fraction(0)], {Fraction(0): 0}

    def of(self, client: int) -> Fraction:
        """What one client has spent."""
        return self._levels[self._level_of.get(client)]

    def fits(self, clients: Numbers, charge: Fraction) -> NDArray[np.bool_]:
        """Whether a charge fits into each client's budget: [n] bool."""
        levels, places = _distinct(self._level_of.get_many(clients))
        room = [self._levels[level] + charge <= self.kept.capacity for level in levels.tolist()]
        return np.array(room, dtype=np.bool_)[places]

    def add(self, clients: Numbers, charge: Fraction) -> None:
        """Charge different clients."""
        levels, places = _distinct(self._level_of.get_many(clients))
        after = [self._place(self._levels[level] + charge) for level in levels.tolist()]
        self._level_of.put_many(clients, np.array(after, dtype=np.int64)[places])

    def items(self) -> Iterator[tuple[int, Fraction]]:
        """Every client that was charged, and its sum."""
        clients, levels = self._level_of.items()
        for client, level in zip(clients.tolist(), levels.tolist(), strict=True):
            yield client, self._levels[level]

    @property
    def largest(self) -> Fraction:
        """The largest sum of any client; 0 where nothing was charged."""
        levels = np.unique(self._level_of.items()[1])
        return max((self._levels[level] for level in levels.tolist()), default=Fraction(0))

    def _place(self, total: Fraction) -> int:
        if total not in self._places:
            self._places[total] = len(self._levels)
            self._levels.append(total)
        return self._places[total]


def past(client: str, kept: Filter, spent: Fraction, charge: Fraction) -> str:
    """Say that a charge is refused: who has spent what, of which budget, and what was asked."""
    return (
        f"client {client} has spent epsilon = {kept.epsilon_of(spent):g} of its budget of "
        f"{in_words(kept.budget)}; another {kept.epsilon_of(charge):g} is refused"
    )


def in_words(budget: Budget) -> str:
    """Say a budget with its unit and relation."""
    delta = f", delta = {budget.delta:g}" if budget.delta else ""
    return f"{budget.epsilon:g}{delta} (unit: one {budget.unit}; relation: {budget.relation})"


def _distinct(values: Numbers) -> tuple[Numbers, Numbers]:
    """The different values, and for each value its place among them."""
    if len(values) == 1:
        return values, np.zeros(1, dtype=np.int64)
    found, places = np.unique(values, return_inverse=True)
    return found, places
