"""Interior-point steps: always feasible, with a gap that bounds what is left to gain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedprune.robustness import chain
from fedprune.robustness.primal_dual import FeasiblePoint
from fedprune.robustness.sdp_search import MultiplierSearch


def search(sizes: list[int], seed: int, spread: float = 1.0) -> MultiplierSearch:
    generator = np.random.default_rng(seed)
    weights = []
    for into, out in itertools.pairwise(sizes):
        size = np.exp(spread * generator.standard_normal((out, 1)))
        weights.append(size * generator.standard_normal((out, into)))
    return MultiplierSearch.of(chain(weights))


def path(found: MultiplierSearch, steps: int) -> list[FeasiblePoint]:
    multipliers = found.start()
    assert multipliers is not None
    point = FeasiblePoint.of(found, multipliers, 0.5 * found.best_square(multipliers))
    made = []
    while point is not None and len(made) < steps:
        made.append(point)
        point = None if point.gap < 1e-7 * point.square else point.next()
    return made


@pytest.mark.parametrize("sizes", [[6, 9, 3], [4, 7, 7, 7, 2], [50, 130, 5]])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_every_point_is_feasible_and_the_gap_closes(sizes: list[int], spread: float) -> None:
    found = search(sizes, 3, spread)
    points = path(found, 60)
    for point in points:
        np.testing.assert_allclose(point.form, found.matrix(point.multipliers, point.square))
        assert np.linalg.eigvalsh(point.form)[0] > 0
        assert np.linalg.eigvalsh(point.dual)[0] > 0
    last = points[-1]
    assert last.gap < 1e-6 * last.square
    assert max(point.square for point in points) == pytest.approx(last.square, rel=1e-5)


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_the_dual_matrix_proves_that_no_multipliers_do_better(spread: float) -> None:
    """<E_i, Z> = 0 and <G, Z> = 1, so that F = <F G, Z> is at most <J, Z>."""
    found = search([8, 12, 10, 4], 7, spread)
    last = path(found, 40)[-1]
    first, size = found.inputs, np.abs(last.dual).max()
    pairs = (last.dual[first:] * found.reads).sum(axis=1)
    assert np.abs(pairs).max() < 1e-6 * size
    assert float((last.dual * found.outer_square).sum()) == pytest.approx(1.0, rel=1e-6)
    reach = float(np.trace(last.dual[:first, :first]))
    assert last.square <= reach * (1 + 1e-9)
    assert last.square == pytest.approx(reach, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_at_the_ends_of_float64_end_the_path_without_a_word(scale: float) -> None:
    found = search([3, 4, 2], 1)
    point = FeasiblePoint.of(found, found.start() * scale, 1e-308)
    for _ in range(100):
        point = None if point is None or point.gap < 1e-7 * point.square else point.next()
    assert point is None or np.isfinite(point.dual).all()
