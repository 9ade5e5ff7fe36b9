"""LipSDP: at its optimum, never below what is found, accepted only where a factor exists."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize

from fedprune.robustness import SlopeSystem, chain, chain_bound, slope_bound
from fedprune.robustness.sdp_certificate import Certificate, verified_bound

Floats = NDArray[np.float64]


def layers(sizes: list[int], seed: int) -> list[Floats]:
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal((out, into)) / math.sqrt(into)
        for into, out in itertools.pairwise(sizes)
    ]


def product(weights: list[Floats]) -> float:
    return math.prod(float(np.linalg.norm(weight, 2)) for weight in weights)


def form(weights: list[Floats], multipliers: Floats, square: float) -> Floats:
    """The matrix of LipSDP in block form, written out here once more."""
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights[:-1])]
    starts = np.cumsum([0, *sizes])
    matrix = np.zeros((starts[-1], starts[-1]))
    matrix[: sizes[0], : sizes[0]] = np.eye(sizes[0])
    for place, weight in enumerate(weights[:-1]):
        rows = slice(starts[place + 1], starts[place + 2])
        columns = slice(starts[place], starts[place + 1])
        diagonal = np.diag(multipliers[rows.start - sizes[0] : rows.stop - sizes[0]])
        matrix[rows, rows] += diagonal
        matrix[rows, columns] -= 0.5 * diagonal @ weight
        matrix[columns, rows] -= 0.5 * (diagonal @ weight).T
    last = slice(starts[-2], starts[-1])
    matrix[last, last] -= square * weights[-1].T @ weights[-1]
    return matrix


def central_point(weights: list[Floats], smallest: float) -> tuple[Floats, float]:
    """Minimise -log F - mu log det with L-BFGS for falling mu: a first-order method of its own."""
    units, inputs = sum(len(weight) for weight in weights[:-1]), weights[0].shape[1]
    point = np.append(np.full(units, 2.0 / product(weights)), 0.1 / product(weights) ** 2)
    variable = np.log(_feasible(weights, point))
    for exponent in np.arange(0, smallest, 0.5):
        variable = optimize.minimize(
            _barrier, variable, args=(weights, 10.0**-exponent / (inputs + units)), jac=True,
            method="L-BFGS-B",
            options={"maxiter": 4000, "maxfun": 8000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 60},
        ).x  # fmt: skip
    point = np.exp(variable)
    return point[:-1], float(point[-1])


def _feasible(weights: list[Floats], point: Floats) -> Floats:
    while True:
        lowest = float(np.linalg.eigvalsh(form(weights, point[:-1], point[-1]))[0])
        if lowest > 0:
            return point
        point = np.append(point[:-1] * 0.7, point[-1] * 0.3)


def _barrier(variable: Floats, weights: list[Floats], mu: float) -> tuple[float, Floats]:
    point = np.exp(np.clip(variable, -60, 60))
    matrix = form(weights, point[:-1], point[-1])
    sign, logarithm = np.linalg.slogdet(matrix)
    if sign <= 0 or np.linalg.eigvalsh(matrix)[0] <= 0:
        return 1e6, np.zeros_like(variable)
    inverse = np.linalg.inv(matrix)
    inputs = weights[0].shape[1]
    slopes = []
    for unit in range(len(point) - 1):
        one = np.zeros(len(point) - 1)
        one[unit] = 1.0
        slopes.append(float(np.sum(inverse * (form(weights, one, 0.0) - _input(inputs, matrix)))))
    none = np.zeros(len(point) - 1)
    slopes.append(float(np.sum(inverse * (form(weights, none, 1.0) - _input(inputs, matrix)))))
    gradient = -mu * np.array(slopes) * point
    gradient[-1] -= 1.0
    return -float(variable[-1]) - mu * float(logarithm), gradient


def _input(inputs: int, like: Floats) -> Floats:
    matrix = np.zeros_like(like)
    matrix[:inputs, :inputs] = np.eye(inputs)
    return matrix


def _attained(weights: list[Floats], multipliers: Floats) -> float:
    inverse = np.linalg.inv(form(weights, multipliers, 0.0))
    last = weights[-1].shape[1]
    corner = weights[-1] @ inverse[-last:, -last:] @ weights[-1].T
    return math.sqrt(float(np.linalg.eigvalsh(corner)[-1]))


def dual_bound(weights: list[Floats], multipliers: Floats, square: float) -> float:
    """A bound that no multipliers can beat, from a feasible point of the dual problem.

    Z is the inverse of the form, corrected so that tr(Z E_i) = 0 for every unit; then every F with
    a positive definite form is at most tr(Z J) / tr(Z C^T C).
    """
    units, inputs = sum(len(weight) for weight in weights[:-1]), weights[0].shape[1]
    matrix = form(weights, multipliers, square)
    directions = [form(weights, one, 0.0) - _input(inputs, matrix) for one in np.eye(units)]
    root = np.linalg.cholesky(np.linalg.inv(matrix))
    turned = np.array([(root.T @ direction @ root).ravel() for direction in directions])
    target = np.eye(len(matrix)).ravel()
    share = np.linalg.lstsq(turned.T, target, rcond=None)[0]
    middle = (target - share @ turned).reshape(len(matrix), -1)
    dual = root @ ((middle + middle.T) / 2) @ root.T
    assert np.linalg.eigvalsh(dual)[0] >= -1e-12 * np.trace(dual)
    for direction in directions:
        assert abs(np.sum(dual * direction)) <= 1e-8 * np.abs(dual).sum()
    last = weights[-1].shape[1]
    weight = np.sum(dual[-last:, -last:] * (weights[-1].T @ weights[-1]))
    return 1.0 / math.sqrt(float(np.trace(dual[:inputs, :inputs]) / weight))


@pytest.mark.parametrize("sizes", [[6, 5, 4], [5, 4, 4, 3]])
def test_the_bound_is_the_optimum_that_another_method_encloses(sizes: list[int]) -> None:
    weights = layers(sizes, 3)
    attained = _attained(weights, central_point(weights, 8.5)[0])
    least = dual_bound(weights, *central_point(weights, 5.5))
    bound = chain_bound(weights).value
    assert bound == pytest.approx(attained, rel=1e-4)
    assert least * (1 - 1e-9) <= bound <= least * (1 + 1e-4)
    assert bound < 0.9 * product(weights)


@pytest.mark.parametrize(
    ("sizes", "seed", "optimum"),
    [([16, 24, 24, 6], 0, 10.388860), ([10, 8, 8, 8, 8, 3], 1, 5.181228),
     ([5, 40, 1], 2, 0.5633594)],
)  # fmt: skip
def test_units_of_very_unequal_size_do_not_keep_it_from_the_optimum(
    sizes: list[int], seed: int, optimum: float
) -> None:
    """The optima are Clarabel's, as simulations/certified_optimum.py asks for them."""
    generator = np.random.default_rng(seed)
    weights = [
        generator.standard_normal((out, into))
        / math.sqrt(into)
        * np.exp(generator.standard_normal((out, 1)))
        for into, out in itertools.pairwise(sizes)
    ]
    assert chain_bound(weights).value == pytest.approx(optimum, rel=1e-6)
    assert product(weights) > 5 * optimum


