"""Arguments that several questions share are refused alike, by name and value."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedprune.errors import FairnessError
from fedprune.fairness import (
    GroupTable,
    OutcomeTable,
    check_groups,
    choose_pair,
    gap_test,
    rate_tables,
    stack_outcomes,
    stack_tables,
    summarize,
    summarize_outcomes,
)
from fedprune.randomness import SimulationRandomness

NAN, INF = float("nan"), float("inf")
OUTCOMES = np.random.default_rng(0).integers(5, 40, (4, 2, 2, 2, 2))
TABLES = rate_tables(OUTCOMES, "accuracy")


def ask_summary(names=("a", "b"), tables=TABLES, **options):
    return summarize(tables, names, SimulationRandomness(0), **{"resamples": 100, **options})


def ask_outcomes(names=("a", "b"), tables=OUTCOMES, **options):
    options = {"resamples": 100, **options}
    return summarize_outcomes(tables, names, SimulationRandomness(0), **options)


def ask_gap(names=("a", "b"), tables=TABLES, **options):
    options = {"tolerance": 0.02, "resamples": 100, **options}
    return gap_test(tables, names, SimulationRandomness(0), **options)


def ask_column(names):
    check_groups([0, 1, 1], names)


QUESTIONS = [ask_summary, ask_outcomes, ask_gap]

BAD_NAMES = [
    (None, "names must be a list .* got None"),
    ("ab", "names must be a list .* got 'ab'"),
    ({"a", "b"}, "names must be a list"),
    (["", "b"], "a text with words, got ''"),
    ([" ", "b"], "a text with words, got ' '"),
    ([None, "b"], "a text with words, got None"),
    ([["a"], ["b"]], r"a text with words, got \['a'\]"),
    (["a", "a"], "names of groups must differ"),
    ([], "names must name .* got 0 names"),
]


@pytest.mark.parametrize("ask", [*QUESTIONS, ask_column])
@pytest.mark.parametrize(("names", "message"), BAD_NAMES)
def test_names_that_do_not_tell_groups_apart_are_refused(ask, names, message) -> None:
    with pytest.raises(FairnessError, match=message):
        ask(names)


@pytest.mark.parametrize("ask", QUESTIONS)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *itertools.product(["min_group"], [NAN, INF, 0, 1, 2.5, True, "30"]),
        *itertools.product(["resamples"], [NAN, INF, 99, 100.5, "200"]),
    ],
)
def test_numbers_that_are_not_whole_or_too_small_are_refused(ask, option, value) -> None:
    with pytest.raises(FairnessError, match=f"{option} must be a whole number of at least"):
        ask(**{option: value})


def test_whole_numbers_and_names_of_numpy_are_taken() -> None:
    found = ask_summary(np.array(["a", "b"]), min_group=np.int64(2), resamples=np.int32(100))
    assert found.gap_pruned == ask_summary(["a", "b"]).gap_pruned


@pytest.mark.parametrize(
    "pair", [(0,), (0, 1, 1), (0.0, 1.0), (False, True), (0, 0), (0, 7), ("a", "b"), 1]
)
def test_a_pair_that_is_no_two_codes_is_refused(pair) -> None:
    with pytest.raises(FairnessError, match=r"pair must be two of the groups .*\[0, 1\], got"):
        ask_gap(pair=pair)


def test_codes_to_choose_a_pair_from_are_whole_numbers() -> None:
    with pytest.raises(FairnessError, match="among must be whole-number codes"):
        choose_pair(TABLES, ["a", "b"])


@pytest.mark.parametrize("ask", [ask_summary, ask_outcomes])
def test_other_rows_of_other_groups_are_named(ask) -> None:
    other = (TABLES if ask is ask_summary else OUTCOMES)[:, :1]
    with pytest.raises(FairnessError, match="other must have 2 groups, as the tables do, got 1"):
        ask(other=other)


@pytest.mark.parametrize("ask", [ask_summary, ask_gap])
@pytest.mark.parametrize(
    "tables", [OUTCOMES, OutcomeTable(OUTCOMES[0]), [OutcomeTable(one) for one in OUTCOMES]]
)
def test_outcomes_are_sent_to_their_own_summary(ask, tables) -> None:
    with pytest.raises(FairnessError, match="outcomes go to summarize_outcomes"):
        ask(tables=tables)


def test_plain_tables_are_sent_to_the_plain_summary() -> None:
    with pytest.raises(FairnessError, match="what was right go to summarize"):
        ask_outcomes(tables=GroupTable(TABLES[0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: stack_tables([TABLES[0], TABLES[0][:1]]),
        lambda: stack_tables([[[[1, 2], [3, 4]]], [[[1, 2]]]]),
        lambda: stack_outcomes([OUTCOMES[0], OUTCOMES[0][:1]]),
        lambda: GroupTable.from_array([[[1, 2], [3, 4]], [[1]]]),
        lambda: GroupTable([[[1, 2], [3, 4]], [[1]]]),
        lambda: check_groups([[1], [0, 1]], ["a", "b"]),
    ],
)
def test_parts_of_different_lengths_are_refused(call) -> None:
    with pytest.raises(FairnessError, match="must fill an array, got parts of different lengths"):
        call()
