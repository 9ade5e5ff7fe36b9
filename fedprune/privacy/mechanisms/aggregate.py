"""Mask votes under a secure sum: every client adds a share of the noise, only the sum is seen.

Each client sends s b + Y modulo 2^m, where b in {0,1}^d is its mask, s a whole scale and Y a
vector of discrete Gaussians of variance sigma^2. The server learns nothing but the sum over the
clients that were heard (`fedprune.privacy.secure.secure_sum`), whose noise is a sum of n discrete
Gaussians. That is not a discrete Gaussian, but close to one: by Kairouz, Liu & Steinke 2021,
"The distributed discrete Gaussian mechanism for federated learning with secure aggregation",
Proposition 14, for sigma >= 1/2 the sum is rho-zCDP with

    rho = (Delta / (sqrt(n) sigma) + sqrt(d) tau)^2 / 2,
    tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k / (k + 1)),

Delta the l2 sensitivity of s b. Replacing a client changes at most min(k, d-k) ones to zeros and
as many zeros to ones where exactly k ones are enforced, so Delta = s sqrt(2 min(k, d-k)); without
that it is s sqrt(d). More noise than that of n clients never weakens the guarantee, so n is the
least number of clients whose noise is in every sum that can be revealed, less those who collude
with the server and so know their own. The scale is the smallest power of two for which tau costs
next to nothing. Sums wrap around modulo 2^m; that is post-processing and costs no privacy, and it
hurts the votes with a probability below 2^-60 only (the sum of n discrete Gaussians is
sub-Gaussian with variance proxy n sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.budgets._rounding import above, float_up
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import ZeroConcentratedEvent
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.discrete_gaussian import MAX_DEVIATION, DiscreteGaussian
from fedprune.privacy.mechanisms.estimation import VoteEstimate
from fedprune.randomness import Randomness

Vector = NDArray[Any]  # unsigned integers modulo 2^modulus_bits

_VARIANCE_GRID = 2**20  # sigma^2 is a multiple of its reciprocal
_SLACK = Fraction(1, 2**20)  # share of sigma^2 that pays for tau
_MOST_DOUBLINGS = 24  # of the scale
_TAU_ERROR = 1e-9  # relative, far above that of double precision here
_SMALL_MODULUS, _LARGE_MODULUS = 32, 64
_MANY_CLIENTS = 2**20
_WRAP_PROBABILITY = 2.0**-60


@dataclass(frozen=True)
class AggregateMechanism:
    """Distributed discrete Gaussian noise for a sum of masks.

    Unit of protection: the client. Neighbouring relation: any change of the client's whole data.
    Trust: the server sees the sum alone, which holds against whom
    `fedprune.privacy.secure.secure_sum` says; of the clients whose masks are summed at most
    `colluding` help the server.

    Attributes:
        epsilon, delta: what one sum may mean for one client.
        num_units: d, bits of a mask.
        min_reports: the least number of clients in any sum that is revealed.
        keep: k, the number of ones that every mask has; None where masks have any number.
        colluding: how many of those in a sum may reveal their own noise.
    """

    epsilon: float
    delta: float
    num_units: int
    min_reports: int
    keep: int | None = None
    colluding: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters out of range.

        Raises:
            PrivacyError: naming the parameter, its value and what is allowed.
        """
        _check_whole("num_units", self.num_units, 1)
        _check_whole("min_reports", self.min_reports, 2)
        _check_whole("colluding", self.colluding, 0, self.min_reports - 1)
        if self.keep is not None:
            _check_whole("keep", self.keep, 1, self.num_units - 1)
        _ = self._design

    @property
    def honest(self) -> int:
        """The least number of clients whose noise the server does not know."""
        return self.min_reports - self.colluding

    @property
    def squared_sensitivity(self) -> int:
        """Largest squared l2 distance of two masks."""
        if self.keep is None:
            return self.num_units
        return 2 * min(self.keep, self.num_units - self.keep)

    @property
    def scale(self) -> int:
        """s: what a 1 in a mask counts in the sum."""
        return self._design[0]

    @property
    def noise_variance(self) -> Fraction:
        """sigma^2 of every client's noise, before it is divided by the scale."""
        return self._design[1]

    @property
    def rho(self) -> float:
        """Zero-concentrated privacy of one sum, rounded up."""
        return self._design[2]

    @property
    def event(self) -> ZeroConcentratedEvent:
        """What a client's ledger is charged."""
        return ZeroConcentratedEvent(self.rho)

    @cached_property
    def _design(self) -> tuple[int, Fraction, float]:
        return _design(
            self.epsilon, self.delta, self.num_units, self.honest, self.squared_sensitivity
        )

    @cached_property
    def modulus_bits(self) -> int:
        """m: sums are counted modulo 2^m."""
        small = self._wrap_probability(_MANY_CLIENTS, _SMALL_MODULUS) <= _WRAP_PROBABILITY
        return _SMALL_MODULUS if small else _LARGE_MODULUS

    @property
    def report_bytes(self) -> int:
        """Size of every client's vector, in bytes."""
        return self.num_units * self.modulus_bits // 8

    def wrap_probability(self, num_clients: int) -> float:
        """Bound the probability that any unit's sum over so many clients is read wrongly."""
        return self._wrap_probability(num_clients, self.modulus_bits)

    def _wrap_probability(self, num_clients: int, modulus_bits: int) -> float:
        room = 2 ** (modulus_bits - 1) - self.scale * num_clients / 2
        if room <= 0:
            return 1.0
        exponent = room**2 / (2.0 * num_clients * float(self.noise_variance))
        return min(1.0, 2.0 * self.num_units * math.exp(-exponent))

    def variance_per_vote(self, num_reports: int) -> float:
        """Variance of one unit's vote over so many fixed masks."""
        _check_whole("num_reports", num_reports, 1)
        noise = DiscreteGaussian(self.noise_variance).true_variance
        return noise / (self.scale**2 * num_reports)

    # The client's side.

    def blank(self) -> NDArray[np.bool_]:
        """A mask that says nothing about any data: [num_units]."""
        mask = np.zeros(self.num_units, dtype=np.bool_)
        mask[: self.keep or 0] = True
        return mask

    def randomize(self, mask: ArrayLike, rng: Randomness) -> Vector:
        """Scale one client's mask and add its noise: [num_units] bool -> [num_units] unsigned.

        The result is NOT private: it is what goes into the secure sum.
        """
        vector: Vector = self.randomize_many(np.asarray(mask)[None], [rng])[0]
        return vector

    def randomize_many(self, masks: ArrayLike, rngs: Sequence[Randomness]) -> Vector:
        """Prepare many clients' vectors, client i's from `rngs[i]` alone.

        Args:
            masks: [num_clients, num_units] bool, True = keep.
            rngs: one source of randomness a client.

        Returns:
            [num_clients, num_units] unsigned integers modulo 2^modulus_bits.

        Raises:
            ReportError: if a mask has another length or another number of ones than agreed.
        """
        bits = self._checked(masks)
        if len(rngs) != len(bits):
            raise ReportError(f"{len(bits)} masks need as many random sources, got {len(rngs)}")
        noise = DiscreteGaussian(self.noise_variance).sample(rngs, self.num_units)
        vectors: Vector = (self.scale * bits.astype(np.int64) + noise).astype(self.dtype)
        return vectors

    @property
    def dtype(self) -> np.dtype[Any]:
        """Unsigned integers of `modulus_bits` bits, little-endian."""
        return np.dtype(f"<u{self.modulus_bits // 8}")

    def _checked(self, masks: ArrayLike) -> NDArray[np.bool_]:
        array = np.asarray(masks)
        if array.ndim != 2 or array.shape[1] != self.num_units:
            raise ReportError(
                f"a mask must have {self.num_units} units, got an array of shape {array.shape[1:]}"
            )
        if array.dtype != np.bool_:
            raise ReportError(f"a mask must be boolean, got dtype {array.dtype}")
        ones = array.sum(axis=1)
        if self.keep is not None and (ones != self.keep).any():
            raise ReportError(
                f"a mask must keep exactly {self.keep} units, as the sum's noise says"
            )
        return array

    # The server's side.

    def estimate(self, total: ArrayLike, num_survivors: int) -> VoteEstimate:
        """Turn the revealed sum into votes: unbiased, with their exact variance.

        Args:
            total: [num_units] unsigned, the sum modulo 2^modulus_bits.
            num_survivors: how many clients are in it.

        Raises:
            ReportError: if there are fewer than `min_reports`, so many that a sum could wrap
                around, or a vector of another shape.
        """
        if num_survivors < self.min_reports:
            raise ReportError(
                f"the sum is over {num_survivors} clients, its noise was made for at least "
                f"min_reports = {self.min_reports}"
            )
        if self.wrap_probability(num_survivors) > _WRAP_PROBABILITY:
            raise ReportError(f"a sum over {num_survivors} clients may pass 2^{self.modulus_bits}")
        array = np.asarray(total)
        if array.shape != (self.num_units,) or array.dtype != self.dtype:
            raise ReportError(
                f"the sum must be [{self.num_units}] {self.dtype}, got {array.shape} {array.dtype}"
            )
        middle = self.scale * num_survivors // 2
        centred = (array - self.dtype.type(middle)).view(np.dtype(f"<i{self.dtype.itemsize}"))
        mean = (centred.astype(np.float64) + middle) / (self.scale * num_survivors)
        variance = np.full_like(mean, self.variance_per_vote(num_survivors))
        method = "unbiased over the clients' discrete Gaussian noise, which is all the variance"
        return VoteEstimate(mean, variance, num_survivors, method)


