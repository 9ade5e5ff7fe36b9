"""Renyi differential privacy of every event, and what it is worth as (epsilon, delta).

All figures are upper bounds that hold in floating point. Sources: Mironov 2017, "Renyi
differential privacy"; Mironov, Talwar & Zhang 2019, "Renyi differential privacy of the sampled
Gaussian mechanism"; Bun & Steinke 2016, "Concentrated differential privacy"; Balle, Barthe,
Gaboardi, Hsu & Sato 2020, "Hypothesis testing interpretations and Renyi differential privacy";
Canonne, Kamath & Steinke 2020, "The discrete Gaussian for differential privacy", Prop. 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, logsumexp

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._rounding import above, below
from fedprune.privacy.budgets.events import (
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)

LARGEST_ORDER = 4096.0
# Candidates for a fixed order. A sampled Gaussian is exact at whole orders only.
ORDERS: tuple[float, ...] = (
    *(1 + k / 16 for k in range(1, 16)),
    *(2 + k / 4 for k in range(32)),
    *(float(k) for k in range(10, 128)),
    *(128.0 * 2 ** (k / 4) // 1 for k in range(21)),
)
_TINY_EXPONENT, _HUGE_EXPONENT = 1e-300, 30.0  # what underflows is rounded up


def renyi_of(event: Event, order: float) -> float:
    """Bound an event's Renyi divergence of a given order, in both directions, from above.

    Raises:
        PrivacyError: if the order is not in (1, 4096], or no such event is known.
    """
    check_order(order)
    bound = _RENYI.get(type(event))
    if bound is None:
        raise PrivacyError(f"this accountant knows no event {event!r}")
    return bound(event, order)


def check_order(order: float) -> None:
    """Refuse an order at which nothing is computed."""
    if isinstance(order, bool) or not 1 < order <= LARGEST_ORDER:
        raise PrivacyError(f"a Renyi order must be in (1, {LARGEST_ORDER:g}], got {order!r}")


def pure_rho(epsilon: float) -> float:
    """Return the smallest rho for which every epsilon-DP mechanism is rho-zCDP: eps tanh(eps/2).

    Every epsilon-DP pair is a post-processing of randomised response (Kairouz, Oh & Viswanath
    2015), for which (a - 1) D_a = log cosh(eps (a - 1/2)) - log cosh(eps/2). With u = (a - 1/2)^2
    the right side is concave in u, since tanh(x)/x falls, so it lies under its tangent at u = 1/4,
    which is a (a - 1) eps tanh(eps/2); as a -> 1 it is reached. Never above eps^2/2.
    """
    return above(epsilon * math.tanh(epsilon / 2))


def _pure(event: PureEvent, order: float) -> float:
    """Randomised response (Mironov 2017, Prop. 5), which dominates every epsilon-DP mechanism."""
    epsilon = event.epsilon
    high, low = epsilon * (order - 0.5), epsilon / 2
    if high < _HUGE_EXPONENT:  # cosh a / cosh b - 1 = 2 sinh((a+b)/2) sinh((a-b)/2) / cosh b
        half_sum, half_difference = epsilon * order / 2, epsilon * (order - 1) / 2
        excess = 2 * math.sinh(half_sum) * math.sinh(half_difference) / math.cosh(low)
        divergence = above(math.log1p(excess) / (order - 1))
    else:
        moment = _log_cosh(high) - _log_cosh(low)
        divergence = above(moment / (order - 1), (high + low) / (order - 1))
    return min(divergence, epsilon, above(order * pure_rho(epsilon)))


def _log_cosh(value: float) -> float:
    return value + math.log1p(math.exp(-2 * value)) - math.log(2)


def _zero_concentrated(event: ZeroConcentratedEvent, order: float) -> float:
    return above(event.rho * order)


def _subsampled_gaussian(event: SubsampledGaussianEvent, order: float) -> float:
    """Mironov, Talwar & Zhang 2019, Thm 4-5: the 1-d mixture against its noise is the worst pair.

    Between whole orders, (order - 1) times the divergence is convex in the order, so the chord
    bounds it.
    """
    lower = math.floor(order)
    share = order - lower
    moment = (1 - share) * _log_moment(event.noise_multiplier, event.sampling_rate, lower)
    if share:
        moment += share * _log_moment(event.noise_multiplier, event.sampling_rate, lower + 1)
    return above(event.steps * moment / (order - 1))


@lru_cache(maxsize=65536)
def _log_moment(noise_multiplier: float, rate: float, order: int) -> float:
    """Bound log E_{z ~ N(0, s^2)}[((1-q) + q N(1, s^2)/N(0, s^2))^order], a whole order.

    The sum of C(order, k) (1-q)^(order-k) q^k exp((k^2 - k) / (2 s^2)) (Sec. 3.3); as the binomial
    weights sum to 1, expm1 in place of exp leaves the excess over 1, a sum without cancellation.
    """
    if order < 2:
        return 0.0
    if rate == 1:
        return above(order * (order - 1) / 2 / noise_multiplier / noise_multiplier)
    k = np.arange(2, order + 1, dtype=np.float64)
    exponent = np.maximum((k * k - k) / 2 / noise_multiplier / noise_multiplier, _TINY_EXPONENT)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    weight = choose + (order - k) * math.log1p(-rate) + k * math.log(rate)
    terms = weight + _log_expm1(exponent)
    size = gammaln(order + 1) + np.abs(weight).max() + np.abs(exponent).max()
    excess = above(float(logsumexp(terms)), float(size))
    return above(float(np.logaddexp(0.0, excess)) if excess > 0 else math.log1p(math.exp(excess)))


def _log_expm1(values: np.ndarray) -> np.ndarray:
    """Logarithm of exp(value) - 1, without overflow."""
    small = np.minimum(values, _HUGE_EXPONENT)
    return np.where(values > _HUGE_EXPONENT, values, np.log(np.expm1(small)))


_RENYI: dict[type, Callable[..., float]] = {
    PureEvent: _pure,
    ZeroConcentratedEvent: _zero_concentrated,
    SubsampledGaussianEvent: _subsampled_gaussian,
}


def epsilon_from_renyi(divergence: float, order: float, delta: float) -> float:
    """Convert a Renyi divergence of one order into epsilon at delta, rounded up, at least 0.

    Balle et al. 2020, Thm 21; Canonne, Kamath & Steinke 2020, Prop. 12:
    eps = D + log(1 - 1/a) + (log(1/delta) - log a) / (a - 1).
    """
    check_order(order)
    value, magnitude = _conversion(order, delta)
    return max(0.0, above(divergence + value, divergence + magnitude))


def renyi_capacity(epsilon: float, delta: float, order: float) -> float:
    """Largest divergence of an order that still means (epsilon, delta), rounded down.

    Not above 0 where this order can promise nothing at (epsilon, delta).
    """
    check_order(order)
    value, magnitude = _conversion(order, delta)
    return below(epsilon - value, epsilon + magnitude)


def _conversion(order: float, delta: float) -> tuple[float, float]:
    """Return what is added to a divergence of an order, and the size of its terms."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must be in (0, 1) for this conversion, got {delta!r}")
    first = math.log1p(-1 / order)
    second, third = -math.log(delta) / (order - 1), -math.log(order) / (order - 1)
    # order - 1 carries an error of an ulp of the order, which counts near 1
    return first + second + third, (abs(first) + abs(second) + abs(third)) * (1 + 1 / (order - 1))


