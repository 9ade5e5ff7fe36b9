"""What a shuffler makes of many local reports: central (epsilon, delta) from a local epsilon.

A shuffler that the server does not control forgets who sent which report, so a client hides
among the others. Two bounds, both numerical and rounded up:

- of any epsilon0-local reports: "clones" (Feldman, McMillan & Talwar 2021, "Hiding among the
  clones", Thm 3.1). Every other report is, with probability e^-eps0, a fair coin's choice between
  the two reports that the client might have sent.
- of threshold randomised response, whose densities take two values only: the privacy blanket
  (Balle, Bell, Gascon & Nissim 2019, "The privacy blanket of the shuffle model", Thm 5 and 6),
  in the spirit of Feldman, McMillan & Talwar 2023. Every other report is, with probability
  g = 1 / (1 + q (e^eps0 - 1)), uniform over all blocks and patterns.

Both lead to delta = E[(G_1 + ... + G_n)_+] / (n r), the G independent, zero with probability
1 - r, else (P - e^eps P') / B at a draw from the common part B, for the client's two worlds P and
P'; this is computed by FFT on a lattice onto which every G is split with its mean, which can only
raise the expectation of a convex function.

For the threshold mechanism (P, P', B) has ratios e^eps0 and 1 only. Let h be the uniform measure
of what is likely in the first world alone (and, as both have measure q, of what is in the second
alone). More h moves mass from {e^eps0 (1 - c), 1 - c} to {e^eps0 - c, 1 - c e^eps0}, c = e^eps:
the same mean, further apart, so delta grows with h and h = min(q, 1 - q), which opposite masks
reach, is the worst case.

The bounds need the shuffled messages to say nothing about their sender. A client's publicly
assigned block does, so only client-drawn blocks may be shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._lattice import Lattice, chernoff_tilt, tilted_sum
from fedprune.privacy.budgets._rounding import above

CLIENT_DRAWN, ASSIGNED = "client-drawn", "assigned"
_POINTS_PER_DEVIATION, _MOST_POINTS = 40.0, 2.0**20
_CUT_OFF, _TOO_FEW = 1e-9, 1e-3
_MOST_EPSILON = 64.0
_PRECISION, _LOCAL_PRECISION = 1e-6, 1e-4

Atoms = list[tuple[float, float]]


def central_delta(
    local_epsilon: float,
    num_reports: int,
    epsilon: float,
    *,
    threshold_probability: float | None = None,
    blocks: str = CLIENT_DRAWN,
) -> float:
    """Bound the central delta at epsilon of shuffled local reports.

    Args:
        local_epsilon: pure local epsilon of every report.
        num_reports: reports that really went through the shuffler.
        epsilon: central epsilon, at least 0.
        threshold_probability: share q of all patterns that threshold randomised response prefers
            (see `threshold_probability`); None for any other local mechanism.
        blocks: must be "client-drawn".

    Raises:
        PrivacyError: if a value is out of range, or the bound does not hold for such blocks.
    """
    _check(local_epsilon, num_reports, blocks)
    if isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
        raise PrivacyError(f"epsilon must be at least 0 and finite, got {epsilon!r}")
    if epsilon >= local_epsilon:
        return 0.0
    alone = -math.expm1(epsilon - local_epsilon) / (1 + math.exp(-local_epsilon))
    bounds = [above(alone), _delta(*_clones(local_epsilon, epsilon), num_reports)]
    if threshold_probability is not None:
        blanket = _blanket(local_epsilon, epsilon, threshold_probability)
        bounds.append(_delta(*blanket, num_reports))
    return min(1.0, *bounds)


def central_epsilon(
    local_epsilon: float,
    num_reports: int,
    delta: float,
    *,
    threshold_probability: float | None = None,
    blocks: str = CLIENT_DRAWN,
) -> float:
    """Bound the central epsilon at delta of shuffled local reports, rounded up.

    Never above the local epsilon, which holds without any shuffler. See `central_delta`.
    """
    _check(local_epsilon, num_reports, blocks)
    _check_delta(delta)

    def excess(epsilon: float) -> float:
        found = central_delta(
            local_epsilon, num_reports, epsilon, threshold_probability=threshold_probability
        )
        return math.log(max(found, 1e-300) / delta)

    if excess(0.0) <= 0:
        return 0.0
    found = float(brentq(excess, 0.0, local_epsilon, xtol=_PRECISION, rtol=_PRECISION))
    slack = _PRECISION
    while found < local_epsilon and excess(found) > 0:
        found, slack = found + slack, 2 * slack
    return min(local_epsilon, found)


def local_epsilon_for(
    central: float,
    num_reports: int,
    delta: float,
    *,
    threshold_probability: Callable[[float], float] | None = None,
    blocks: str = CLIENT_DRAWN,
) -> float:
    """Find a large local epsilon whose shuffled reports are centrally (central, delta) private.

    Args:
        central: central epsilon that must hold.
        num_reports: the least number of reports that the shuffler will forward.
        delta: in (0, 1).
        threshold_probability: of threshold randomised response as a function of its local
            epsilon; None for any other local mechanism.
        blocks: must be "client-drawn".

    Returns:
        Local epsilon, rounded down; at least `central`, which needs no shuffler.
    """
    _check(central, num_reports, blocks)
    _check_delta(delta)

    def excess(local: float) -> float:
        share = None if threshold_probability is None else threshold_probability(local)
        found = central_delta(local, num_reports, central, threshold_probability=share)
        return math.log(max(found, 1e-300) / delta)

    low, high = central, min(2 * central + 1, _MOST_EPSILON)
    while high < _MOST_EPSILON and excess(high) <= 0:
        low, high = high, min(2 * high, _MOST_EPSILON)
    while high - low > _LOCAL_PRECISION * low:  # halving, since a mechanism's share can jump
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    return low


def threshold_probability(block_units: int, threshold: int) -> float:
    """Share of all patterns of a block that agree with a mask in at least `threshold` places."""
    return float(binom.sf(threshold - 1, block_units, 0.5))


def _clones(local_epsilon: float, epsilon: float) -> tuple[Atoms, float]:
    """Return the values of G with their probabilities, and r."""
    clone = math.exp(-local_epsilon)
    # divided by e^eps0, which delta takes back
    likely, unlikely = 2 / (1 + clone), 2 * clone / (1 + clone)
    ratio = math.exp(epsilon)
    values = (likely - ratio * unlikely, clone / 2), (unlikely - ratio * likely, clone / 2)
    return [(0.0, 1 - clone), *values], clone


def _blanket(local_epsilon: float, epsilon: float, share: float) -> tuple[Atoms, float]:
    """Return the values of G / e^eps0 with their probabilities, and r / e^eps0."""
    if isinstance(share, bool) or not 0 < share < 1:
        raise PrivacyError(f"threshold_probability must be in (0, 1), got {share!r}")
    common = 1 / (1 + share * math.expm1(local_epsilon))
    low, ratio = math.exp(-local_epsilon), math.exp(epsilon)
    apart = min(share, 1 - share)
    return [
        (0.0, 1 - common),
        (1 - ratio * low, common * apart),
        (low - ratio, common * apart),
        (1 - ratio, common * (share - apart)),
        (low * (1 - ratio), common * (1 - share - apart)),
    ], low


def _delta(atoms: Atoms, share: float, num_reports: int) -> float:
    """Bound E[(sum of `num_reports` draws of the atoms)_+] / (num_reports x share)."""
    hidden_among = num_reports * sum(mass for value, mass in atoms if value)
    if hidden_among < _TOO_FEW:
        return 1.0
    deviation = math.sqrt(num_reports * sum(mass * value * value for value, mass in atoms))
    single = deviation / math.sqrt(hidden_among)
    reach = max(value for value, _ in atoms) - min(value for value, _ in atoms)
    coarsest = max(40 * deviation, reach) / _MOST_POINTS  # any step is safe, see `_spread`
    step = max(single / _POINTS_PER_DEVIATION, coarsest) / deviation
    parts = [(_spread([(v / deviation, mass) for v, mass in atoms], step), num_reports)]
    tilt = chernoff_tilt(parts)
    log_bound = num_reports * parts[0][0].log_moment(tilt)
    if log_bound < -600:
        return 1e-250
    if log_bound > 600:  # more than any probability
        return 1.0
    tail = _CUT_OFF * math.exp(log_bound)
    total = tilted_sum(parts, tilt, tail)
    positive = total.values > 0
    sums = total.values[positive]
    terms = sums * np.exp(-tilt * sums)
    found = float(total.weights[positive] @ terms) + total.error * float(np.linalg.norm(terms))
    found = found * math.exp(total.log_scale) * (1 + total.relative)
    found += total.beyond * (float(total.values[-1]) + 1 / tilt)
    return above(found * deviation / (num_reports * share)) * (1 + _CUT_OFF)


def _spread(atoms: Atoms, step: float) -> Lattice:
    """Split every value between the lattice points beside it, its mean kept."""
    places = [math.floor(value / step) for value, _ in atoms]
    first = min(places)
    masses = np.zeros(max(places) - first + 2)
    for (value, mass), place in zip(atoms, places, strict=True):
        upper = min(1.0, max(0.0, above(value / step - place, abs(place) + 1)))
        masses[place - first] += mass * (1 - upper)
        masses[place - first + 1] += mass * upper
    return Lattice(step, first, masses)


def _check(local_epsilon: float, num_reports: int, blocks: str) -> None:
    if isinstance(local_epsilon, bool) or not 0 < local_epsilon <= _MOST_EPSILON:
        raise PrivacyError(f"epsilon must be in (0, {_MOST_EPSILON:g}], got {local_epsilon!r}")
    if isinstance(num_reports, bool) or num_reports != int(num_reports) or num_reports < 1:
        raise PrivacyError(f"num_reports must be a whole number of at least 1, got {num_reports!r}")
    if blocks != CLIENT_DRAWN:
        raise PrivacyError(
            f"shuffling protects reports about {CLIENT_DRAWN} blocks only, got {blocks!r}: a "
            "publicly assigned block says who the client may be"
        )


def _check_delta(delta: float) -> None:
    if isinstance(delta, bool) or not 0 < delta < 1:
        raise PrivacyError(f"delta must be in (0, 1) for a shuffler, got {delta!r}")
