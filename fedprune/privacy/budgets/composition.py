"""What a schedule of events fixed beforehand means as (epsilon, delta), as tightly as can be said.

For a schedule that does not depend on what is seen while it runs; what refuses is a filter
(`fedprune.privacy.budgets.filters`), which also holds where it does. Every figure is an upper
bound:

- only randomised response of one epsilon: the exact closed form (Kairouz, Oh & Viswanath 2015,
  Thm 3.3; Murtagh & Vadhan 2016);
- otherwise the smaller of two valid bounds: the sum of Renyi divergences at the best order, and
  the composition of dominating privacy losses (`losses`) by FFT. Pure events enter the latter as
  randomised response, DP-SGD steps as the sampled Gaussian pair (removal and addition of a record
  apart, the worse one counts), and all zero-concentrated events together, whose mechanism is not
  known, as one pair that dominates their Renyi curve.

Cross-checked against dp-accounting and Opacus in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._lattice import Floats, TiltedSum, chernoff_tilt, tilted_sum
from fedprune.privacy.budgets._rounding import above
from fedprune.privacy.budgets._schedule import CUT_OFF, Events, Schedule
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, SubsampledGaussianEvent
from fedprune.privacy.budgets.renyi import epsilon_from_rho

_MOST_EPSILON = 200.0  # past it only Renyi bounds are given: nobody needs them tight
_MOST_LOSS = 300.0
_SAFE = 1e-9  # relative error of a binomial probability or an exponential, amply
_ENOUGH = 1e-3  # share of delta that rounding errors may take before the tilt is moved
_TRIES, _MOST_TILT = 5, 8.0
_NOISE_TOLERANCE = 2e-4
_LEAST_NOISE, _MOST_NOISE = 1e-2, 1e6


def epsilon_of(events: Events, delta: float, relation: str) -> float:
    """Bound epsilon at delta for a schedule of events fixed beforehand.

    Args:
        events: (event, how many times), in any order.
        delta: in [0, 1).
        relation: neighbouring relation that all events are counted under.

    Returns:
        An upper bound, tight to about 1e-4 relative; infinity for delta = 0 where any event has
        no pure guarantee.

    Raises:
        PrivacyError: if an event says nothing under the relation, or a value is out of range.
    """
    if isinstance(delta, bool) or not 0 <= delta < 1:
        raise PrivacyError(f"delta must be in [0, 1), got {delta!r}")
    return _epsilon_of(Schedule.of(events, relation), float(delta))


def delta_of(events: Events, epsilon: float, relation: str) -> float:
    """Bound delta at epsilon for a schedule of events fixed beforehand; see `epsilon_of`."""
    if isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
        raise PrivacyError(f"epsilon must be at least 0 and finite, got {epsilon!r}")
    schedule = Schedule.of(events, relation)
    if schedule.pure_epsilon() <= epsilon:
        return 0.0
    if schedule.is_pure and len(schedule.pure) == 1:
        return randomised_response_delta(*schedule.pure[0], epsilon)
    log_delta = schedule.renyi_log_delta(epsilon)
    delta = min(1.0, math.exp(log_delta) * (1 + _SAFE))
    near = min(max(delta, 1e-290), 0.5)
    if near > delta or epsilon > _MOST_EPSILON or schedule.largest_loss(near) > 2 * _MOST_LOSS:
        return max(delta, 1e-290)
    for _ in range(_TRIES):  # the lattice is made for a delta, so make it for the right one
        found = max(_pair_delta(schedule, epsilon, near, way) for way in schedule.directions)
        delta, near, before = min(delta, found), max(found, 1e-290), near
        if near > before / 10:
            break
    return delta


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    other_events: Events = (),
) -> float:
    """Find the least noise for DP-SGD that meets (epsilon, delta) at record level.

    Args:
        epsilon: target for DP-SGD and the other events together.
        delta: in (0, 1).
        sampling_rate: probability with which each record joins a step.
        steps: how many steps.
        other_events: what else counts under the same relation.

    Returns:
        Noise multiplier, rounded up to five digits; `epsilon_of` at it is at most `epsilon`.

    Raises:
        PrivacyError: if the other events alone leave nothing, or no noise below 10^6 will do.
    """
    others = epsilon_of(other_events, delta, ADD_REMOVE_RECORD)
    if not others < epsilon < math.inf:
        raise PrivacyError(
            f"no noise can meet epsilon = {epsilon!r}: the other events alone mean {others:.6g}"
        )

    def schedule(log_noise: float) -> Schedule:
        event = SubsampledGaussianEvent(math.exp(log_noise), sampling_rate, steps)
        return Schedule.of([*other_events, (event, 1)], ADD_REMOVE_RECORD)

    def excess(log_noise: float) -> float:
        return math.log(max(_epsilon_of(schedule(log_noise), delta), 1e-9) / epsilon)

    first = _first_guess(lambda noise: schedule(noise).renyi_epsilon(delta) - epsilon)
    log_noise = _least(excess, first)
    noise = _five_digits_up(math.exp(log_noise))
    while excess(math.log(noise)) > 0:  # rounding can be off by the search's own tolerance
        noise = _five_digits_up(noise * (1 + _NOISE_TOLERANCE))
    return noise


@lru_cache(maxsize=1024)
def _epsilon_of(schedule: Schedule, delta: float) -> float:
    if schedule.is_empty:
        return 0.0
    if delta == 0:
        return schedule.pure_epsilon()
    if schedule.is_pure and len(schedule.pure) == 1:
        return min(schedule.pure_epsilon(), _randomised_response_epsilon(*schedule.pure[0], delta))
    if not (schedule.pure or schedule.gaussian or schedule.sampled):
        return epsilon_from_rho(schedule.rho, delta)
    bound = min(schedule.pure_epsilon(), schedule.renyi_epsilon(delta))
    if not 0 < bound <= _MOST_EPSILON or schedule.largest_loss(delta) > 2 * _MOST_LOSS:
        return bound
    return min(bound, max(_losses_epsilon(schedule, bound, delta, r) for r in schedule.directions))


def randomised_response_delta(local_epsilon: float, count: int, epsilon: float) -> float:
    """Delta of `count`-fold randomised response at epsilon, exact up to rounding up.

    The sum over l of C(k, l) [e^((k-l) eps0) - e^(eps + l eps0)]_+ / (1 + e^eps0)^k, written with
    binomial probabilities so that nothing cancels.
    """
    lies = np.arange(count + 1)
    losses = (count - 2 * lies) * local_epsilon
    telling = losses > epsilon
    mass = binom.pmf(lies[telling], count, float(expit(-local_epsilon)))
    return min(1.0, float(-mass @ np.expm1(epsilon - losses[telling])) * (1 + _SAFE))


def _randomised_response_epsilon(local_epsilon: float, count: int, delta: float) -> float:
    """Invert `randomised_response_delta`, rounding up."""

    def excess(epsilon: float) -> float:
        return randomised_response_delta(local_epsilon, count, epsilon) - delta

    most = local_epsilon * count
    if excess(0.0) <= 0:
        return 0.0
    found = float(brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-12))
    while excess(found) > 0:
        found += 1e-12 * (1 + found)
    return found


def _losses_epsilon(schedule: Schedule, start: float, delta: float, removed: bool) -> float:
    """Bound epsilon at delta for one pair of worlds."""
    parts = schedule.losses(start, delta, removed=removed)
    # Where the largest sum alone is likelier than delta, Chernoff's tilt would be infinite.
    most = _MOST_TILT * (1 - math.log(delta)) / start
    tilt, epsilon = min(most, chernoff_tilt(parts, log_tail=math.log(delta))), start
    for _ in range(_TRIES):
        found, doubt = _invert(tilted_sum(parts, tilt, CUT_OFF * delta), delta)
        epsilon = min(epsilon, found)
        if doubt < _ENOUGH:
            break
        tilt /= 3
    return epsilon


def _pair_delta(schedule: Schedule, epsilon: float, delta: float, removed: bool) -> float:
    """Bound delta at epsilon for one pair of worlds, on a lattice made for a given delta."""
    parts = schedule.losses(max(epsilon, 1e-3), delta, removed=removed)
    total = tilted_sum(parts, chernoff_tilt(parts, at=epsilon), CUT_OFF * delta)
    above_it = total.values > epsilon
    losses = total.values[above_it]
    terms = np.exp(-total.tilt * (losses - epsilon)) * -np.expm1(epsilon - losses)
    log_scale = total.log_scale - total.tilt * epsilon
    if log_scale > _MOST_LOSS:
        return 1.0
    scale = math.exp(log_scale)
    found = float(total.weights[above_it] @ terms) + total.error * float(np.linalg.norm(terms))
    return min(1.0, above(scale * found * (1 + total.relative) + total.missing))


def _invert(total: TiltedSum, delta: float) -> tuple[float, float]:
    """Find the least epsilon whose delta is small enough; also the share of delta in doubt.

    On a lattice delta is a straight line in exp(epsilon) between two points.
    """
    center = float(total.weights @ total.values)
    log_scale = total.log_scale - total.tilt * center
    if log_scale > _MOST_LOSS:
        return math.inf, 1.0
    near = (1 + total.tilt) * (center - total.values) < _MOST_LOSS  # below it nothing is sought
    values, weights = total.values[near], total.weights[near]
    shrink = np.exp(-total.tilt * (values - center))
    mass = _suffix(weights * shrink)
    mass_q = _suffix(weights * np.exp(-(1 + total.tilt) * (values - center)))
    scale = math.exp(log_scale) * (1 + total.relative)
    rounding = len(values) * 2.0**-51 * np.abs(mass) + 1e-290
    doubts = scale * (total.error * np.sqrt(_suffix(shrink**2)) + rounding) + total.missing
    deltas = scale * (mass - np.exp(np.minimum(values - center, _MOST_LOSS)) * mass_q) + doubts
    places = np.flatnonzero(deltas > delta)
    if len(places) == 0:
        return max(0.0, float(values[0])), float(values[0] > 0)
    place = int(places[-1])
    if place + 1 == len(values):
        return math.inf, 1.0
    share = (deltas[place] - delta) / (deltas[place] - deltas[place + 1])
    step = math.log1p(share * math.expm1(total.step))
    return max(0.0, above(float(values[place]) + step, center)), float(doubts[place] / delta)


def _suffix(terms: Floats) -> Floats:
    """Sum of all terms after each one."""
    return np.append(np.cumsum(terms[::-1])[::-1][1:], 0.0)


def _first_guess(excess: Callable[[float], float]) -> float:
    """Logarithm of the noise that Renyi bounds ask for, or of 1 where they cannot be met."""
    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    if excess(low) <= 0 or excess(high) > 0:
        return 0.0
    return float(brentq(excess, low, high, xtol=1e-3))


def _least(excess: Callable[[float], float], first: float) -> float:
    """Find where a falling function becomes at most 0; what is returned is on the good side."""
    low = high = first
    while excess(high) > 0:
        low, high = high, high + 0.35
        if high > math.log(_MOST_NOISE):
            raise PrivacyError(f"no noise below {_MOST_NOISE:g} meets the target")
    low = min(low, high - 0.1)
    while excess(low) <= 0:
        low, high = low - 0.35, low
        if low < math.log(_LEAST_NOISE):
            return high
    found = float(brentq(excess, low, high, xtol=_NOISE_TOLERANCE / 4))
    while excess(found) > 0:
        found = min(high, found + _NOISE_TOLERANCE / 4)
    return found


def _five_digits_up(value: float) -> float:
    rounded = float(f"{value:.4e}")
    return rounded if rounded >= value else float(f"{value * (1 + 1e-4):.4e}")
