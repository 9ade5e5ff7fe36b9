"""The exact samplers of discrete Gaussians and Laplaces against their definitions."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms import discrete_gaussian
from fedprune.privacy.mechanisms.discrete_gaussian import DiscreteGaussian, DiscreteLaplace
from fedprune.randomness import SecureRandomness, SimulationRandomness

WORD_BITS = 3
Law = DiscreteGaussian | DiscreteLaplace


def weight(law: Law, k: int) -> Decimal:
    """The definition, with as many digits as the context has."""
    exponent = (
        Fraction(k * k) / (2 * law.variance)
        if isinstance(law, DiscreteGaussian)
        else Fraction(abs(k)) / law.scale
    )
    return (-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()


def probabilities(law: Law, reach: int) -> dict[int, Decimal]:
    """P[k] for |k| <= reach, normalised over a range in which all but 10^-60 lies."""
    with localcontext() as context:
        context.prec = 80
        weights = {0: Decimal(1)}
        k, total = 0, Decimal(1)
        while weights[k] > Decimal("1e-65"):
            k += 1
            weights[k] = weight(law, k)
            total += 2 * weights[k]
        return {j: weights.get(abs(j), Decimal(0)) / total for j in range(-reach, reach + 1)}


class _OutOfWordsError(Exception):
    pass


def enumerate_draws(law: Law, depth: int) -> tuple[dict[int, Fraction], Fraction]:
    """Run the sampler on every sequence of words; give the decided mass and the undecided rest."""
    decided: dict[int, Fraction] = defaultdict(Fraction)
    open_prefixes: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        following = []
        for prefix in open_prefixes:
            for word in range(2**WORD_BITS):
                words = (*prefix, word)
                rest = iter(words[1:])

                def more(_: int, rest: object = rest) -> int:
                    try:
                        return next(rest)  # type: ignore[call-overload]
                    except StopIteration:
                        raise _OutOfWordsError from None

                try:
                    value = int(law.draw(np.array(words[:1], dtype=np.uint64), WORD_BITS, more)[0])
                except _OutOfWordsError:
                    following.append(words)
                    continue
                assert next(rest, None) is None, "a decided draw must not want more words"
                decided[value] += Fraction(1, 2 ** (WORD_BITS * len(words)))
        open_prefixes = following
    return decided, Fraction(len(open_prefixes), 2 ** (WORD_BITS * depth))


LAWS: list[Law] = [
    DiscreteGaussian(Fraction(1, 5)),
    DiscreteGaussian(Fraction(1)),
    DiscreteGaussian(Fraction(7, 2)),
    DiscreteLaplace(Fraction(1, 3)),
    DiscreteLaplace(Fraction(5, 4)),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_every_integer_has_its_probability_over_all_words(law: Law) -> None:
    decided, undecided = enumerate_draws(law, depth=7)
    assert undecided < Fraction(1, 10**4)
    assert sum(decided.values()) + undecided == 1
    exact = probabilities(law, 200)
    for k in range(-30, 31):
        low = float(decided.get(k, Fraction(0)))
        assert low - 1e-15 <= float(exact[k]) <= low + float(undecided) + 1e-15


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_draws_are_exactly_symmetric(law: Law) -> None:
    decided, _ = enumerate_draws(law, depth=5)
    assert all(decided[k] == decided[-k] for k in list(decided))


@pytest.mark.parametrize(
    "law",
    [
        DiscreteGaussian(Fraction(9, 10)),
        DiscreteGaussian(Fraction(1240)),
        DiscreteLaplace(Fraction(40)),
    ],
    ids=repr,
)
def test_first_words_decide_in_proportion_to_the_probabilities_deep_into_the_tails(
    law: Law,
) -> None:
    linear = Fraction(0) if isinstance(law, DiscreteGaussian) else 1 / law.scale
    quadratic = 1 / (2 * law.variance) if isinstance(law, DiscreteGaussian) else Fraction(0)
    table = discrete_gaussian._first_table(linear, quadratic, 64)
    reach = -table.first
    exact = probabilities(law, reach + 2)
    assert exact[reach + 2] * 2**64 < 2, "the table must reach to the last word"
    for place in range(1, len(table.lower)):
        words = int(table.lower[place]) - int(table.upper[place - 1])
        assert abs(words - exact[table.first + place] * 2**64) < 4


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(8), Fraction(300)], ids=str)
def test_draws_pass_a_chi_square_test(variance: Fraction) -> None:
    law = DiscreteGaussian(variance)
    draws = law.sample([SimulationRandomness(5)], 200_000)[0]
    reach = int(3 * float(variance) ** 0.5) + 1
    exact = probabilities(law, reach)
    inside = np.array([float(exact[k]) for k in range(-reach, reach + 1)])
    counts = np.bincount(np.clip(draws, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    observed = np.append(counts[1:-1], counts[0] + counts[-1])
    expected = np.append(inside, 1 - inside.sum()) * len(draws)
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("variance", [Fraction(1, 8), Fraction(1), Fraction(24), Fraction(26)])
def test_the_true_variance_is_that_of_the_definition(variance: Fraction) -> None:
    law = DiscreteGaussian(variance)
    exact = sum(float(p) * k * k for k, p in probabilities(law, 100).items())
    assert law.true_variance == pytest.approx(exact, rel=1e-12)
    assert law.true_variance <= float(variance)


def test_each_source_gives_the_same_draws_alone_and_in_a_cohort() -> None:
    law = DiscreteGaussian(Fraction(5))
    together = law.sample([SimulationRandomness(1, i) for i in range(4)], 50)
    alone = [law.sample([SimulationRandomness(1, i)], 50)[0] for i in range(4)]
    assert np.array_equal(together, np.stack(alone))
    assert law.sample([SecureRandomness()] * 2, 3).shape == (2, 3)
    assert law.sample([], 3).shape == (0, 3)


@settings(max_examples=30)
@given(st.fractions(min_value=Fraction(1, 50), max_value=400, max_denominator=1000))
def test_enclosures_hold_the_cumulative_probabilities(variance: Fraction) -> None:
    table = discrete_gaussian._enclosures(Fraction(0), 1 / (2 * variance), 40)
    assert table.lower == sorted(table.lower)
    assert table.upper == sorted(table.upper)
    assert len(table.lower) == -2 * table.first
    exact = probabilities(DiscreteGaussian(variance), 400)
    with localcontext() as context:
        context.prec = 60
        total = sum((p for k, p in exact.items() if k < table.first), Decimal(0))
        for place, (low, high) in enumerate(zip(table.lower, table.upper, strict=True)):
            total += exact[table.first + place]
            assert low <= total * 2**40 <= high
            assert high - low <= 2


@pytest.mark.parametrize("bad", [0, -1, Fraction(-1, 2), 1.5, float("nan"), True, 2**40])
def test_a_variance_out_of_range_is_refused(bad: object) -> None:
    with pytest.raises(PrivacyError, match="variance must be"):
        DiscreteGaussian(bad)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="scale must be"):
        DiscreteLaplace(bad)  # type: ignore[arg-type]


def test_the_decimal_context_is_left_alone() -> None:
    before = getcontext().prec
    DiscreteGaussian(Fraction(2, 7)).sample([SimulationRandomness(1)], 1)
    assert getcontext().prec == before
