"""Integer noise: its distribution is the rounded Gaussian's, and doubtful draws are exact."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedprune.privacy.mechanisms import gaussian_noise
from fedprune.privacy.mechanisms.gaussian_noise import MEAN, SIGMA, VARIANCE, gaussian_units
from fedprune.randomness import SecureRandomness, SimulationRandomness


class Narrow:
    """A seeded source of words of few bits."""

    is_private = False

    def __init__(self, word_bits: int, seed: int) -> None:
        self.word_bits, self._generator = word_bits, np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._generator.integers(0, 2**self.word_bits, count, dtype=np.uint64)


@pytest.mark.parametrize("source", [SimulationRandomness(3), SecureRandomness(), Narrow(7, 1)])
def test_the_noise_is_distributed_as_a_gaussian(source: object) -> None:
    count = 200_000
    z = (gaussian_units(count, source) - MEAN) / SIGMA  # type: ignore[arg-type]
    assert stats.kstest(z, "norm").pvalue > 1e-6
    assert abs(z.mean()) < 5 / np.sqrt(count)
    assert abs((z**2).mean() - VARIANCE / SIGMA**2) < 5 * np.sqrt(2 / count)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / count)


def test_every_low_bit_of_the_noise_is_a_fair_coin() -> None:
    units = gaussian_units(100_000, SimulationRandomness(8))
    shares = [((units >> bit) & 1).mean() for bit in range(24)]
    assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / np.sqrt(100_000)


def test_rejection_leaves_the_share_that_makes_a_gaussian_of_steps() -> None:
    # The area under exp(-t^2/8192) over that under its steps from above, one wide.
    area, steps = math.sqrt(math.pi / 2) * 64, math.sqrt(math.pi / 2) * 64 + 0.5
    source, proposed = SimulationRandomness(4), 200_000
    kept = len(gaussian_noise._accepted(proposed, source)) / proposed
    assert kept == pytest.approx(area / steps, abs=5 * math.sqrt(0.0062 / proposed))


def test_noise_on_a_sum_is_the_noised_sum_rounded() -> None:
    # floor(k + SIGMA Z) = k + floor(SIGMA Z): shown here with exact rationals
    generator = np.random.default_rng(1)
    for _ in range(200):
        k, noise = int(generator.integers(-(2**40), 2**40)), Fraction(generator.normal() * SIGMA)
        assert (k + noise).__floor__() == k + noise.__floor__()


def test_a_decision_left_open_by_double_precision_is_taken_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = gaussian_units(3000, SimulationRandomness(5))
    monkeypatch.setattr(gaussian_noise, "_DOUBT", 2.0)  # doubt every decision
    assert np.array_equal(gaussian_units(3000, SimulationRandomness(5)), fast)


def test_double_precision_never_errs_by_as_much_as_is_doubted() -> None:
    generator = np.random.default_rng(2)
    bins = generator.integers(0, gaussian_noise._BINS, 500)
    places = generator.integers(0, 2**63, 500, dtype=np.uint64)
    y = places * 2.0**-63
    double = np.exp((2 * bins + y) * y / -gaussian_noise._DENOMINATOR)
    with localcontext() as context:
        context.prec = 60
        exact = [
            gaussian_noise._probability(int(b), Decimal(int(p)) / 2**63)
            for b, p in zip(bins, places, strict=True)
        ]
        errors = [abs(Decimal(float(d)) - e) for d, e in zip(double, exact, strict=True)]
    assert max(errors) < Decimal(2) ** -50 < Decimal(gaussian_noise._DOUBT) / 1000


def test_a_coin_equal_to_the_probability_is_settled_by_further_bits() -> None:
    # The first 64 bits are the probability's own; those that follow put the coin below or above.
    with localcontext() as context:
        context.prec = 60
        probability = gaussian_noise._probability(40, Decimal(1) / 2)
    coin = int(probability * 2**64)

    class Following:
        word_bits, is_private = 64, False

        def __init__(self, value: int) -> None:
            self._value = value

        def words(self, count: int) -> NDArray[np.uint64]:
            return np.array([0] * (count - 1) + [self._value], dtype=np.uint64)

    assert gaussian_noise._decide(40, 2**62, coin, Following(0))
    assert not gaussian_noise._decide(40, 2**62, coin, Following(2**64 - 1))


def test_the_bins_together_leave_out_less_than_is_said() -> None:
    with localcontext() as context:
        context.prec = 80
        beyond = Decimal(-(gaussian_noise._BINS**2)) / gaussian_noise._DENOMINATOR
        assert beyond.exp() < Decimal(2) ** -141


def test_a_source_of_zeros_gives_no_noise_and_a_seed_the_same_noise() -> None:
    class Zeros:
        word_bits, is_private = 64, False

        def words(self, count: int) -> NDArray[np.uint64]:
            return np.zeros(count, dtype=np.uint64)

    assert not gaussian_units(5, Zeros()).any()
    first, second = (gaussian_units(70_000, SimulationRandomness(1, "a")) for _ in range(2))
    assert np.array_equal(first, second)
    assert gaussian_units(0, SecureRandomness()).shape == (0,)
