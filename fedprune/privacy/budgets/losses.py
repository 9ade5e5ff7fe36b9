"""Privacy losses of single events as masses on a lattice, never below the truth.

A pair of distributions (P, Q) dominates an event if no two neighbours can be told apart better
than P from Q, at every epsilon; dominating pairs compose, also adaptively (Zhu, Dong & Wang 2022,
"Optimal accounting of differential privacy via characteristic function", Thm 10). What composes
is the distribution of the loss log P/Q under P.

Losses are put on a lattice by splitting what lies between two points among both so that the
masses under P and under Q stay what they were. The finer pair tells the original one by
forgetting the split, so it dominates; what it adds to the loss is of second order in the step
("connect the dots", Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri_exp

from fedprune.privacy.budgets._lattice import Lattice
from fedprune.privacy.budgets._rounding import above
from fedprune.privacy.budgets.renyi import LARGEST_ORDER, epsilon_from_rho

Floats = NDArray[np.float64]

_SAFE = 2.0**-40  # relative error of a tail probability and of what is made of it
_PROFILE_ORDERS = 400
_POINTS_PER_DEVIATION = 300


def randomised_response(epsilon: float, step: float) -> Lattice:
    """The loss of a pure event: randomised response dominates it (Kairouz, Oh & Viswanath 2015)."""
    keep = 1 / (1 + math.exp(-epsilon))
    lower = _split(-epsilon, math.exp(-epsilon) * keep, step)
    upper = _split(epsilon, keep, step)
    first = min(lower)
    masses = np.zeros(max(upper) - first + 1)
    for place, mass in (*lower.items(), *upper.items()):
        masses[place - first] += mass
    return Lattice(step, first, masses)


def _split(loss: float, mass: float, step: float) -> dict[int, float]:
    """Share one loss between the points beside it."""
    place = math.ceil(loss / step)
    upper = -math.expm1((place - 1) * step - loss) / -math.expm1(-step)
    upper = min(1.0, max(0.0, above(upper, abs(place) + 1)))
    return {place - 1: mass * (1 - upper), place: mass * upper}


def loss_size(noise_multiplier: float, rate: float, tail: float) -> float:
    """The largest size of a loss that `sampled_gaussian` holds."""
    return max(map(abs, _loss_range(noise_multiplier, rate, tail)))


def _loss_range(noise_multiplier: float, rate: float, tail: float) -> tuple[float, float]:
    reach = -float(ndtri_exp(math.log(tail))) * noise_multiplier
    return _ratio(-reach, noise_multiplier, rate), _ratio(1 + reach, noise_multiplier, rate)


def sampled_gaussian(
    noise_multiplier: float, rate: float, step: float, tail: float, *, removed: bool
) -> Lattice:
    """The loss of one DP-SGD step: (1-q) N(0, s^2) + q N(1, s^2) against N(0, s^2).

    Args:
        noise_multiplier: s.
        rate: q.
        step: of the lattice.
        tail: mass that may be moved to an infinite loss.
        removed: P is the mixture (the record is taken away); otherwise P is the noise alone.
    """
    bottom, top = _loss_range(noise_multiplier, rate, tail)
    low, high = (bottom, top) if removed else (-top, -bottom)
    first = math.floor(low / step)
    marks = step * np.arange(first, math.ceil(high / step) + 1, dtype=np.float64)
    places = _place(marks if removed else -marks, noise_multiplier, rate)
    noise, noise_tail = _normal(places, noise_multiplier, removed)
    moved, moved_tail = _normal(places - 1, noise_multiplier, removed)
    mixed = (1 - rate) * noise + rate * moved
    mixed_tail = (1 - rate) * noise_tail + rate * moved_tail
    pair = (mixed, mixed_tail), (noise, noise_tail)
    return _shared(step, first, *(pair if removed else reversed(pair)))


def _ratio(place: float, noise_multiplier: float, rate: float) -> float:
    """Logarithm of the mixture's density over the noise's."""
    moved = math.log(rate) + (place - 0.5) / noise_multiplier / noise_multiplier
    return moved if rate == 1 else float(np.logaddexp(math.log1p(-rate), moved))


def _place(ratio: Floats, noise_multiplier: float, rate: float) -> Floats:
    """Invert `_ratio`; minus infinity where no place has so small a ratio."""
    with np.errstate(divide="ignore", invalid="ignore"):
        small = np.log1p(np.maximum(np.expm1(np.minimum(ratio, 30.0)) / rate, -1.0))
        large = ratio + np.log1p((rate - 1) * np.exp(-np.maximum(ratio, 30.0))) - math.log(rate)
    grown = ratio if rate == 1 else np.where(ratio > 30, large, small)
    return np.asarray(0.5 + noise_multiplier * noise_multiplier * grown)


def _normal(places: Floats, deviation: float, ascending: bool) -> tuple[Floats, Floats]:
    """Masses [num_places + 1] of N(0, deviation^2) around places in order, and tails [num_places].

    Tails are the smaller ones, which bound the rounding error of the masses beside them.
    """
    scaled = places / deviation
    ordered = scaled if ascending else np.flip(scaled)
    below, above_ = ndtr(ordered), ndtr(-ordered)
    inner = np.where(ordered[:-1] > 0, above_[:-1] - above_[1:], below[1:] - below[:-1])
    masses = np.concatenate([below[:1], np.maximum(inner, 0.0), above_[-1:]])
    return (masses if ascending else np.flip(masses)), ndtr(-np.abs(scaled))


def _shared(step: float, first: int, p: tuple[Floats, Floats], q: tuple[Floats, Floats]) -> Lattice:
    """Share the masses between marks, and what lies beyond them, among the marks.

    Args:
        step: of the marks.
        first: the first mark's number.
        p: masses [num_marks + 1] below the first mark, between two marks, above the last; and
            the tail probability at each mark [num_marks].
        q: the same under the other distribution.
    """
    inner, tails = p[0][1:-1], p[1]
    marks = step * (first + np.arange(len(tails), dtype=np.float64))
    scale = np.exp(marks[:-1])
    doubt = _SAFE * (tails[:-1] + tails[1:] + scale * (q[1][:-1] + q[1][1:]))
    upper = (inner - scale * q[0][1:-1] + doubt) / -math.expm1(-step)
    upper = np.clip(upper, 0.0, inner)
    masses = np.zeros(len(marks))
    masses[1:] += upper
    masses[:-1] += inner - upper
    masses[0] += p[0][0]
    return Lattice(step, first, masses * (1 + _SAFE), at_infinity=above(float(p[0][-1])))


def zero_concentrated(rho: float, step: float, tail: float) -> Lattice:
    """A loss that dominates every rho-zCDP mechanism, whatever it is.

    zCDP bounds the true curve of delta over exp(epsilon) from above at every point. That curve is
    convex, so it lies under the convex hull of the bounds, and a convex curve is that of a pair
    (Zhu, Dong & Wang 2022, Prop. 8); its slopes are the masses under Q.
    """
    stride = max(1, math.floor(math.sqrt(2 * rho) / (_POINTS_PER_DEVIATION * step)))
    count = math.ceil(epsilon_from_rho(rho, tail) / (stride * step))
    places = np.arange(-count, count + 1) * stride
    epsilon = step * places.astype(np.float64)
    high = _zero_concentrated_profile(rho, epsilon[count:])
    low = -np.expm1(epsilon[:count]) + np.exp(epsilon[:count]) * np.flip(high)[:count]
    gamma = np.concatenate([[0.0], np.exp(epsilon)])
    delta = np.concatenate([[1.0], np.minimum(low * (1 + _SAFE), 1.0), high])
    corners = _lower_hull(gamma, delta)
    slopes = np.append(np.diff(delta[corners]) / np.diff(gamma[corners]), 0.0)
    masses = np.zeros(2 * count * stride + 1)
    rising = np.maximum(np.diff(slopes), 0.0)  # by rounding, equal slopes may seem to fall
    masses[(corners[1:] - 1) * stride] = gamma[corners[1:]] * rising
    return Lattice(step, -count * stride, masses * (1 + _SAFE), at_infinity=float(delta[-1]))


def _zero_concentrated_profile(rho: float, epsilon: Floats) -> Floats:
    """Bound delta at each epsilon [num_points] by the best of some orders.

    Canonne, Kamath & Steinke 2020, Prop. 12: exp((a-1)(a rho - eps)) (1 - 1/a)^a / (a - 1).
    """
    orders = 1 + np.geomspace(1e-3, LARGEST_ORDER, _PROFILE_ORDERS)[:, None]
    logs = (orders - 1) * (orders * rho - epsilon) + orders * np.log1p(-1 / orders)
    best = (logs - np.log(orders - 1)).min(axis=0)
    return np.asarray(np.minimum(1.0, np.exp(best) * (1 + _SAFE)))


def _lower_hull(x: Floats, y: Floats) -> NDArray[np.int64]:
    """Indices of the corners of the largest convex function under points in ascending x."""
    corners: list[int] = []
    for new in range(len(x)):
        while len(corners) > 1:
            last, before = corners[-1], corners[-2]
            rise = (y[last] - y[before]) * (x[new] - x[before])
            if rise < (y[new] - y[before]) * (x[last] - x[before]):
                break
            corners.pop()
        corners.append(new)
    return np.asarray(corners, dtype=np.int64)
