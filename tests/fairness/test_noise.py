"""The description of noise against enumeration, moments and a library."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness import TableNoise, clip_table, table_sensitivity
from fedprune.privacy import DiscreteGaussian, DiscreteLaplace
from fedprune.randomness import SimulationRandomness

NAN = float("nan")


def pmf(kind: str, scale: float, reach: int = 400) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(-reach, reach + 1)
    if kind == "discrete-laplace":
        return values, stats.dlaplace(1 / scale).pmf(values)
    chances = np.exp(-(values**2) / (2 * scale**2))
    return values, chances / chances.sum()


@pytest.mark.parametrize("kind", ["discrete-laplace", "discrete-gaussian"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_variance_is_that_of_the_exact_distribution(kind: str, scale: float) -> None:
    values, chances = pmf(kind, scale)
    noise = TableNoise(kind, scale)
    assert noise.variance == pytest.approx(chances @ values**2, rel=1e-9)
    assert noise.times(7).variance == pytest.approx(7 * noise.variance)


@pytest.mark.parametrize("kind", ["discrete-laplace", "discrete-gaussian"])
def test_quantiles_of_a_sum_are_those_of_the_convolution(kind: str) -> None:
    _, chances = pmf(kind, 1.5, reach=60)
    convolved = np.convolve(np.convolve(chances, chances), chances)
    cumulated = np.cumsum(convolved)
    values = np.arange(len(convolved)) - len(convolved) // 2
    for chance in (0.01, 0.3, 0.5, 0.95, 0.999):
        exact = values[np.searchsorted(cumulated, chance)]
        assert TableNoise(kind, 1.5, draws=3).quantile(chance) == exact


@pytest.mark.parametrize(("draws", "scale"), [(1, 0.5), (1, 3.0), (40, 1.0), (4000, 2.0)])
def test_samples_have_the_distribution_described(draws: int, scale: float) -> None:
    noise = TableNoise("discrete-laplace", scale, draws)
    drawn = noise.sample((200, 100), np.random.default_rng(0))
    deviation = np.sqrt(noise.variance)
    assert abs(drawn.mean()) < 5 * deviation / np.sqrt(drawn.size)
    assert drawn.var() == pytest.approx(noise.variance, rel=0.1)
    above = (drawn > noise.quantile(0.95)).mean()
    assert above <= 0.05 + 5 * np.sqrt(0.05 * 0.95 / drawn.size)


@pytest.mark.parametrize(("draws", "scale"), [(100, 9e4), (40_000, 800.0), (10**9, 10.0)])
def test_sums_too_wide_to_tabulate_are_normal(draws: int, scale: float) -> None:
    noise = TableNoise("discrete-laplace", scale, draws)
    deviation = np.sqrt(noise.variance)
    assert deviation == pytest.approx(np.sqrt(2 * draws) * scale, rel=1e-2)
    assert noise.quantile(0.95) == pytest.approx(1.6449 * deviation, rel=1e-3)
    drawn = noise.sample((20_000,), np.random.default_rng(0))
    assert drawn.dtype == np.int64
    assert drawn.std() == pytest.approx(deviation, rel=0.03)
    assert abs(drawn.mean()) < 5 * deviation / np.sqrt(20_000)


@pytest.mark.parametrize("kind", ["discrete-laplace", "discrete-gaussian"])
def test_the_description_fits_what_the_mechanisms_draw(kind: str) -> None:
    drawn_by = {
        "discrete-laplace": DiscreteLaplace(Fraction(2)),
        "discrete-gaussian": DiscreteGaussian(Fraction(4)),  # of variance 4
    }
    drawn = drawn_by[kind].sample([SimulationRandomness(3)], 40_000)[0]
    values, chances = pmf(kind, 2.0)
    noise = TableNoise(kind, 2.0)
    assert drawn.var() == pytest.approx(noise.variance, rel=0.05)
    expected = dict(zip(values.tolist(), chances.tolist(), strict=True))
    for value in range(-4, 5):
        share, chance = (drawn == value).mean(), expected[value]
        assert abs(share - chance) < 5 * np.sqrt(chance / 40_000)


def test_noise_is_private_as_its_scale_and_sensitivity_say() -> None:
    epsilon = 0.7
    for unit, relation, rows in (("record", "add-or-remove", None), ("client", "replacement", 4)):
        moved = table_sensitivity(unit, relation, rows)
        values, chances = pmf("discrete-laplace", moved / epsilon)
        assert values.size == chances.size
        ratio = np.log(chances[:-moved] / chances[moved:])
        assert np.abs(ratio).max() == pytest.approx(epsilon)


def test_sensitivities_are_the_largest_moves_of_a_table() -> None:
    tables = [np.array(cells) for cells in itertools.product(range(4), repeat=4)]
    small = [table for table in tables if table.sum() <= 3]
    assert table_sensitivity("client", "add-or-remove", 3) == max(t.sum() for t in small)
    moves = max(np.abs(a - b).sum() for a in small for b in small)
    assert table_sensitivity("client", "replacement", 3) == moves
    one = np.eye(4, dtype=int)
    assert table_sensitivity("record", "add-or-remove") == one[0].sum()
    assert table_sensitivity("record", "replacement") == np.abs(one[0] - one[1]).sum()


def test_a_description_survives_json() -> None:
    noise = TableNoise("discrete-laplace", 2.0, draws=3, clipped_to=20)
    assert TableNoise.from_json(noise.to_json()) == noise
    assert TableNoise.from_json({"kind": "discrete-gaussian", "scale": 4}).draws == 1


def test_clipped_tables_are_bounded_and_unbiased() -> None:
    table = np.array([[[[40, 3], [7, 50]], [[0, 1], [0, 9]]]])
    generator = np.random.default_rng(3)
    many = clip_table(np.repeat(table, 4000, axis=0), 20, generator)
    assert np.all(many.sum(axis=(1, 2, 3)) == 20)
    assert np.all((many >= 0) & (many <= table))
    assert many.mean(axis=0) == pytest.approx(table[0] * 20 / table.sum(), abs=0.15)
    assert np.array_equal(clip_table(table, 500, generator), table)
    assert table.sum() == 110


@pytest.mark.parametrize("most_rows", [NAN, float("inf"), 2.5, 0, -1, "20", True])
def test_a_bound_that_is_no_number_of_rows_protects_nobody_and_is_refused(most_rows) -> None:
    message = "most_rows.* must be a whole number of at least 1, got"
    with pytest.raises(FairnessError, match=message):
        clip_table(np.ones((1, 2, 2, 2), int), most_rows, np.random.default_rng(0))
    for relation in ("add-or-remove", "replacement"):
        with pytest.raises(FairnessError, match=message):
            table_sensitivity("client", relation, most_rows)


STORED = {"kind": "discrete-laplace", "scale": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TableNoise("uniform", 1.0), "one of discrete-laplace"),
        (lambda: TableNoise("discrete-laplace", 0.0), "scale of noise must be in"),
        (lambda: TableNoise("discrete-laplace", float("nan")), "scale of noise must be in"),
        (lambda: TableNoise("discrete-laplace", 1.0, draws=0), "draws of noise"),
        (lambda: TableNoise("discrete-laplace", 1.0, draws=1.5), "draws of noise .* got 1.5"),
        (lambda: TableNoise("discrete-laplace", 1.0, draws=NAN), "draws of noise .* got nan"),
        (lambda: TableNoise("discrete-laplace", 1.0, clipped_to=0), "at least 1, got 0"),
        (lambda: TableNoise("discrete-laplace", 1.0, clipped_to=NAN), "clipped_to.* got nan"),
        (lambda: TableNoise("discrete-laplace", "1"), "scale of noise must be in .* got '1'"),
        (lambda: TableNoise("discrete-laplace", 1.0).quantile(1.0), "chance must be in"),
        (lambda: TableNoise.from_json({"kind": "discrete-laplace"}), "a kind and a scale"),
        (lambda: TableNoise.from_json({"kind": "x", "scale": 1, "y": 2}), "a kind and a scale"),
        (lambda: table_sensitivity("row", "replacement"), "got 'row'"),
        (lambda: TableNoise.from_json({**STORED, "draws": 1.7}), "draws of noise .* got 1.7"),
        (lambda: TableNoise.from_json({**STORED, "scale": "x"}), "scale of noise .* got 'x'"),
        (lambda: TableNoise.from_json({**STORED, "scale": None}), "scale of noise .* got None"),
        (lambda: TableNoise.from_json({**STORED, "clipped_to": 2.5}), "clipped_to.* got 2.5"),
        (lambda: table_sensitivity("client", "replacement"), "most_rows .* got None"),
        (lambda: clip_table(np.ones((1, 2, 2, 2), int), 0, np.random.default_rng(0)), "most_rows"),
        (lambda: clip_table(np.full((1, 2), 2**60), 3, np.random.default_rng(0)), "rows each"),
        (lambda: clip_table(np.ones((1, 2, 2, 2)), 3, np.random.default_rng(0)), "natural"),
        (lambda: clip_table(-np.ones((1, 2), int), 3, np.random.default_rng(0)), "natural"),
    ],
)
def test_what_is_no_noise_is_refused(call, message) -> None:
    with pytest.raises(FairnessError, match=message):
        call()