def sum_rho(
    squared_sensitivity: int, variance: Fraction, num_terms: int, num_coordinates: int
) -> float:
    """Bound the zCDP of a vector query plus `num_terms` discrete Gaussian vectors, rounded up.

    Kairouz, Liu & Steinke 2021, Proposition 14, the third of its bounds.

    Args:
        squared_sensitivity: squared l2 sensitivity of the integer query.
        variance: sigma^2 of each term.
        num_terms: n.
        num_coordinates: d.

    Raises:
        PrivacyError: if sigma < 1/2, where the proposition says nothing (and n > 1).
    """
    if num_terms > 1 and variance < Fraction(1, 4):
        raise PrivacyError(f"a variance of at least 1/4 is needed, got {float(variance):g}")
    main = math.sqrt(float_up(squared_sensitivity / (num_terms * Fraction(variance))))
    extra = math.sqrt(num_coordinates) * _tau(variance, num_terms)
    return above((main + extra) ** 2 / 2)


def _tau(variance: Fraction, num_terms: int) -> float:
    k = np.arange(1, num_terms, dtype=np.float64)
    if not k.size:
        return 0.0
    exponents = 2 * math.pi**2 * float(variance) * (k / (k + 1))
    # What underflows is replaced by more than it; small relative errors are covered too.
    total = float(np.exp(-np.minimum(exponents, 700.0)).sum())
    return 10 * total * (1 + _TAU_ERROR)


