"""Noised tables of counts: the guarantee, its relation, unbiased sums, bad input."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, dlaplace

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import NoisedCounts
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT
from fedprune.randomness import SecureRandomness, SimulationRandomness


def streams(count: int) -> list[SimulationRandomness]:
    return [SimulationRandomness(1, "client", i) for i in range(count)]


@given(
    epsilon=st.floats(0.01, 64),
    capacity=st.integers(0, 40),
    cells=st.integers(1, 6),
    data=st.data(),
)
def test_neighbouring_tables_are_within_epsilon_of_each_other_everywhere(
    epsilon: float, capacity: int, cells: int, data: st.DataObject
) -> None:
    mechanism = NoisedCounts(epsilon, cells, capacity)
    if capacity:  # any change of a client's data: up to `capacity` records before and after
        ends = st.lists(st.integers(0, cells - 1), max_size=capacity)
        one, other = (np.bincount(data.draw(ends), minlength=cells) for _ in range(2))
        distance = int(np.abs(one - other).sum())
    else:
        distance = 1
    # The density ratio of discrete Laplace noise is exp((|k| - |k - d|) / t) <= exp(d / t).
    assert Fraction(distance) / mechanism.scale <= Fraction(epsilon)
    assert mechanism.relation == (REPLACEMENT if capacity else ADD_REMOVE_RECORD)
    assert mechanism.event.epsilon == epsilon


def test_the_noise_is_discrete_laplace_and_sums_are_unbiased() -> None:
    mechanism, clients = NoisedCounts(0.8, 5), 20_000
    counts = np.tile(np.array([0, 3, 7, 100, 2]), (clients, 1))
    found = mechanism.decode_rows(mechanism.randomize_rows(counts, streams(clients)))
    noise = (found - counts).ravel()
    values = np.arange(-6, 7)
    seen = np.array([(noise == v).sum() for v in values])
    expected = dlaplace.pmf(values, 0.8) * len(noise)
    seen = np.append(seen, len(noise) - seen.sum())
    expected = np.append(expected, len(noise) - expected.sum())
    assert chisquare(seen, expected).pvalue > 1e-4
    assert mechanism.variance == pytest.approx(dlaplace.var(0.8))
    off = np.abs(found.mean(axis=0) - counts[0])
    assert (off < 5 * math.sqrt(mechanism.variance / clients)).all()


def test_a_clients_noise_is_its_own_whoever_is_asked_with_it() -> None:
    mechanism, counts = NoisedCounts(1.0, 4, capacity=10), np.array([[1, 2, 3, 4], [0, 0, 0, 0]])
    together = mechanism.randomize_rows(counts, streams(2))
    alone = mechanism.randomize_rows(counts[1:], streams(2)[1:])
    assert (together[1:] == alone).all()
    secure = [SecureRandomness(), SecureRandomness()]
    assert (mechanism.randomize_rows(counts, secure) != together).any()
    assert together.shape == (2, mechanism.report_bytes)


@pytest.mark.parametrize(
    ("epsilon", "cells", "capacity", "says"),
    [
        (0.0, 4, 0, "epsilon must be above 0"),
        (math.inf, 4, 0, "epsilon must be above 0"),
        (1e-9, 4, 0, r"epsilon must be at least .* one record changes by 1"),
        (0.001, 4, 1000, r"epsilon must be at least .* one client changes by 2000"),
        (1.0, 0, 0, "num_cells must be a whole number"),
        (1.0, 4, -1, "capacity must be a whole number"),
    ],
)
def test_parameters_that_promise_nothing_are_refused(
    epsilon: float, cells: int, capacity: int, says: str
) -> None:
    with pytest.raises(PrivacyError, match=says):
        NoisedCounts(epsilon, cells, capacity)


def test_tables_that_are_none_are_refused() -> None:
    mechanism = NoisedCounts(1.0, 2, capacity=3)
    for counts in (np.zeros((1, 3), int), np.array([[-1, 0]]), np.array([[2, 2]])):
        with pytest.raises(ReportError):
            mechanism.randomize_rows(counts, streams(1))
    with pytest.raises(ReportError, match="must be"):
        mechanism.decode_rows(np.zeros((1, 15), np.uint8))
    for value in (2**62, -(2**63)):
        forged = np.array([[value, 0]]).astype("<i8").view(np.uint8)
        with pytest.raises(ReportError, match="no client can have drawn"):
            mechanism.decode_rows(forged)