def epsilon_from_rho(rho: float, delta: float) -> float:
    """Convert rho-zCDP into epsilon at delta: the best of all orders, rounded up.

    Every order gives a valid bound, so the search needs no guarantee of its own.
    """
    if rho == 0:
        return 0.0
    return _best_order(lambda order: epsilon_from_renyi(above(rho * order), order, delta))[1]


def rho_capacity(epsilon: float, delta: float) -> float:
    """Largest rho for which rho-zCDP still means (epsilon, delta), rounded down."""
    return -_best_order(lambda order: -below(renyi_capacity(epsilon, delta, order) / order))[1]


def _best_order(cost: Callable[[float], float]) -> tuple[float, float]:
    """Minimise over all orders: a coarse grid, then a bounded search around its best."""
    logs = np.linspace(math.log(1e-3), math.log(LARGEST_ORDER - 1), 64)
    costs = [cost(1 + math.exp(place)) for place in logs]
    best = int(np.argmin(costs))
    near = minimize_scalar(
        lambda place: cost(1 + math.exp(place)),
        bounds=(logs[max(0, best - 1)], logs[min(len(logs) - 1, best + 1)]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    found = [(costs[best], 1 + math.exp(logs[best])), (float(near.fun), 1 + math.exp(near.x))]
    value, order = min(found)
    return order, value
