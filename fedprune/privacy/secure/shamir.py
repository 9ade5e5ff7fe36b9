"""Shamir's secret sharing of 32-byte secrets over a prime field, with whole numbers.

A. Shamir 1979, "How to share a secret": the secret is the value at 0 of a polynomial of degree
threshold - 1 whose other coefficients are uniform; a share is its value at one point. Any
`threshold` shares give the secret, any fewer are independent of it. The field has 2^256 + 297
elements, so that every 32-byte secret is one of them.

The arithmetic is Python's and takes a time that depends on the numbers: whoever can measure a
client's computation to the microsecond is not defended against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from fedprune.errors import PrivacyError, ReportError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_COEFFICIENT_BYTES = 48  # reduced modulo the prime: within 2^-127 of uniform

Stream = Callable[[int], bytes]


class Sharing:
    """One way of sharing one secret: gives the share at any point."""

    def __init__(self, secret: bytes, threshold: int, stream: Stream) -> None:
        """Draw the polynomial.

        Args:
            secret: 32 bytes.
            threshold: shares that it takes to get the secret back.
            stream: gives the asked number of secret, uniform bytes; called once.

        Raises:
            PrivacyError: if the secret has another length, the threshold is below 1, or the
                stream gives too little.
        """
        if len(secret) != SECRET_BYTES:
            raise PrivacyError(f"a secret must have {SECRET_BYTES} bytes, got {len(secret)}")
        if threshold < 1:
            raise PrivacyError(f"threshold must be at least 1, got {threshold}")
        drawn = stream(_COEFFICIENT_BYTES * (threshold - 1))
        if len(drawn) != _COEFFICIENT_BYTES * (threshold - 1):
            raise PrivacyError("the stream of coefficients ended early")
        self._constant = int.from_bytes(secret, "big")
        self._coefficients = [
            int.from_bytes(drawn[start : start + _COEFFICIENT_BYTES], "big") % PRIME
            for start in range(0, len(drawn), _COEFFICIENT_BYTES)
        ][::-1]

    def at(self, point: int) -> bytes:
        """Give the share at a point from 1 on: SHARE_BYTES.

        Raises:
            PrivacyError: at 0, where the secret itself lies, and outside the field.
        """
        if not 0 < point < PRIME:
            raise PrivacyError(f"shares lie at points from 1 on, got {point}")
        value = 0
        for coefficient in self._coefficients:  # points are small: one reduction is enough
            value = (value + coefficient) * point
        return ((value + self._constant) % PRIME).to_bytes(SHARE_BYTES, "big")


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Get a secret back from at least `threshold` shares, keyed by their points.

    The first `threshold` of them are used. Shares carry no proof: wrong ones give another secret
    or none, so what comes out must be compared with something that was known before.

    Raises:
        ReportError: if there are too few shares, or they are not those of any 32-byte secret.
    """
    if len(shares) < threshold:
        raise ReportError(f"a secret needs {threshold} shares, got {len(shares)}")
    points = tuple(shares)[:threshold]
    total = 0
    for point, weight in zip(points, _weights(points), strict=True):
        if len(shares[point]) != SHARE_BYTES:
            raise ReportError(f"a share must have {SHARE_BYTES} bytes, got {len(shares[point])}")
        value = int.from_bytes(shares[point], "big")
        if value >= PRIME:
            raise ReportError("a share is not an element of the field")
        total += weight * value
    secret = total % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ReportError("these shares are not those of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0: the product over the other points x_j of x_j / (x_j - x_i)."""
    numerator = 1
    for point in points:
        numerator = numerator * point % PRIME
    denominators = []
    for point in points:
        product = point
        for other in points:
            if other != point:
                product *= other - point
        denominators.append(product % PRIME)
    return tuple(numerator * inverse % PRIME for inverse in _inverses(denominators))


def _inverses(values: Sequence[int]) -> list[int]:
    """Invert many elements with one modular inversion (Montgomery's trick)."""
    prefixes = [1]
    for value in values:
        prefixes.append(prefixes[-1] * value % PRIME)
    inverse = pow(prefixes[-1], -1, PRIME)
    found = []
    for value, prefix in zip(reversed(values), reversed(prefixes[:-1]), strict=True):
        found.append(inverse * prefix % PRIME)
        inverse = inverse * value % PRIME
    return found[::-1]
