"""The fast ways agree with the slow ones: Gram polynomials, factorisations, remembered norms."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import RobustnessError
from fedprune.robustness import lipschitz, spectral, torus
from fedprune.robustness.cache import NORMS, NormCache, fingerprint
from fedprune.robustness.geometry import Axis, Geometry
from fedprune.robustness.layer_norms import (
    convolution_norm,
    explicit_matrix,
    schur_norm,
    unfolding_norm,
)
from fedprune.robustness.spectral import Norm, least_shift, shift_bound
from fedprune.robustness.torus import Frequencies, Steps, torus_norm

from .networks import small_resnet


def eigenvalue_bound(grams: np.ndarray, floor: float = 0.0) -> float:
    return shift_bound(least_shift(grams, floor), grams.shape[1])


def random_kernel(rng: np.random.Generator) -> tuple[np.ndarray, Geometry]:
    spatial, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    axes = tuple(
        Axis(int(rng.integers(8, 20)), int(rng.integers(1, 5)), int(rng.integers(1, 4)),
             int(rng.integers(1, 3)), int(rng.integers(0, 3)), int(rng.integers(0, 3)))
        for _ in range(spatial)
    )  # fmt: skip
    shape = (groups * int(rng.integers(1, 6)), int(rng.integers(1, 5)), *(a.kernel for a in axes))
    return rng.standard_normal(shape), Geometry(axes, groups)


@pytest.mark.parametrize("seed", range(10))
def test_gram_matrices_from_the_autocorrelation_are_those_of_the_blocks(seed: int) -> None:
    weight, geometry = random_kernel(np.random.default_rng(seed))
    sizes = tuple(axis.torus for axis in geometry.axes)
    steps = Steps.of(weight, geometry)
    twist = (seed % 2,) * (len(sizes) - 1) + (seed // 2 % 2,)
    every = steps.frequencies(sizes, twist)
    grid = Frequencies(every.numbers[:: max(1, len(every.numbers) // 400)], every.sizes)
    blocks = np.concatenate(list(steps.blocks(grid)))
    grams = np.concatenate(list(steps.grams(grid)))
    singular = np.linalg.svd(blocks, compute_uv=False)[..., 0].reshape(-1)
    eigen = np.linalg.eigvalsh(grams)[:, -1]
    np.testing.assert_allclose(np.sqrt(eigen), singular, rtol=1e-9)


def test_the_torus_bound_is_the_largest_singular_value_of_all_its_blocks() -> None:
    rng = np.random.default_rng(3)
    for _ in range(15):
        weight, geometry = random_kernel(rng)
        if np.prod([axis.torus for axis in geometry.axes]) > 3000:
            continue
        sizes = tuple(axis.torus for axis in geometry.axes)
        steps = Steps.of(weight, geometry)
        largest = 0.0
        every = np.indices(sizes).reshape(len(sizes), -1).T  # no use of any symmetry
        for blocks in steps.blocks(Frequencies(every, sizes)):
            largest = max(largest, np.linalg.svd(blocks, compute_uv=False).max())
        bound = torus_norm(weight, geometry, sizes).value
        assert largest <= bound <= largest * (1 + 1e-8)
        assert torus_norm(weight, geometry).value <= bound * (1 + 1e-8)


def test_twisted_frequencies_are_the_whole_twisted_torus_up_to_conjugation() -> None:
    rng = np.random.default_rng(8)
    for sizes in [(5, 4), (4, 5), (5, 5), (4, 4)]:
        weight = rng.standard_normal((2, 3, 3, 2))
        axes = tuple(Axis(n, k) for n, k in zip(sizes, (3, 2), strict=True))
        steps = Steps.of(weight, Geometry(axes))
        for twist in itertools.product((0, 1), repeat=2):
            half = np.concatenate(list(steps.blocks(steps.frequencies(sizes, twist))))
            counts = np.indices(sizes).reshape(2, -1).T
            whole = 0.0
            for number in (2 * counts + np.array(twist)) / (2 * np.array(sizes)):
                taps = np.indices((3, 2)).reshape(2, -1).T
                phases = np.exp(2j * np.pi * (taps @ number)).reshape(3, 2)
                whole = max(whole, np.linalg.norm((weight * phases).sum((2, 3)), 2))
            assert np.linalg.norm(half, 2, axis=(2, 3)).max() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("line", "length"), [([1.0, 1.0, 1.0], 8), ([-1.0, 2.0, -1.0], 7)])
def test_a_twisted_torus_meets_the_norm_of_a_tridiagonal_operator(
    line: list[float], length: int
) -> None:
    weight = np.outer(line, line)[None, None]
    geometry = Geometry((Axis(length, 3, low=1, high=1),) * 2)
    truth = np.linalg.norm(explicit_matrix(weight, geometry), 2)
    assert truth <= torus_norm(weight, geometry).value <= truth * (1 + 1e-9)
    sizes = tuple(axis.torus for axis in geometry.axes)
    assert torus_norm(weight, geometry, sizes).value > 1.05 * truth


@pytest.mark.parametrize("seed", range(12))
def test_the_twist_that_estimates_name_is_the_best_of_all(seed: int) -> None:
    weight, geometry = random_kernel(np.random.default_rng(100 + seed))
    steps = Steps.of(weight, geometry)
    sizes = tuple(axis.torus for axis in geometry.axes)
    least = min(
        max(
            np.linalg.svd(blocks, compute_uv=False).max()
            for blocks in steps.blocks(steps.frequencies(sizes, twist))
        )
        for twist in steps.twists
    )
    assert least <= torus_norm(weight, geometry).value <= least * (1 + 1e-3)


def test_a_torus_bound_holds_however_wrong_the_estimates_of_its_twists_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(9)
    for share in (1e-9, 0.5, 0.99):
        monkeypatch.setattr(torus, "largest_estimate", lambda grams, *_, s=share: s * top(grams))
        for _ in range(4):
            weight = rng.standard_normal((3, 2, 3, 3))
            geometry = Geometry((Axis(9, 3, low=1, high=1),) * 2)
            truth = np.linalg.norm(explicit_matrix(weight, geometry), 2)
            assert truth <= torus_norm(weight, geometry).value <= 1.1 * truth


def top(grams: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(grams)[:, -1].max())


@pytest.mark.parametrize("side", [1, 2, 30, 90])
@pytest.mark.parametrize("kind", [np.float64, np.complex128])
def test_leading_vectors_are_those_of_the_whole_decomposition(side: int, kind: type) -> None:
    rng = np.random.default_rng(side)
    factors = rng.standard_normal((5, side, side)).astype(kind)
    if kind is np.complex128:
        factors += 1j * rng.standard_normal((5, side, side))
    grams = factors @ factors.conj().swapaxes(1, 2)
    grams[3] = 0  # nothing leads
    grams[4] = np.outer(factors[4, 0], factors[4, 0].conj())  # one step is enough
    values, vectors = spectral.leading_vectors(grams, 160)
    wanted, found = np.linalg.eigh(grams)
    np.testing.assert_allclose(values, wanted[:, -1], rtol=1e-6, atol=1e-9)
    assert (values <= wanted[:, -1] * (1 + 1e-12) + 1e-9).all()
    overlaps = np.abs((vectors.conj() * found[:, :, -1]).sum(axis=1))
    np.testing.assert_allclose(overlaps[[0, 1, 2, 4]], 1, rtol=1e-3)
    few = spectral.leading_vectors(grams, 3)[0]
    assert (few <= values * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_torus_bounds_scale_with_the_weights_however_large(scale: float) -> None:
    weight, geometry = random_kernel(np.random.default_rng(4))
    assert torus_norm(weight * scale, geometry).value == pytest.approx(
        scale * torus_norm(weight, geometry).value, rel=1e-8
    )
    assert torus_norm(0 * weight, geometry).value < 1e-200


def test_closed_forms_are_never_below_the_torus_which_is_never_below_the_truth() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        weight, geometry = random_kernel(rng)
        torus = torus_norm(weight, geometry).value
        assert torus <= unfolding_norm(weight, geometry).value * (1 + 1e-8)
        assert torus <= schur_norm(weight, geometry).value * (1 + 1e-8)


def test_without_any_factorisation_the_least_of_the_other_bounds_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((12, 12, 3, 3))
    geometry = Geometry((Axis(20, 3, low=1, high=1),) * 2)
    wanted = convolution_norm(weight, geometry)
    assert wanted.method == "torus cholesky"
    monkeypatch.setattr(
        spectral, "_have_factors", lambda grams, _: torch.zeros(len(grams), dtype=torch.bool)
    )
    with pytest.raises(np.linalg.LinAlgError):
        eigenvalue_bound(np.stack([2 * np.eye(3)]).astype(np.complex128))
    found = convolution_norm(weight, geometry)
    assert found.method == "torus gram"
    assert wanted.value * (1 - 1e-6) <= found.value <= wanted.value * 1.02


def test_an_eigenvalue_bound_holds_for_every_matrix_of_a_stack_whatever_the_estimates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(7)
    for side in (1, 2, 9, 70):
        factors = rng.standard_normal((12, side, side)) + 1j * rng.standard_normal((12, side, side))
        grams = factors @ factors.conj().transpose(0, 2, 1)
        truth = np.linalg.eigvalsh(grams).max()
        assert truth <= eigenvalue_bound(grams) <= truth * (1 + 1e-5)
        assert eigenvalue_bound(grams, 2 * truth) == pytest.approx(2 * truth, rel=1e-9)
        with monkeypatch.context() as patch:
            estimate = spectral._largest_eigenvalue
            patch.setattr(spectral, "_largest_eigenvalue", lambda g, e=estimate: 0.7 * e(g))
            assert truth <= eigenvalue_bound(grams) <= 3 * truth


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_copying_paddings_on_small_maps_have_the_norm_of_their_matrix(mode: str) -> None:
    torch.manual_seed(0)
    for stride, dilation in [(1, 1), (2, 1), (1, 2), (3, 1)]:
        layer = nn.Conv2d(2, 2, 3, stride, 2, dilation, padding_mode=mode, dtype=torch.float64)
        basis = torch.eye(50, dtype=torch.float64).reshape(50, 2, 5, 5)
        with torch.no_grad():
            images = layer(basis) - layer(torch.zeros_like(basis))
        truth = float(torch.linalg.matrix_norm(images.reshape(50, -1), 2))
        bound = lipschitz(layer.eval(), torch.zeros(1, 2, 5, 5), samples=0, tighten=False).upper
        assert truth <= bound <= truth * (1 + 1e-9)


def test_a_bound_is_the_same_with_and_without_the_cache() -> None:
    NORMS.clear()
    first = lipschitz(small_resnet(0), torch.zeros(1, 2, 8, 8), samples=0, tighten=False)
    assert NORMS.misses > 0
    again = lipschitz(small_resnet(0), torch.zeros(1, 2, 8, 8), samples=0, tighten=False)
    assert again == first
    NORMS.clear()
    assert lipschitz(small_resnet(0), torch.zeros(1, 2, 8, 8), samples=0, tighten=False) == first


def test_only_layers_that_changed_are_bounded_again() -> None:
    model, example = small_resnet(1), torch.zeros(1, 2, 8, 8)
    NORMS.clear()
    before = lipschitz(model, example, samples=0, tighten=False)
    computed = NORMS.misses
    model[4].second.weight.data[0] *= 3.0
    after = lipschitz(model, example, samples=0, tighten=False)
    changed = [a.node for a, b in zip(after.per_op, before.per_op, strict=True) if a.norm != b.norm]
    assert changed == ["_4_second"]
    assert 0 < NORMS.misses - computed < computed
    lipschitz(model, torch.zeros(1, 2, 10, 10), samples=0, tighten=False)
    assert NORMS.misses > computed + 1  # another map size is another operator


def test_keys_tell_apart_values_shapes_and_geometries() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    keys = {
        fingerprint("a", weight), fingerprint("b", weight), fingerprint("a", weight.T.copy()),
        fingerprint("a", weight.reshape(3, 2)), fingerprint("a", -weight),
        fingerprint("a", np.nextafter(weight, 9)),
    }  # fmt: skip
    assert len(keys) == 6
    assert fingerprint("a", weight) == fingerprint("a", weight.copy(order="F"))


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = NormCache(2)
    weights = [np.full(3, float(i)) for i in range(3)]
    calls: list[int] = []

    def ask(i: int) -> float:
        def compute() -> Norm:
            calls.append(i)
            return Norm(float(i), "test")

        return cache.norm("x", weights[i], compute).value

    assert [ask(i) for i in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert calls == [0, 1, 2, 1]
    assert (len(cache), cache.hits, cache.misses) == (2, 2, 4)
    nothing = NormCache(0)
    nothing.norm("x", weights[0], lambda: Norm(1.0, "test"))
    assert len(nothing) == 0
    with pytest.raises(RobustnessError, match="max_entries"):
        NormCache(-1)


def test_a_norm_that_fails_is_not_remembered() -> None:
    cache = NormCache()

    def fail() -> Norm:
        raise RobustnessError("no")

    with pytest.raises(RobustnessError):
        cache.norm("x", np.zeros(1), fail)
    assert cache.norm("x", np.zeros(1), lambda: Norm(2.0, "test")).value == 2.0


def test_threads_share_one_cache() -> None:
    cache, barrier = NormCache(8), threading.Barrier(4)

    def work(seed: int) -> float:
        barrier.wait()
        rng = np.random.default_rng(seed)
        total = 0.0
        for i in rng.integers(0, 20, size=400):
            weight = np.full(2, float(i))
            total += cache.norm("x", weight, lambda i=i: Norm(float(i), "t")).value - float(i)
        return total

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0.0] * 4
    assert len(cache) <= 8
    assert cache.hits + cache.misses == 1600


STRUCTURED = ["dirac", "permutation", "one entry", "few channels", "ones"]


def structured(kind: str, side: int) -> np.ndarray:
    rng, weight = np.random.default_rng(side), np.zeros((side, side, 3, 3))
    if kind == "dirac":
        weight[range(side), range(side), 1, 1] = 1
    elif kind == "permutation":
        weight[range(side), rng.permutation(side), 1, 1] = 2.5
    elif kind == "one entry":
        weight[3, 5, 0, 2] = -0.7
    elif kind == "few channels":
        weight[:8] = rng.standard_normal((8, side, 3, 3))
    else:
        weight[:] = 1
    return weight


@pytest.mark.parametrize("side", [65, 96, 128])
@pytest.mark.parametrize("kind", STRUCTURED)
def test_kernels_whose_blocks_have_few_eigenvalues_are_bounded_closely(
    kind: str, side: int
) -> None:
    """Where Lanczos has found all there is, rounding must not pass for a new direction."""
    weight = structured(kind, side)
    geometry = Geometry((Axis(10, 3, low=1, high=1),) * 2)
    steps, sizes = Steps.of(weight, geometry), (11, 11)
    least = min(
        max(
            np.linalg.svd(blocks, compute_uv=False).max()
            for blocks in steps.blocks(steps.frequencies(sizes, twist))
        )
        for twist in steps.twists
    )
    assert least * (1 - 1e-12) <= torus_norm(weight, geometry).value <= least * (1 + 1e-5)


@pytest.mark.parametrize("matrix", [np.eye(300), np.ones((512, 512)), np.zeros((280, 280))])
def test_matrices_with_few_singular_values_are_bounded_closely(matrix: np.ndarray) -> None:
    truth = np.linalg.norm(matrix, 2)
    assert truth <= spectral.matrix_norm(matrix).value <= truth * (1 + 1e-4) + 1e-149
    estimate = spectral.leading_vectors(matrix[None] * truth, 160)[0][0]
    assert estimate == pytest.approx(truth**2, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-90, 1e-130])
@pytest.mark.parametrize("side", [5, 80])
def test_groups_of_very_unequal_size_are_bounded_by_the_largest(scale: float, side: int) -> None:
    weight = np.random.default_rng(3).standard_normal((2 * side, side, 3))
    weight[side:] *= scale
    geometry = Geometry((Axis(20, 3, low=1, high=1),), 2)
    alone = torus_norm(weight[:side], Geometry(geometry.axes))
    found = torus_norm(weight, geometry)
    assert found.method == "torus cholesky"
    assert found.value == pytest.approx(alone.value, rel=1e-5)


def test_a_large_map_of_one_channel_is_bounded_on_the_plain_torus() -> None:
    weight = np.random.default_rng(4).standard_normal((1, 1, 5, 5))
    geometry = Geometry((Axis(384, 5, low=2, high=2),) * 2)
    phases = np.exp(2j * np.pi * np.outer(np.arange(386), np.arange(5)) / 386)
    blocks = np.abs(phases @ weight[0, 0] @ phases.T)
    truth = blocks.max()
    assert truth <= torus_norm(weight, geometry).value <= truth * (1 + 1e-9)
