"""Sums of many independent variables on one lattice, accurate in the far tail.

The masses are tilted by exp(tilt x value) before they are convolved by FFT and tilted back
afterwards (an Esscher transform): the tail that decides a delta of 10^-12 then lies in the middle
of what is convolved, where rounding is relative to what is sought. Every result carries a bound
of its rounding error and of what lies beyond the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import minimize_scalar

from fedprune.privacy.budgets._rounding import above

Floats = NDArray[np.float64]

_UNIT = 2.0**-53
_FFT_ERROR = 8 * _UNIT  # relative, in the 2-norm, per doubling; pocketfft measures well below 1
_FOLDED = 1e-10
_LOG_TILTS = (math.log(0.02), math.log(4096.0))
_SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Lattice:
    """Masses [num_points] on the values step x (first + 0, 1, 2, ...), and at infinity."""

    step: float
    first: int
    masses: Floats
    at_infinity: float = 0.0

    @property
    def values(self) -> Floats:
        """The finite values [num_points]."""
        return self.step * (self.first + np.arange(len(self.masses), dtype=np.float64))

    def log_moment(self, tilt: float) -> float:
        """Logarithm of the sum of mass x exp(tilt x value)."""
        with np.errstate(divide="ignore"):
            terms = np.log(self.masses) + tilt * self.values
        peak = float(terms.max())
        return peak + math.log(float(np.exp(terms - peak).sum()))

    def tilted(self, tilt: float) -> Floats:
        """Masses [num_points] x exp(tilt x value), normalised by `log_moment`."""
        with np.errstate(divide="ignore"):
            return np.asarray(
                np.exp(np.log(self.masses) + tilt * self.values - self.log_moment(tilt))
            )


Parts = Sequence[tuple[Lattice, int]]


@dataclass(frozen=True)
class TiltedSum:
    """The distribution of a sum, tilted.

    The mass of value s is weight x exp(log_scale - tilt x s).

    Attributes:
        step: of the lattice.
        values: ascending, [num_points].
        weights: tilted masses [num_points], each with an error; may be slightly negative.
        tilt, log_scale: see above.
        error: bound of the 2-norm of the weights' error.
        relative: bound of the relative error that all weights share.
        beyond: bound of the mass above the window, not at infinity.
        at_infinity: mass at infinity.
    """

    step: float
    values: Floats
    weights: Floats
    tilt: float
    log_scale: float
    error: float
    relative: float
    beyond: float
    at_infinity: float

    @property
    def missing(self) -> float:
        """Bound of all mass that `weights` do not hold above the window."""
        return self.beyond + self.at_infinity


def tilted_sum(parts: Parts, tilt: float, tail: float) -> TiltedSum:
    """Convolve independent variables, each taken `count` times.

    Args:
        parts: (variable, count); all on lattices of one step.
        tilt: at least 0; places the window around the sums that it makes likely.
        tail: mass that may lie above the window.
    """
    step = parts[0][0].step
    log_scale = _log_moments(parts, tilt)
    low, high, beyond = _window(parts, tilt, log_scale, tail)
    start = math.floor(low / step)
    size = fft.next_fast_len(max(16, math.ceil(high / step) - start + 1), real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    error, offset, biggest = 0.0, 0, 0.0
    for lattice, count in parts:
        folded = _fold(lattice.tilted(tilt), size)
        spectrum *= fft.rfft(folded) ** count
        offset += lattice.first * count
        error += count * float(np.linalg.norm(folded))
        exponent = abs(tilt) * float(np.abs(lattice.values[[0, -1]]).max())
        biggest += count * (exponent + abs(lattice.log_moment(tilt)) + 8)
    weights = np.roll(fft.irfft(spectrum, size), (offset - start) % size)
    total = sum(count for _, count in parts)
    norm = float(np.linalg.norm(weights))
    doublings = math.log2(size)
    return TiltedSum(
        step=step,
        values=step * (start + np.arange(size, dtype=np.float64)),
        weights=weights,
        tilt=tilt,
        log_scale=log_scale,
        error=2 * (_FFT_ERROR * doublings * (error + norm) + 8 * total * _UNIT * norm),
        relative=8 * _UNIT * biggest,
        beyond=beyond,
        at_infinity=min(1.0, above(sum(part.at_infinity * count for part, count in parts))),
    )


def chernoff_tilt(parts: Parts, *, log_tail: float | None = None, at: float = 0.0) -> float:
    """Find the tilt of Chernoff's bound, under which the tail that is sought is likely.

    Args:
        parts: (variable, count), added up.
        log_tail: logarithm of the probability whose quantile is sought, or None.
        at: the value whose tail is sought where `log_tail` is None.
    """

    def bound(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        moment = _log_moments(parts, tilt)
        return moment - tilt * at if log_tail is None else (moment - log_tail) / tilt

    found = minimize_scalar(bound, bounds=_LOG_TILTS, method="bounded", options={"xatol": 0.05})
    return math.exp(float(found.x))


def _log_moments(parts: Parts, tilt: float) -> float:
    return sum(count * part.log_moment(tilt) for part, count in parts)


def _window(parts: Parts, tilt: float, log_scale: float, tail: float) -> tuple[float, float, float]:
    """Find where the tilted sum lies, by Chernoff's bound; return also the mass left above.

    The sum is computed on a circle, so what lies outside the window is folded into it, which can
    only add to a tail; it is small under the tilt.
    """
    deviation = _deviation(parts, tilt)
    lows, highs = [], []
    for spread in _SPREADS:
        up, down = tilt + spread / deviation, tilt - spread / deviation
        moment = _log_moments(parts, up)
        above_it = (moment - math.log(tail)) / up
        highs.append(max(above_it, (moment - log_scale - math.log(_FOLDED)) / (up - tilt)))
        fall = log_scale - _log_moments(parts, down)
        lows.append((math.log(_FOLDED) + fall) / (tilt - down))
    smallest = sum(count * part.step * part.first for part, count in parts)
    largest = sum(count * part.step * (part.first + len(part.masses) - 1) for part, count in parts)
    step = parts[0][0].step
    if min(highs) >= largest:
        return max(max(lows), smallest) - step, largest + step, 0.0
    return max(max(lows), smallest) - step, min(highs) + step, tail


def _deviation(parts: Parts, tilt: float) -> float:
    """Standard deviation of the tilted sum."""
    variance = 0.0
    for lattice, count in parts:
        weights, values = lattice.tilted(tilt), lattice.values
        mean = float(weights @ values)
        variance += count * float(weights @ (values - mean) ** 2)
    return max(math.sqrt(variance), parts[0][0].step)


def _fold(masses: Floats, size: int) -> Floats:
    """Add up what falls on the same place of a circle."""
    padded = np.zeros(-(-len(masses) // size) * size)
    padded[: len(masses)] = masses
    return np.asarray(padded.reshape(-1, size).sum(axis=0))
