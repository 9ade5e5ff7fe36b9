"""Laws of every mechanism: never above epsilon, unbiased, refusing what it must."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.mechanisms import mechanism as mechanism_module
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse, composed_delta
from fedprune.privacy.mechanisms.mechanism import Mechanism, counts_for
from fedprune.privacy.mechanisms.special_cases import (
    MECHANISMS,
    duchi,
    k_ary,
    make_mechanism,
    warner,
)
from fedprune.randomness import SecureRandomness, SimulationRandomness

FAST = settings(max_examples=40)
epsilons = st.floats(1e-3, 16.0)


@st.composite
def thresholds(draw: st.DrawFn) -> ThresholdResponse:
    units = draw(st.integers(1, 60))
    block = draw(st.integers(1, units))
    return ThresholdResponse(
        draw(epsilons), units, block_units=block, threshold=draw(st.integers(1, block))
    )


def series_exp(epsilon: float) -> Fraction:
    """e^epsilon from below, from its own series and without the decimal module."""
    x, term, total = Fraction(epsilon), Fraction(1), Fraction(1)
    for k in range(1, 120):
        term = term * x / k
        total += term
    return total


@FAST
@given(thresholds())
def test_no_pattern_is_more_than_e_to_the_epsilon_times_as_likely_as_another(
    mechanism: ThresholdResponse,
) -> None:
    m = mechanism.block_units
    shares = [mechanism.block_probability(a) for a in range(m + 1)]
    assert sum(math.comb(m, a) * share for a, share in enumerate(shares)) == 1
    assert min(shares) > 0
    assert max(shares) <= series_exp(mechanism.epsilon) * min(shares)
    if m > 0:
        ratio = float(max(shares) / min(shares))
        assert ratio == pytest.approx(math.exp(mechanism.epsilon), rel=1e-12)


@FAST
@given(thresholds())
def test_a_sent_bit_is_c_times_the_true_one_and_the_best_choice_is_no_worse(
    mechanism: ThresholdResponse,
) -> None:
    m = mechanism.block_units
    gain = sum(Fraction(2 * a - m, m) * p for a, p in enumerate(mechanism.agreement_probabilities))
    assert mechanism.agreement_gain == gain
    assert 0 < gain < 1
    best = ThresholdResponse(mechanism.epsilon, mechanism.num_units)
    assert best.variance_per_vote(1) <= mechanism.variance_per_vote(1) * (1 + 1e-9)


@FAST
@given(epsilons, st.integers(1, 300))
def test_flipping_every_bit_stays_within_pure_epsilon(epsilon: float, units: int) -> None:
    mechanism = BitwiseResponse(epsilon, units)
    flip = mechanism.flip_probability
    ratio = (1 - flip) / flip
    # One step of 2^-64 less would be too much, unless that is where the word ends.
    assert ratio <= series_exp(Fraction(epsilon) / units)
    less = flip - Fraction(1, 2**64)
    if less > 0:
        assert (1 - less) / less > series_exp(Fraction(epsilon) / units)
    assert mechanism.pure_epsilon == epsilon


@settings(max_examples=25)
@given(st.floats(0.05, 8.0), st.integers(1, 12), st.sampled_from([1e-9, 1e-5, 1e-2, 0.3]))
def test_flipping_every_bit_stays_within_epsilon_and_delta(
    epsilon: float, units: int, delta: float
) -> None:
    mechanism = BitwiseResponse(epsilon, units, delta=delta)
    exact = enumerated_delta(mechanism.flip_probability, units, series_exp(epsilon))
    assert exact <= Fraction(delta)
    pure = BitwiseResponse(epsilon, units)
    assert mechanism.flip_weight <= pure.flip_weight
    assert mechanism.pure_epsilon >= epsilon * (1 - 1e-9)
    # Within the search's step the bound is used up.
    step = pure.flip_weight >> 28
    assume(mechanism.flip_weight > 2 * step > 0)
    closer = Fraction(mechanism.flip_weight - step, 2**64)
    assert enumerated_delta(closer, units, series_exp(epsilon)) > Fraction(delta) * Fraction(
        999, 1000
    )


def enumerated_delta(flip: Fraction, units: int, ratio: Fraction) -> Fraction:
    """Sum over all outputs of two opposite masks of [P - e^eps Q]_+, without the closed form."""
    total = Fraction(0)
    for output in range(2**units):
        ones = output.bit_count()
        p = flip**ones * (1 - flip) ** (units - ones)
        q = flip ** (units - ones) * (1 - flip) ** ones
        total += max(Fraction(0), p - ratio * q)
    return total


def test_the_composition_bound_is_the_closed_form_of_the_literature() -> None:
    # k = 50, eps0 = 0.2: delta(6.30778) = 1e-5.
    weight = round(2**64 / (1 + math.exp(0.2)))
    assert float(composed_delta(weight, 6.30778, 50)) == pytest.approx(1e-5, rel=1e-4)
    published = {1: 55.5, 2: 15.9, 4: 4.66, 8: 1.43, 16: 0.47}
    for epsilon, kappa in published.items():
        found = BitwiseResponse(float(epsilon), 784, delta=1e-5).kappa
        assert found == pytest.approx(kappa, rel=6e-3)
    assert BitwiseResponse(1.0, 784).kappa == pytest.approx(3136, rel=1e-3)


def test_special_cases_are_the_published_mechanisms() -> None:
    e = math.exp(2.0)
    one = warner(2.0, 9)
    assert (one.block_units, one.threshold, one.num_blocks) == (1, 1, 9)
    assert float(one.block_probability(1)) == pytest.approx(e / (1 + e), rel=1e-12)
    pattern = k_ary(2.0, 9, block_units=3)
    assert float(pattern.block_probability(3)) == pytest.approx(e / (e + 7), rel=1e-12)
    assert float(pattern.block_probability(1)) == pytest.approx(1 / (e + 7), rel=1e-12)
    assert k_ary(4.0, 784).block_units == 4
    odd = duchi(2.0, 9)
    better_half = sum(math.comb(9, a) for a in range(5, 10))
    assert (odd.block_units, odd.threshold) == (9, 5)
    assert float(odd.block_probability(5)) == pytest.approx(e / (e + 1) / better_half, rel=1e-12)


def test_for_even_sizes_ties_in_the_worse_half_gain_more_and_keep_epsilon() -> None:
    mechanism = duchi(2.0, 10)
    assert (mechanism.block_units, mechanism.threshold) == (10, 6)
    ties_above = ThresholdResponse(2.0, 10, block_units=10, threshold=5)
    assert mechanism.agreement_gain > ties_above.agreement_gain
    ratio = mechanism.block_probability(10) / mechanism.block_probability(5)
    assert float(ratio) == pytest.approx(math.exp(2.0), rel=1e-12)


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_has_the_same_interface_and_unbiased_votes(name: str) -> None:
    mechanism = make_mechanism(name, 6.0, 12, 1e-3 if name == "bitwise" else 0.0)
    assert mechanism.name == (name if name == "bitwise" else "threshold")
    assert mechanism.report_bytes == mechanism.format.size
    masks = np.random.default_rng(0).random((8000, 12)) < np.linspace(0.1, 0.9, 12)
    rngs = [SimulationRandomness(3)] * 8000
    estimate = mechanism.estimate(mechanism.randomize_rows(masks, rngs))
    errors = (estimate.mean - masks.mean(axis=0)) / np.sqrt(estimate.variance)
    assert np.abs(errors).max() < 4.5
    assert estimate.variance == pytest.approx(mechanism.variance_per_vote(8000), rel=1e-9)
    assert counts_for(mechanism, 8000) == "observed"
    assert counts_for(mechanism, 8000, assigned=True) == "assigned"
    assert repr(mechanism) == repr(eval(repr(mechanism)))


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_can_ask_about_one_unit_alone(name: str) -> None:
    mechanism = make_mechanism(name, 1.0, 1)
    assert (mechanism.report_bytes, mechanism.num_blocks) == (1, 1)
    e = math.exp(1.0)
    assert float(mechanism.agreement_gain) == pytest.approx((e - 1) / (e + 1), rel=1e-9)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, -math.inf, math.nan, True, "4", None])
def test_no_mechanism_takes_an_epsilon_that_promises_nothing(name: str, epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon must be in"):
        make_mechanism(name, epsilon, 10)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("units", [0, -3, 1.5, math.nan, math.inf, True, "8"])
def test_no_mechanism_takes_a_wrong_number_of_units(name: str, units: int) -> None:
    with pytest.raises(PrivacyError, match="num_units must be a whole number"):
        make_mechanism(name, 1.0, units)


@pytest.mark.parametrize("delta", [-1e-9, 1.0, math.nan, math.inf, True])
def test_a_delta_out_of_range_and_an_unknown_name_are_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta must be in"):
        make_mechanism("bitwise", 1.0, 10, delta)
    with pytest.raises(PrivacyError, match="mechanism must be one of threshold, warner"):
        make_mechanism("laplace", 1.0, 10)


@pytest.mark.parametrize("name", MECHANISMS)
def test_masks_of_another_length_or_type_are_refused(name: str) -> None:
    mechanism = make_mechanism(name, 2.0, 10)
    rng = SimulationRandomness(1)
    for length in (0, 9, 11):
        with pytest.raises(ReportError, match="must have 10 units"):
            mechanism.randomize(np.ones(length, bool), rng)
    with pytest.raises(ReportError, match="must have 10 units"):
        mechanism.randomize_many(np.ones(10, bool), [rng])
    with pytest.raises(ReportError, match="boolean"):
        mechanism.randomize(np.ones(10, int), rng)
    with pytest.raises(ReportError, match="as many random sources"):
        mechanism.randomize_many(np.ones((2, 10), bool), [rng])
    assert mechanism.randomize_many(np.ones((0, 10), bool), []) == []


@settings(max_examples=150)
@given(
    st.sampled_from(
        [
            ThresholdResponse(4.0, 10, block_units=4, threshold=4),
            ThresholdResponse(8.0, 16, block_units=16, threshold=9),
            ThresholdResponse(1.0, 300, block_units=1, threshold=1),
            BitwiseResponse(4.0, 13),
        ]
    ),
    st.binary(max_size=5),
)
def test_any_bytes_are_a_possible_report_or_refused_by_name(
    mechanism: Mechanism, payload: bytes
) -> None:
    try:
        blocks, bits = mechanism.format.decode([Report(payload)])
    except ReportError:
        with pytest.raises(ReportError, match="report 0"):
            mechanism.add(mechanism.new_sums(), [Report(payload)])
        return
    assert len(payload) == mechanism.report_bytes
    assert 0 <= blocks[0] < mechanism.num_blocks
    assert mechanism.format.encode(blocks, bits) == [Report(payload)]


def test_rows_of_another_shape_are_refused_and_errors_count_from_the_first_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mechanism = ThresholdResponse(4.0, 10, block_units=4, threshold=4)
    with pytest.raises(ReportError, match="rows of reports"):
        mechanism.format.decode(np.zeros((3, 7), dtype=np.uint8))
    monkeypatch.setattr(mechanism_module, "_CHUNK_BITS", 8)  # two reports a part
    good = Report(bytes(2))
    with pytest.raises(ReportError, match="report 5 must have 2 bytes, got 1"):
        mechanism.add(mechanism.new_sums(), [good] * 5 + [Report(b"x")])
    with pytest.raises(ReportError, match=r"report 4 is about block 0, .* assigned block 2"):
        mechanism.add(mechanism.new_sums(), [good] * 5, [0, 0, 0, 0, 2])
    assert mechanism.add(mechanism.new_sums(), [good] * 5, [0] * 5).num_reports == 5


def test_rows_and_reports_and_any_iterable_give_the_same_sums() -> None:
    mechanism = ThresholdResponse(4.0, 50)
    masks = np.random.default_rng(1).random((500, 50)) < 0.3
    rngs = [SimulationRandomness(0, c) for c in range(500)]
    rows = mechanism.randomize_rows(masks, rngs)
    reports = mechanism.format.split(rows)
    assert [bytes(report) for report in reports] == [row.tobytes() for row in rows]
    whole = mechanism.add(mechanism.new_sums(), rows)
    streamed = mechanism.add(mechanism.new_sums(), (report for report in reports))
    assert np.array_equal(whole.signed, streamed.signed)
    assert np.array_equal(whole.received, streamed.received)


def test_sums_count_bits_as_a_plain_loop_does() -> None:
    rng = np.random.default_rng(2)
    for units, block in ((10, 4), (9, 9), (7, 1)):
        mechanism = ThresholdResponse(2.0, units, block_units=block, threshold=block)
        blocks = rng.integers(0, mechanism.num_blocks, 200)
        bits = rng.random((200, block)) < 0.4
        sums = mechanism.add(mechanism.new_sums(), mechanism.format.encode_rows(blocks, bits))
        expected = np.zeros((mechanism.num_blocks, block), dtype=int)
        for b, row in zip(blocks, bits, strict=True):
            expected[b] += 2 * row.astype(int) - 1
        assert np.array_equal(sums.signed, expected)
        assert sums.num_reports == 200


def test_a_large_cohort_is_drawn_in_parts_without_a_seam() -> None:
    mechanism = ThresholdResponse(8.0, 700)
    masks = np.random.default_rng(1).random((3000, 700)) < 0.5
    rngs = [SimulationRandomness(0, c) for c in range(3000)]
    together = mechanism.randomize_many(masks, rngs)
    for client in (0, 1, 1480, 2999):
        alone = mechanism.randomize(masks[client], SimulationRandomness(0, client))
        assert alone == together[client]
    secure = mechanism.randomize_many(masks[:2], [SecureRandomness(), SecureRandomness()])
    assert secure[0] != secure[1]
