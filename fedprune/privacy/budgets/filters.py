"""What refuses: filters that stay valid however later events depend on earlier answers.

A filter adds up the cost of a client's events in one currency and refuses the event that would
pass the capacity. The decision depends on the events' parameters alone, which are fixed before
each event runs, so all of these hold under fully adaptive composition:

- pure epsilon: basic composition (Rogers, Roth, Ullman & Vadhan 2016, Thm 3.6);
- zero-concentrated rho and Renyi divergence of one order fixed beforehand: Feldman & Zrnic 2021,
  "Individual privacy accounting via a Renyi filter", Thm 3.1 and 4.3 (zCDP is the same at every
  order at once). The order may not be chosen after seeing events: a `Budget` stores it.

What a client has spent is an exact fraction in that currency: charges are rounded up, capacities
down. `epsilon_of` is for display; the guarantee is the budget's own epsilon and delta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._rounding import above, float_up, grid_down, grid_up
from fedprune.privacy.budgets.accounting import PURE, RENYI, ZCDP, Budget
from fedprune.privacy.budgets.events import (
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.renyi import (
    epsilon_from_renyi,
    epsilon_from_rho,
    pure_rho,
    renyi_capacity,
    renyi_of,
    rho_capacity,
)


class Filter(Protocol):
    """What a budget allows, in the currency that it is counted in."""

    @property
    def budget(self) -> Budget:
        """The budget that this filter keeps."""

    @property
    def capacity(self) -> Fraction:
        """All that may be charged, rounded down."""

    def charge(self, event: Event) -> Fraction:
        """Return what one event costs, rounded up.

        Raises:
            PrivacyError: if this currency cannot express the event.
        """

    def epsilon_of(self, charged: Fraction) -> float:
        """Return the epsilon that a charge means at the budget's delta, rounded up."""


def filter_of(budget: Budget) -> Filter:
    """Return the filter that keeps a budget.

    Raises:
        PrivacyError: if this currency can promise nothing at the budget's epsilon and delta.
    """
    return _filter(budget)


@dataclass(frozen=True)
class PureFilter:
    """The sum of pure epsilons, exactly."""

    budget: Budget
    capacity: Fraction

    def charge(self, event: Event) -> Fraction:
        """Return a pure event's epsilon; refuse all others."""
        if not isinstance(event, PureEvent):
            raise _inexpressible(event, self.budget)
        return Fraction(event.epsilon)

    def epsilon_of(self, charged: Fraction) -> float:
        """Return the charge itself."""
        return float_up(charged)


@dataclass(frozen=True)
class ZeroConcentratedFilter:
    """The sum of rhos: pure and zero-concentrated events, and Gaussian noise without sampling."""

    budget: Budget
    capacity: Fraction

    def charge(self, event: Event) -> Fraction:
        """Return an event's rho; refuse sampled Gaussians, whose curve is not one of zCDP."""
        return _rho(event, self.budget)

    def epsilon_of(self, charged: Fraction) -> float:
        """Convert at the best order for this charge."""
        return _capped(self, charged, epsilon_from_rho(float_up(charged), self.budget.delta))


@dataclass(frozen=True)
class RenyiFilter:
    """The sum of Renyi divergences of the budget's one order: every event."""

    budget: Budget
    capacity: Fraction

    def charge(self, event: Event) -> Fraction:
        """Return an event's divergence."""
        return _divergence(event, self.budget.order)

    def epsilon_of(self, charged: Fraction) -> float:
        """Convert at the budget's order."""
        epsilon = epsilon_from_renyi(float_up(charged), self.budget.order, self.budget.delta)
        return _capped(self, charged, epsilon)


def _capped(kept: Filter, charged: Fraction, epsilon: float) -> float:
    """Nothing is 0, and what fits means no more than the budget says."""
    if charged == 0:
        return 0.0
    return min(epsilon, kept.budget.epsilon) if charged <= kept.capacity else epsilon


@lru_cache(maxsize=4096)
def _rho(event: Event, budget: Budget) -> Fraction:
    if isinstance(event, PureEvent):
        return grid_up(pure_rho(event.epsilon))
    if isinstance(event, ZeroConcentratedEvent):
        return grid_up(event.rho)
    if isinstance(event, SubsampledGaussianEvent) and event.sampling_rate == 1:
        return grid_up(above(event.steps / 2 / event.noise_multiplier / event.noise_multiplier))
    raise _inexpressible(event, budget)


@lru_cache(maxsize=4096)
def _divergence(event: Event, order: float) -> Fraction:
    return grid_up(renyi_of(event, order))


@lru_cache(maxsize=256)
def _filter(budget: Budget) -> Filter:
    kind, capacity = _FILTERS[budget.composition]
    amount = capacity(budget)
    if amount <= 0:
        raise PrivacyError(
            f"a budget of epsilon = {budget.epsilon:g}, delta = {budget.delta:g} leaves nothing "
            f"to spend when counted as {budget.composition}"
            + (f" of order {budget.order:g}" if budget.order else "")
        )
    return kind(budget, amount)


def _pure_capacity(budget: Budget) -> Fraction:
    return Fraction(budget.epsilon)


def _rho_capacity(budget: Budget) -> Fraction:
    return grid_down(rho_capacity(budget.epsilon, budget.delta))


def _renyi_capacity(budget: Budget) -> Fraction:
    return grid_down(renyi_capacity(budget.epsilon, budget.delta, budget.order))


_FILTERS: dict[str, tuple[Callable[[Budget, Fraction], Filter], Callable[[Budget], Fraction]]] = {
    PURE: (PureFilter, _pure_capacity),
    ZCDP: (ZeroConcentratedFilter, _rho_capacity),
    RENYI: (RenyiFilter, _renyi_capacity),
}


def _inexpressible(event: Event, budget: Budget) -> PrivacyError:
    return PrivacyError(
        f"a budget that composes {budget.composition} cannot count {event!r}; "
        f"{_COUNTS[budget.composition]}"
    )


_COUNTS = {
    PURE: "it counts pure events only",
    ZCDP: "it counts pure and zero-concentrated events; a sampled Gaussian needs 'renyi'",
}
