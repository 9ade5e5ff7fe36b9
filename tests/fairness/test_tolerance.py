"""The test of a gap's growth and the choice of a keep fraction are valid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness import TableNoise, choose_keep, gap_test
from fedprune.randomness import SimulationRandomness

NAMES = ["a", "b", "c"]
TOLERANCE = 0.05


def draw_tables(seed: int, losses: tuple[float, ...], clients: int = 40) -> np.ndarray:
    cells = np.array([[0.1, 0.0, loss, 0.9 - loss] for loss in losses])
    drawn = np.random.default_rng(seed).multinomial(25, cells, size=(clients, len(losses)))
    return drawn.reshape(clients, len(losses), 2, 2)


def ask(tables: np.ndarray, **options):
    names = NAMES[: tables.shape[1]]
    options = {"tolerance": TOLERANCE, "resamples": 200, **options}
    return gap_test(tables, names, SimulationRandomness(0), **options)


@pytest.mark.parametrize("noise", [None, TableNoise("discrete-laplace", 1.0)])
def test_a_gap_that_grew_by_the_tolerance_is_rarely_let_through(noise) -> None:
    generator, passed = np.random.default_rng(0), 0
    for seed in range(200):
        tables = draw_tables(seed, (0.02, 0.02, 0.02 + TOLERANCE))
        if noise is not None:
            tables = tables + noise.sample(tables.shape, generator)
        passed += ask(tables, noise=noise).p_value < 0.05
    assert passed <= stats.binom.ppf(0.9995, 200, 0.05)


def test_a_gap_that_hardly_grew_is_let_through() -> None:
    found = ask(draw_tables(0, (0.02, 0.02, 0.025), clients=400))
    assert found.p_value < 0.01
    assert found.upper_limit < TOLERANCE


def test_the_limit_is_below_the_tolerance_exactly_where_the_test_rejects() -> None:
    for seed in range(40):
        tables = draw_tables(seed, (0.02, 0.03, 0.04), clients=60)
        found = ask(tables)
        assert (found.upper_limit < TOLERANCE) == (found.p_value < 0.05)


def test_the_limit_bounds_the_growth_of_the_gap_and_a_pair_less() -> None:
    tables = draw_tables(1, (0.02, 0.05, 0.1))
    total = tables.sum(axis=0)
    rows = total.sum(axis=(1, 2))
    dense, pruned = total[:, 1].sum(axis=1) / rows, total[:, :, 1].sum(axis=1) / rows
    whole, one = ask(tables), ask(tables, pair=(0, 1))
    assert whole.upper_limit > np.ptp(pruned) - np.ptp(dense)
    assert one.upper_limit < whole.upper_limit
    assert one.p_value < whole.p_value


def test_networks_that_are_equal_pass_only_with_rows_enough() -> None:
    def equal(clients: int) -> np.ndarray:
        tables = np.zeros((clients, 2, 2, 2), dtype=np.int64)
        tables[:, :, 1, 1] = 30
        return tables

    few, many = ask(equal(30)), ask(equal(3000))
    assert few.p_value > 0.05
    assert few.upper_limit > TOLERANCE
    assert many.p_value < 0.05
    assert many.upper_limit < TOLERANCE


def test_small_groups_are_named_as_left_out() -> None:
    tables = draw_tables(2, (0.02, 0.02, 0.02))
    tables[:, 2] = 0
    tables[0, 2, 1, 1] = 29
    assert ask(tables).left_out == ("c",)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_fixed_sequence_testing_stops_at_the_first_that_fails(p_values) -> None:
    keeps = [1 - place / 10 for place in range(len(p_values))]
    found = choose_keep(keeps, p_values)
    passed = [p_value <= 0.05 for p_value in p_values]
    count = passed.index(False) if False in passed else len(passed)
    assert found.accepted == tuple(keeps[:count])
    assert found.keep == (keeps[count - 1] if count else None)
    assert found.stopped_at == (keeps[count] if count < len(keeps) else None)


def test_a_lucky_small_candidate_behind_a_failure_is_not_taken() -> None:
    assert choose_keep([0.9, 0.5, 0.1], [0.01, 0.4, 0.001]).keep == 0.9
    assert choose_keep([0.9, 0.5], [0.2, float("nan")]).keep is None


def test_any_number_of_bad_candidates_errs_at_most_at_the_level() -> None:
    # Every candidate is beyond the tolerance: its p-value is uniform.
    p_values = np.random.default_rng(0).random((4000, 10))
    keeps = np.linspace(1, 0.1, 10).tolist()
    erred = np.mean([choose_keep(keeps, row).keep is not None for row in p_values])
    assert erred == pytest.approx(0.05, abs=0.012)


TABLES = draw_tables(0, (0.02, 0.02, 0.02))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ask(TABLES, tolerance=-0.1), "tolerance must be in"),
        (lambda: ask(TABLES, tolerance=float("nan")), "tolerance must be in"),
        (lambda: ask(TABLES, confidence=0.4), "confidence must be in"),
        (lambda: ask(TABLES, resamples=10), "resamples must be a whole number of at least"),
        (lambda: ask(TABLES, pair=(0, 0)), "pair must be two"),
        (lambda: ask(TABLES, pair=(0, 7)), "pair must be two"),
        (lambda: ask(TABLES[:1] * 0 + 2), "2 to 64 groups with rows enough, got 0"),
        (lambda: ask(np.zeros((3, 2, 2, 2))), "no client has rows"),
        (
            lambda: gap_test(TABLES, ["a"], SimulationRandomness(0), tolerance=0.1),
            "names must name 3 groups",
        ),
        (lambda: choose_keep([], []), "needs its p-value"),
        (lambda: choose_keep([0.5], [0.1, 0.2]), "needs its p-value"),
        (lambda: choose_keep([0.1, 0.5], [0.1, 0.1]), "fall strictly"),
        (lambda: choose_keep([1.5], [0.1]), "fall strictly"),
        (lambda: choose_keep([0.5], [float("nan")]), "p-value at keep 0.5"),
        (lambda: choose_keep([0.5], [0.1], level=0), "level must be in"),
    ],
)
def test_impossible_questions_are_refused(call, message) -> None:
    with pytest.raises(FairnessError, match=message):
        call()
