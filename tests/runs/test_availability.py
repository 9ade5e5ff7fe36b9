"""Fates of clients: pure, independent of company, with the configured frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, kstest, lognorm

from fedprune import config as configuration
from fedprune import runs
from fedprune.config import Config
from fedprune.data.availability import AvailabilityTrace, parse_availability
from fedprune.errors import ConfigError
from fedprune.runs.availability import least_available, most_available, on_time_share

MANY = 100_000
ALL = (
    "availability.participation=0.7",
    "availability.dropout=0.2",
    "availability.delay_median_seconds=10",
    "availability.delay_sigma=0.5",
    "availability.speed_sigma=0.75",
    "availability.deadline_seconds=20",
)


def config_of(*settings: str) -> Config:
    named = [f"availability.{one}" if "." not in one.split("=")[0] else one for one in settings]
    return configuration.load(None, ["federation.quorum=0.1", *named])


def trace_of(*lines: str) -> AvailabilityTrace:
    return parse_availability("client,start,end\n" + "\n".join(lines), "t.csv", 10)


def likely(count: int, of: int, probability: float) -> bool:
    """Whether a binomial count is one that a billion tries would not exceed."""
    return binom.ppf(1e-9, of, probability) <= count <= binom.isf(1e-9, of, probability)


@given(
    seed=st.integers(0, 2**61),
    clients=st.lists(st.integers(0, 400), min_size=1, max_size=60, unique=True),
    name=st.sampled_from(["train-1", "report-1", "report-1/keys", "report-2-3"]),
)
def test_a_client_s_fate_does_not_depend_on_who_else_is_looked_at_or_in_which_order(
    seed: int, clients: list[int], name: str
) -> None:
    config = configuration.load(None, [f"seed={seed}", "federation.quorum=0.1", *ALL])
    summed = name.startswith("report-1")
    everybody = runs.fates(config, name, range(401), 0.0, summed=summed)
    found = runs.fates(config, name, clients, 0.0, summed=summed)
    for field in ("available", "dropped", "late", "seconds"):
        np.testing.assert_array_equal(getattr(found, field), getattr(everybody, field)[clients])


def test_another_seed_or_round_draws_other_clients() -> None:
    first = config_of(*ALL)
    second = first.model_copy(update={"seed": 2})
    one = runs.fates(first, "train-1", range(200), 0.0)
    for config, name in ((first, "train-2"), (second, "train-1")):
        other = runs.fates(config, name, range(200), 0.0)
        assert (one.available != other.available).any()
        assert (one.heard != other.heard).any()


@pytest.mark.parametrize(("participation", "dropout"), [(0.7, 0.2), (0.01, 0.5), (1.0, 0.001)])
def test_frequencies_are_the_configured_probabilities(participation: float, dropout: float) -> None:
    config = config_of(f"participation={participation}", f"dropout={dropout}")
    found = runs.fates(config, "report-1", range(MANY), 0.0)
    there = int(found.available.sum())
    assert likely(there, MANY, participation)
    assert likely(int(found.dropped.sum()), there, dropout)
    assert not (found.dropped & ~found.available).any()
    assert not found.late.any()


def test_a_deadline_alone_makes_nobody_late_and_no_delay_takes_no_time() -> None:
    found = runs.fates(config_of("participation=0.5", "deadline_seconds=1"), "t", range(50), 0.0)
    assert not found.late.any()
    assert found.duration == 0


def test_delays_are_lognormal_and_slow_clients_stay_slow() -> None:
    config = config_of("delay_median_seconds=10", "delay_sigma=0.5", "speed_sigma=0.75")
    one, two = (
        np.log(runs.fates(config, name, range(MANY), 0.0).seconds) for name in ("t-1", "t-2")
    )
    spread = math.hypot(0.5, 0.75)
    assert kstest(np.exp(one), lognorm(spread, scale=10).cdf).pvalue > 1e-6
    correlation = np.corrcoef(one, two)[0, 1]  # the client's own part of the variance
    assert correlation == pytest.approx(0.75**2 / spread**2, abs=0.02)
    steady = config_of("delay_median_seconds=10", "speed_sigma=0.75")
    first = runs.fates(steady, "t-1", range(50), 0.0).seconds
    np.testing.assert_array_equal(first, runs.fates(steady, "t-2", range(50), 0.0).seconds)


def test_stragglers_are_those_past_the_deadline_as_often_as_foreseen() -> None:
    config = config_of(*ALL)
    found = runs.fates(config, "report-1", range(MANY), 0.0)
    np.testing.assert_array_equal(
        found.late, found.available & ~found.dropped & (found.seconds > 20)
    )
    assert likely(int((found.seconds <= 20).sum()), MANY, on_time_share(config.availability))
    expected = runs.expected_reports(config, MANY)
    assert likely(int(found.heard.sum()), MANY, expected / MANY)


def test_a_round_ends_with_its_last_answer_or_at_the_deadline_if_one_is_lost() -> None:
    free = config_of("delay_median_seconds=10", "delay_sigma=1", "participation=0.5")
    found = runs.fates(free, "t", range(30), 0.0)
    assert found.duration == found.seconds[found.available].max()
    strict = config_of("delay_median_seconds=10", "delay_sigma=1", "deadline_seconds=12")
    assert runs.fates(strict, "t", range(30), 0.0).duration == 12
    easy = config_of("delay_median_seconds=10", "deadline_seconds=12")
    assert runs.fates(easy, "t", range(30), 0.0).duration == 10
    lossy = config_of("delay_median_seconds=10", "deadline_seconds=12", "dropout=0.5")
    assert runs.fates(lossy, "t", range(30), 0.0).duration == 12


def test_in_a_secure_sum_an_input_is_lost_as_often_as_any_other_answer() -> None:
    config = config_of("participation=0.7", "dropout=0.3")
    left, lost = list(range(MANY)), []
    for stage in ("report-1/keys", "report-1/shares", "report-1"):
        found = runs.fates(config, stage, left, 0.0, summed=True)
        lost.append(int(found.dropped.sum()))
        left = list(np.array(left)[found.heard])
        if stage == "report-1/keys":
            asked = int(found.available.sum())
        else:
            assert found.available.all()  # drawn once for the whole sum
    assert likely(len(left), asked, 0.7)
    assert all(likely(count, asked, 0.1) for count in lost)
    reveal = runs.fates(config, "report-1/reveal", left, 0.0, summed=True)
    assert likely(int(reveal.dropped.sum()), len(left), 0.3)


def test_a_trace_says_who_is_there_and_who_leaves_before_its_answer_is() -> None:
    trace = trace_of("0,0,100", "1,0,5", "2,50,100", "3,0,30")
    config = config_of("delay_median_seconds=10", "trace=t.csv")
    found = runs.fates(config, "t", [0, 1, 2, 3, 4], 0.0, trace)
    assert found.available.tolist() == [True, True, False, True, False]
    assert found.dropped.tolist() == [False, True, False, False, False]
    assert found.seconds[1] == 5
    again = runs.fates(config, "t", [0, 1, 2, 3, 4], 225.0, trace)  # the third lap
    assert again.available.tolist() == [True, False, False, True, False]
    assert again.dropped.tolist() == [False, False, False, True, False]


def test_a_round_begins_after_the_pause_and_once_a_client_that_takes_part_is_there() -> None:
    config = config_of("delay_median_seconds=10", "pause_seconds=7", "trace=t.csv")
    before = ("train-1", {"begins": 5.0, "seconds": 10.0})
    assert runs.next_begin(config, None, "train-1", [0], None) == 0
    assert runs.next_begin(config, before, "train-2", [0], None) == 22
    stage = ("report-1/keys", before[1])
    assert runs.next_begin(config, stage, "report-1/shares", [0], None) == 15
    trace = trace_of("0,0,8", "1,30,60")
    assert runs.next_begin(config, before, "train-2", [0, 1], trace) == 30
    assert runs.next_begin(config, before, "train-2", [0], trace) == 60  # the next lap
    assert runs.next_begin(config, before, "train-2", [9], trace) == 22  # it never is


@pytest.mark.parametrize(("count", "participation"), [(40, 0.7), (1000, 0.05), (100_000, 0.5)])
def test_bounds_on_who_is_available_fail_once_in_a_thousand(
    count: int, participation: float
) -> None:
    config = config_of(f"participation={participation}")
    assert least_available(config, count) == binom.ppf(1e-3, count, participation)
    assert most_available(config, count) == binom.ppf(1 - 1e-3, count, participation)


def test_without_participation_the_least_number_of_reports_is_the_quorum_s() -> None:
    for trust in ("shuffle", "aggregate"):
        base = [f"privacy.trust={trust}", "privacy.delta=1e-6", "federation.quorum=0.9"]
        assert runs.min_reports(configuration.load(None, base)) == 180
        fewer = runs.min_reports(
            configuration.load(None, [*base, "availability.participation=0.7"])
        )
        assert 0.9 * 100 < fewer < 0.9 * 140
    asked_by_hand = [*base, "availability.participation=0.7", "privacy.min_reports=120"]
    assert runs.min_reports(configuration.load(None, asked_by_hand)) == 120


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["availability.participation=0"], r"availability\.participation must be a number in \(0"),
        (["availability.dropout=1"], r"availability\.dropout must be a number in \[0, 1\), got 1"),
        (["availability.delay_sigma=-1"], r"availability\.delay_sigma must be a number in"),
        (["availability.deadline_seconds=inf"], r"availability\.deadline_seconds must be a number"),
        (["availability.dropuot=0.1"], r"unknown key availability\.dropuot; did you mean"),
        (["availability.dropout=0.1"], r"federation\.quorum must be below 1 with availability\."),
        (["availability.trace=t.csv"], r"availability\.pause_seconds must be above 0 with"),
        (
            ["availability.trace=t.csv", "availability.pause_seconds=1", "privacy.trust=shuffle",
             "privacy.delta=1e-6"],
            r"privacy\.min_reports must be set with privacy\.trust = 'shuffle'",
        ),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused_by_name(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configuration.load(None, settings)