@pytest.mark.parametrize("seed", range(8))
def test_no_secant_is_steeper_than_the_bound(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [int(size) for size in generator.integers(1, 9, size=int(generator.integers(2, 6)))]
    weights = layers(sizes, seed)
    bound = chain_bound(weights).value
    assert bound <= product(weights) * (1 + 1e-6)
    steepest = 0.0
    for slopes in generator.integers(0, 2, size=(400, sum(sizes[1:-1]))):
        matrix, first = np.eye(sizes[0]), 0
        for weight in weights[:-1]:
            active = slopes[first : first + len(weight)]
            matrix, first = active[:, None] * (weight @ matrix), first + len(weight)
        steepest = max(steepest, float(np.linalg.norm(weights[-1] @ matrix, 2)))
    assert steepest <= bound


def test_more_work_never_gives_a_larger_bound() -> None:
    weights = layers([12, 10, 10, 10, 6], 0)
    bounds = [chain_bound(weights, work=work).value for work in (0.0, 1e5, 1e6, 1e8, 1e10)]
    for earlier, later in itertools.pairwise(bounds):
        assert later <= earlier * (1 + 1e-8)
    assert bounds[-1] < 0.8 * bounds[0] < product(weights)


def test_an_accepted_form_is_positive_definite_in_rational_arithmetic() -> None:
    weights = layers([3, 3, 2], 5)
    system = chain(weights)
    multipliers = central_point(weights, 3.0)[0]
    bound = Fraction(verified_bound(system, multipliers))
    square = 1 / (bound * bound)
    size = system.variables
    matrix = [[Fraction(0)] * size for _ in range(size)]
    for i in range(system.inputs):
        matrix[i][i] += 1
    for unit, multiplier in enumerate(multipliers):
        row = system.inputs + unit
        matrix[row][row] += Fraction(float(multiplier))
        for column, weight in enumerate(system.inner[unit]):
            half = Fraction(float(multiplier)) * Fraction(float(weight)) / 2
            matrix[row][column] -= half
            matrix[column][row] -= half
    for i in range(size):
        for j in range(size):
            terms = (Fraction(float(c[i])) * Fraction(float(c[j])) for c in system.outer)
            matrix[i][j] -= square * sum(terms, Fraction(0))
    for pivot in range(size):
        assert matrix[pivot][pivot] > 0
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]


