"""A schedule of events in canonical form, and its privacy losses on one lattice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._lattice import Lattice, Parts
from fedprune.privacy.budgets._rounding import above
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    RELATIONS,
    UNIT_OF,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.losses import (
    loss_size,
    randomised_response,
    sampled_gaussian,
    zero_concentrated,
)
from fedprune.privacy.budgets.renyi import ORDERS, epsilon_from_renyi, epsilon_from_rho, renyi_of

Events: TypeAlias = Sequence[tuple[Event, int]]

# What the lattice may add to epsilon, and the share of delta that may be cut off.
_TOLERANCE, CUT_OFF = 1e-4, 1e-7
_MOST_POINTS = 2**21


@dataclass(frozen=True)
class Schedule:
    """Events in an order that does not matter, equal ones counted.

    Attributes:
        pure: (epsilon, count) of pure events, ascending.
        rho: sum over the zero-concentrated events.
        gaussian: steps of Gaussian noise without sampling, as 1 / noise_multiplier^2, summed.
        sampled: (noise_multiplier, sampling_rate, steps) of sampled Gaussians, ascending.
    """

    pure: tuple[tuple[float, int], ...]
    rho: float
    gaussian: float
    sampled: tuple[tuple[float, float, int], ...]

    @classmethod
    def of(cls, events: Events, relation: str) -> Schedule:
        """Count a schedule's events.

        Raises:
            PrivacyError: if the relation is not one, a count is not a whole number of at least 0,
                or an event says nothing under the relation.
        """
        if relation not in UNIT_OF:
            raise PrivacyError(f"relation must be one of {', '.join(UNIT_OF)}, got {relation!r}")
        counts: Counter[Event] = Counter()
        for event, count in events:
            if isinstance(count, bool) or count != int(count) or count < 0:
                raise PrivacyError(f"a count must be a whole number of at least 0, got {count!r}")
            if isinstance(event, SubsampledGaussianEvent) and relation != ADD_REMOVE_RECORD:
                raise PrivacyError(
                    f"{event!r} says nothing about {relation} ({RELATIONS[relation]})"
                )
            counts[event] += int(count)
        pure: Counter[float] = Counter()
        sampled: Counter[tuple[float, float]] = Counter()
        rho = gaussian = 0.0
        for event, count in sorted(counts.items(), key=lambda item: repr(item[0])):
            if count == 0:
                continue
            if isinstance(event, PureEvent):
                pure[event.epsilon] += count
            elif isinstance(event, ZeroConcentratedEvent):
                rho = above(rho + event.rho * count)
            elif event.sampling_rate == 1:
                sigma = event.noise_multiplier
                gaussian = above(gaussian + event.steps * count / sigma / sigma)
            else:
                sampled[event.noise_multiplier, event.sampling_rate] += event.steps * count
        return cls(
            tuple(sorted(pure.items())),
            rho,
            gaussian,
            tuple(sorted((*place, steps) for place, steps in sampled.items())),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is released at all."""
        return not (self.pure or self.rho or self.gaussian or self.sampled)

    @property
    def is_pure(self) -> bool:
        """Whether delta = 0 has a meaning."""
        return not (self.rho or self.gaussian or self.sampled)

    def pure_epsilon(self) -> float:
        """Basic composition of the pure events, rounded up; infinite where there are others."""
        if not self.is_pure:
            return math.inf
        return above(math.fsum(epsilon * count for epsilon, count in self.pure))

    def renyi(self, order: float) -> float:
        """Bound the schedule's Renyi divergence of one order."""
        total = [renyi_of(PureEvent(epsilon), order) * count for epsilon, count in self.pure]
        total += [renyi_of(SubsampledGaussianEvent(*place), order) for place in self.sampled]
        return above(math.fsum([*total, (self.rho + self.gaussian / 2) * order]))

    def renyi_epsilon(self, delta: float) -> float:
        """Epsilon at delta by the best Renyi order."""
        return min(epsilon_from_renyi(self.renyi(order), order, delta) for order in ORDERS)

    def renyi_log_delta(self, epsilon: float) -> float:
        """Logarithm of delta at epsilon by the best Renyi order (at most 0)."""
        return min(
            0.0,
            *(
                (order - 1) * (self.renyi(order) - epsilon)
                + order * math.log1p(-1 / order)
                - math.log(order - 1)
                for order in ORDERS
            ),
        )

    @property
    def directions(self) -> tuple[bool, ...]:
        """Pairs to compose: removal and addition of a record differ only where it is sampled."""
        return (True, False) if self.sampled else (True,)

    def largest_loss(self, delta: float) -> float:
        """The largest loss of any one part, but for a share of delta that is cut off."""
        tail = self._tail(delta)
        sizes = [epsilon for epsilon, _ in self.pure]
        sizes += [loss_size(sigma, rate, tail) for sigma, rate, _ in self._gaussians]
        return max([*sizes, epsilon_from_rho(self.rho, tail)])

    def losses(self, epsilon: float, delta: float, *, removed: bool) -> Parts:
        """Put the losses of all events on one lattice fit for an epsilon and delta near these."""
        step, tail = self._step(epsilon, delta), self._tail(delta)
        parts: list[tuple[Lattice, int]] = [
            (randomised_response(value, step), count) for value, count in self.pure
        ]
        if self.rho:
            parts.append((zero_concentrated(self.rho, step, tail), 1))
        for sigma, rate, steps in self._gaussians:
            parts.append((sampled_gaussian(sigma, rate, step, tail, removed=removed), steps))
        return parts

    @property
    def _gaussians(self) -> tuple[tuple[float, float, int], ...]:
        """All Gaussians, those without sampling together as one."""
        if not self.gaussian:
            return self.sampled
        return ((1 / math.sqrt(self.gaussian), 1.0, 1), *self.sampled)

    @property
    def _total(self) -> int:
        """How many losses are added up."""
        counts = [count for _, count in self.pure] + [steps for *_, steps in self._gaussians]
        return sum(counts) + bool(self.rho)

    def _tail(self, delta: float) -> float:
        return max(CUT_OFF * delta / self._total, 1e-300)

    def _step(self, epsilon: float, delta: float) -> float:
        """Choose the lattice's step: a split adds about step^2 (1 + 2 tilt) / 12 to the sum."""
        order = min(ORDERS, key=lambda order: epsilon_from_renyi(self.renyi(order), order, delta))
        epsilon = max(epsilon, 1e-12)
        step = math.sqrt(12 * _TOLERANCE * epsilon / (self._total * (2 * order - 1)))
        spread = math.sqrt(2 * self.renyi(2.0)) * 40 + epsilon
        step = max(step, spread / _MOST_POINTS, 2 * self.largest_loss(delta) / _MOST_POINTS)
        if self.pure:
            largest = self.pure[-1][0]
            step = largest / np.ceil(largest / step)
        return float(step)