@lru_cache(maxsize=256)
def _design(
    epsilon: float, delta: float, num_units: int, honest: int, squared_sensitivity: int
) -> tuple[int, Fraction, float]:
    """Choose scale and noise: the smallest scale at which the guarantee holds."""
    allowed = filter_of(Budget.zcdp(epsilon, delta)).capacity
    for doublings in range(_MOST_DOUBLINGS):
        scale = 2**doublings
        sensitivity = squared_sensitivity * scale**2
        least = sensitivity / (2 * honest * allowed) * (1 + _SLACK)
        variance = Fraction(math.ceil(least * _VARIANCE_GRID), _VARIANCE_GRID)
        if variance > MAX_DEVIATION**2:
            raise PrivacyError(
                f"epsilon = {epsilon:g}, delta = {delta:g} with {honest} clients' noise needs a "
                f"standard deviation above {MAX_DEVIATION} times the scale {scale}, for which "
                "votes say nothing: raise epsilon, delta or min_reports"
            )
        if variance >= Fraction(1, 4):
            rho = sum_rho(sensitivity, variance, honest, num_units)
            if Fraction(rho) <= allowed:
                return scale, variance, rho
    raise PrivacyError(f"no scale suits epsilon = {epsilon:g} with {honest} clients' noise")


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise PrivacyError(f"{name} must be a whole number {allowed}, got {value!r}")
