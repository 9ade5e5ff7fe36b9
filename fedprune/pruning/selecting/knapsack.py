"""Which widths keep the most score under the budgets: a knapsack whose prices depend on each other.

A layer's price is a function of how many inputs and outputs it keeps, so the price of a unit
depends on what else stays. For one price of the budget (a Lagrange multiplier) the groups take
turns to choose the width with the most score less price, until none changes its mind; the
multiplier is bisected; what is left of the budget is spent step by step, and groups exchange
channels as long as that pays. Every width of a group is looked at, not only the next one, so that
a price that is a staircase, as measured time is, is climbed over its flat steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.pruning.selecting.budgets import Budget
from fedprune.pruning.selecting.widths import GroupWidths, Scores
from fedprune.pruning.structure.costs import Changes, Costs, Integers

Floats = NDArray[np.float64]

_COARSE = 64  # widths of one group that the multiplier's search looks at; the rest is done in steps
_SWEEPS, _DOUBLINGS, _HALVINGS = 12, 60, 24
_FAR = 1e6  # an infinite score, where the largest finite one is 1
_EXCHANGES = 20_000  # exchanges of channels between two groups that are tried at most


def best_widths(
    costs: Costs,
    groups: Sequence[GroupWidths],
    scores: Scores,
    budgets: Sequence[Budget],
    start: Sequence[int],
) -> list[int]:
    """Choose a width for every group that keeps much score within all budgets.

    Args:
        costs: What layers cost at any widths.
        groups: Every group's units by falling score and its widths.
        scores: [num_units].
        budgets: The limits; all must hold.
        start: A choice for each group that holds them; what is found keeps no less score.

    Returns:
        For each group the place of its width among `widths`.
    """
    table = _Table(costs, groups, scores, budgets)
    found = [list(start), *(_by_multiplier(table, weights) for weights in _weightings(budgets))]
    polished = [_polished(table, choice) for choice in found if choice is not None]
    return max(polished, key=table.score)  # the first of equal ones


def _weightings(budgets: Sequence[Budget]) -> list[Floats]:
    """How the budgets weigh in one price: all alike, and each nearly alone."""
    count = len(budgets)
    alike = [np.ones(count)]
    return alike if count == 1 else alike + [0.05 + np.eye(count)[one] for one in range(count)]


@dataclass(frozen=True, eq=False)
class _Rows:
    """The layers that a group has channels in, and how many of them at each width."""

    rows: Integers
    n_in: Integers  # [widths, rows]
    n_out: Integers

    @classmethod
    def of(cls, group: GroupWidths, changes: Changes) -> _Rows:
        rows = changes.of(group.order)[0]
        each = [changes.of(group.order[k : k + 1]) for k in range(len(group.order))]
        d_in, d_out = (np.zeros((len(each) + 1, len(rows)), dtype=np.int64) for _ in range(2))
        for place, (own, own_in, own_out) in enumerate(each, start=1):
            where = np.searchsorted(rows, own)
            d_in[place, where], d_out[place, where] = own_in, own_out
        return cls(rows, d_in.cumsum(0)[group.widths], d_out.cumsum(0)[group.widths])


class _Table:
    """Scores and prices of every choice of widths."""

    def __init__(
        self,
        costs: Costs,
        groups: Sequence[GroupWidths],
        scores: Scores,
        budgets: Sequence[Budget],
    ) -> None:
        changes, shares = costs.changes(), finite(scores)
        self.groups, self.budgets, self._costs = groups, budgets, costs
        self.limits = np.array([budget.limit for budget in budgets], dtype=np.float64)
        # What prices are counted in; a limit may be nothing at all.
        self.scales = np.maximum(self.limits, [1e-6 * budget.dense for budget in budgets])
        self.rows = [_Rows.of(group, changes) for group in groups]
        self.gains = [
            np.concatenate([[0.0], shares[group.order].cumsum()])[group.widths] for group in groups
        ]

    def score(self, choice: Sequence[int]) -> float:
        return float(sum(gain[c] for gain, c in zip(self.gains, choice, strict=True)))

    def widest(self) -> list[int]:
        return [len(group.widths) - 1 for group in self.groups]

    def state(self, choice: Sequence[int]) -> _State:
        return _State(self, self._costs, choice)


def finite(scores: Scores) -> Floats:
    """Scores as shares of the largest finite one, infinite ones as numbers far beyond it."""
    real = np.abs(scores[np.isfinite(scores)])
    largest = float(real.max(initial=0.0)) or 1.0
    return np.nan_to_num(scores / largest, posinf=_FAR, neginf=-_FAR)


class _State:
    """One choice of widths with what it costs, changed one group at a time."""

    def __init__(self, table: _Table, costs: Costs, choice: Sequence[int]) -> None:
        self.choice, self._table = list(choice), table
        self._n_in, self._n_out = costs.inputs.fixed.copy(), costs.outputs.fixed.copy()
        for own, place in zip(table.rows, choice, strict=True):
            self._n_in[own.rows] += own.n_in[place]
            self._n_out[own.rows] += own.n_out[place]
        rows = np.arange(len(self._n_in))
        self.totals = np.array([
            float(budget.measure.of_layers(rows, self._n_in, self._n_out).sum())
            + budget.measure.other
            + budget.measure.per_unit * self._units()
            for budget in table.budgets
        ])  # fmt: skip

    def _units(self) -> int:
        pairs = zip(self._table.groups, self.choice, strict=True)
        return sum(int(group.widths[place]) for group, place in pairs)

    def totals_at(self, number: int, places: Integers) -> Floats:
        """Totals [places, budgets] if one group had other widths."""
        own, now = self._table.rows[number], self.choice[number]
        n_in = self._n_in[own.rows] + own.n_in[places] - own.n_in[now]
        n_out = self._n_out[own.rows] + own.n_out[places] - own.n_out[now]
        widths = self._table.groups[number].widths
        found = np.empty((len(places), len(self.totals)))
        for column, budget in enumerate(self._table.budgets):
            price = budget.measure.of_layers
            before = price(own.rows, self._n_in[own.rows], self._n_out[own.rows]).sum()
            units = budget.measure.per_unit * (widths[places] - widths[now])
            found[:, column] = (
                self.totals[column] + price(own.rows, n_in, n_out).sum(-1) - before + units
            )
        return found

    def move(self, number: int, place: int) -> None:
        self.totals = self.totals_at(number, np.array([place]))[0]
        own, now = self._table.rows[number], self.choice[number]
        self._n_in[own.rows] += own.n_in[place] - own.n_in[now]
        self._n_out[own.rows] += own.n_out[place] - own.n_out[now]
        self.choice[number] = place

    def holds(self) -> bool:
        return bool((self.totals <= self._table.limits).all())


def _by_multiplier(table: _Table, weights: Floats) -> list[int] | None:
    """Bisect the price of the budgets; None if no price is high enough."""
    spread = sum(float(np.abs(gain).max(initial=0.0)) for gain in table.gains) or 1.0
    low, price = 0.0, spread
    begin = _settled(table, table.widest(), 0.0 * weights)
    if begin.holds():
        return begin.choice
    found: list[int] | None = None
    for _ in range(_DOUBLINGS):
        state = _settled(table, begin.choice, price * weights)
        if state.holds():
            found = state.choice
            break
        low, price, begin = price, 2 * price, state
    if found is None:
        return None
    for _ in range(_HALVINGS):
        middle = (low + price) / 2
        state = _settled(table, begin.choice, middle * weights)
        if not state.holds():
            low, begin = middle, state
            continue
        price = middle
        if table.score(state.choice) > table.score(found):
            found = state.choice
    return found


def _settled(table: _Table, begin: Sequence[int], prices: Floats) -> _State:
    """Let groups take turns to choose the best width at a price, until none wants another."""
    state = table.state(begin)
    per_cost = prices / table.scales
    for _ in range(_SWEEPS):
        before = list(state.choice)
        for number in range(len(table.groups)):
            places = _coarse(len(table.gains[number]), state.choice[number])
            worth = table.gains[number][places] - state.totals_at(number, places) @ per_cost
            best = int(places[len(places) - 1 - int(worth[::-1].argmax())])
            if best != state.choice[number]:
                state.move(number, best)
        if state.choice == before:
            break
    return state


def _coarse(count: int, now: int) -> Integers:
    """Some of many widths: evenly spread ones, and the present one."""
    if count <= _COARSE:
        return np.arange(count)
    spread = np.linspace(0, count - 1, _COARSE).round().astype(np.int64)
    return np.unique(np.append(spread, now))


def _polished(table: _Table, choice: Sequence[int]) -> list[int]:
    state = table.state(choice)
    _spend(table, state)
    tries = _EXCHANGES
    while tries > 0:
        tries, exchanged = _exchange(table, state, tries)
        if not exchanged:
            break
        _spend(table, state)
    return state.choice


def _spend(table: _Table, state: _State) -> None:
    """Widen whichever group gives the most score for its price, as long as one fits."""
    while True:
        best, best_rate = None, 0.0
        for number, gain in enumerate(table.gains):
            now = state.choice[number]
            if now + 1 == len(gain):
                continue
            # A narrower price further up, as a staircase has, counts too.
            places = np.arange(now + 1, min(len(gain), now + 1 + _COARSE))
            totals = state.totals_at(number, places)
            more, less_room = gain[places] - gain[now], (totals - state.totals) / table.scales
            rate = more / np.maximum(less_room.max(axis=1), 1e-12)
            rate[(totals > table.limits).any(axis=1) | (more < 0)] = -1.0
            place = int(rate.argmax())
            if rate[place] > best_rate or (best is None and rate[place] >= 0):
                best, best_rate = (number, int(places[place])), float(rate[place])
        if best is None:
            return
        state.move(*best)


def _exchange(table: _Table, state: _State, tries: int) -> tuple[int, bool]:
    """Widen one group at another one's expense, if that keeps more score."""
    least = 1e-12 * max(abs(table.score(state.choice)), 1e-300)
    for number, gain in enumerate(table.gains):
        now, best, best_worth = state.choice[number], None, least
        for wider in _wider(now, len(gain)):
            state.move(number, wider)
            for other, loss in enumerate(table.gains):
                if other == number or state.choice[other] == 0 or tries <= 0:
                    continue
                tries -= 1
                place = _widest_that_fits(table, state, other)
                if place is not None:
                    worth = gain[wider] - gain[now] + loss[place] - loss[state.choice[other]]
                    if worth > best_worth:
                        best, best_worth = (wider, other, place), float(worth)
        state.move(number, now)
        if best is not None:
            wider, other, place = best
            state.move(number, wider)
            state.move(other, place)
            return tries, True
    return tries, False


def _wider(now: int, count: int) -> list[int]:
    """Places above the present one: the next few, then further and further away."""
    steps = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64]
    return [now + step for step in steps if now + step < count]


def _widest_that_fits(table: _Table, state: _State, number: int) -> int | None:
    """The largest narrower width of a group with which all budgets hold."""
    now = state.choice[number]
    places = np.arange(max(0, now - _COARSE), now)
    fits = (state.totals_at(number, places) <= table.limits).all(axis=1)
    return int(places[fits][-1]) if fits.any() else None