def test_a_smaller_bound_than_the_multipliers_allow_is_not_accepted() -> None:
    weights = layers([10, 8, 6, 4], 1)
    multipliers = central_point(weights, 2.0)[0]
    certificate = Certificate(chain(weights), multipliers)
    attained = _attained(weights, multipliers)
    assert certificate.holds(1 / (attained * (1 + 1e-7)) ** 2)
    assert not certificate.holds(1 / (attained * (1 - 1e-12)) ** 2)
    assert not certificate.holds(1 / (attained * 0.9) ** 2)
    negative = np.where(np.arange(len(multipliers)) == 0, -1.0, multipliers)
    assert verified_bound(chain(weights), negative) == math.inf


def test_errors_of_entries_widen_the_bound() -> None:
    system = chain(layers([6, 5, 4], 2))
    plain = slope_bound(system).value
    vague = replace(system, inner_error=np.where(system.inner != 0, 1e-4, 0.0))
    widened = slope_bound(vague).value
    assert plain < widened < plain * 1.1
    for seed in range(20):
        generator = np.random.default_rng(seed)
        moved = system.inner + generator.uniform(-1, 1, system.inner.shape) * vague.inner_error
        assert slope_bound(replace(system, inner=moved)).value <= widened * (1 + 1e-7)


def test_removed_units_and_empty_layers_are_no_trouble() -> None:
    weights = layers([6, 5, 5, 3], 4)
    weights[0][[1, 3]] = 0.0
    weights[1][:, 2] = 0.0
    weights[2][:, 0] = 0.0
    small = [weights[0][[0, 4]], weights[1][1:][:, [0, 4]], weights[2][:, 1:]]
    assert chain_bound(weights).value == pytest.approx(chain_bound(small).value, rel=1e-6)
    weights[0][:] = 0.0
    assert chain_bound(weights).value < 1e-100


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 3.7, 1e20])
def test_the_bound_scales_with_each_layer(factor: float) -> None:
    weights = layers([7, 6, 5, 4], 6)
    plain = chain_bound(weights).value
    for place in range(3):
        scaled = [factor * w if i == place else w for i, w in enumerate(weights)]
        assert chain_bound(scaled).value == pytest.approx(factor * plain, rel=1e-6)


def test_one_layer_is_its_norm() -> None:
    weight = layers([5, 7], 0)
    assert chain_bound(weight).value == pytest.approx(product(weight), rel=1e-8)


def test_a_shortcut_is_part_of_the_system() -> None:
    """x + W2 relu(W1 x): between the slopes that can occur and 1 + the product."""
    first, second = layers([5, 5], 0)[0], layers([5, 5], 1)[0]
    inner = np.concatenate([first, np.zeros((5, 5))], axis=1)
    outer = np.concatenate([np.eye(5), second], axis=1)
    none = np.zeros_like(inner)
    bound = slope_bound(SlopeSystem(inner, none, outer, none, (5,))).value
    steepest = max(
        float(np.linalg.norm(np.eye(5) + second @ (np.array(slopes)[:, None] * first), 2))
        for slopes in itertools.product((0.0, 1.0), repeat=5)
    )
    assert steepest <= bound < 0.95 * (1 + product([first]) * product([second]))
