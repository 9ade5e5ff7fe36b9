"""Secret sharing against its definition."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import isprime

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.secure.shamir import PRIME, SHARE_BYTES, Sharing, combine
from fedprune.randomness import SimulationRandomness

SECRET = bytes(range(32))


def stream(seed: int):  # type: ignore[no-untyped-def]
    """A stream of uniform bytes."""
    source = SimulationRandomness(seed, "coefficients")
    return lambda count: source.words(-(-count // 8)).tobytes()[:count]


def shares(secret: bytes, threshold: int, count: int, seed: int = 1) -> dict[int, bytes]:
    """All shares of one sharing."""
    sharing = Sharing(secret, threshold, stream(seed))
    return {point: sharing.at(point) for point in range(1, count + 1)}


def interpolate(points: dict[int, int], at: int) -> int:
    """The value of the polynomial through points: Lagrange's formula as it is written."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * (at - other) * pow(x - other, -1, PRIME) % PRIME
        total += y
    return total % PRIME


def numbers(found: dict[int, bytes]) -> dict[int, int]:
    """Shares as field elements."""
    return {point: int.from_bytes(raw, "big") for point, raw in found.items()}


def test_the_field_has_a_prime_number_of_elements_and_holds_every_secret() -> None:
    assert isprime(PRIME)
    assert PRIME > 2**256


@settings(max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(
    secret: bytes, threshold: int, spare: int, data: st.DataObject
) -> None:
    found = shares(secret, threshold, threshold + spare)
    chosen = data.draw(st.permutations(sorted(found)))[:threshold]
    assert combine({point: found[point] for point in chosen}, threshold) == secret


def test_shares_lie_on_one_polynomial_of_degree_threshold_minus_one() -> None:
    found = numbers(shares(SECRET, 3, 7))
    for three in combinations(found, 3):
        through = {point: found[point] for point in three}
        assert interpolate(through, 0) == int.from_bytes(SECRET, "big")
        assert all(interpolate(through, point) == found[point] for point in found)
    for two in combinations(found, 2):
        assert interpolate({p: found[p] for p in two}, 0) != int.from_bytes(SECRET, "big")


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    found = numbers(shares(SECRET, 3, 2))
    for other in (bytes(32), b"\xff" * 32, SECRET[::-1]):
        third = interpolate({0: int.from_bytes(other, "big"), **found}, 3)
        forged = {p: v.to_bytes(SHARE_BYTES, "big") for p, v in {**found, 3: third}.items()}
        assert combine(forged, 3) == other


def test_one_stream_gives_one_sharing_and_another_gives_another() -> None:
    assert shares(SECRET, 3, 4) == shares(SECRET, 3, 4)
    assert shares(SECRET, 3, 4) != shares(SECRET, 3, 4, seed=2)


def test_the_largest_secret_survives() -> None:
    assert combine(shares(b"\xff" * 32, 2, 2), 2) == b"\xff" * 32


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(PrivacyError, match="32 bytes, got 31"):
        Sharing(bytes(31), 2, stream(1))
    with pytest.raises(PrivacyError, match="threshold must be at least 1"):
        Sharing(SECRET, 0, stream(1))
    with pytest.raises(PrivacyError, match="ended early"):
        Sharing(SECRET, 3, lambda count: bytes(count - 1))
    for point in (0, -1, PRIME):
        with pytest.raises(PrivacyError, match="from 1 on"):
            Sharing(SECRET, 2, stream(1)).at(point)


def test_shares_that_cannot_be_are_refused() -> None:
    found = shares(SECRET, 3, 3)
    with pytest.raises(ReportError, match="needs 3 shares, got 2"):
        combine({1: found[1], 2: found[2]}, 3)
    with pytest.raises(ReportError, match="33 bytes"):
        combine({**found, 2: found[2][:-1]}, 3)
    with pytest.raises(ReportError, match="element of the field"):
        combine({**found, 2: b"\xff" * SHARE_BYTES}, 3)


def test_a_wrong_share_never_gives_the_secret() -> None:
    found = shares(SECRET, 3, 3)
    wrong = {**found, 2: (1 + int.from_bytes(found[2], "big")).to_bytes(SHARE_BYTES, "big")}
    with suppress(ReportError):
        assert combine(wrong, 3) != SECRET
