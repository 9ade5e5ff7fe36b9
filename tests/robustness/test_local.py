"""Local bounds and certificates: no point of the ball contradicts them, no attack breaks them."""

from __future__ import annotations

import copy
import math
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedprune import models
from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness import (
    Certifier,
    LocalCertifier,
    direct_search,
    lipschitz,
    local_lipschitz,
    pgd,
)
from fedprune.robustness.region import spectral_norms
from fedprune.robustness.regions import follow
from fedprune.robustness.tracer import lower

from .networks import small_resnet

STD = (0.3,)


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)
    return pixels / STD[0], torch.from_numpy(labels).long()


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def _perceptron() -> nn.Module:
    return models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)


def _lenet() -> nn.Module:
    return models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=0)


BUILDERS = {"mlp": _perceptron, "pooled": _pooled, "lenet": _lenet}


@cache
def trained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]().train()
    inputs, labels = digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def ball(points: Tensor, radius: float, count: int, seed: int) -> Tensor:
    """Points of l2 balls, half of them on the surface: [n, count, ...]; pixels, before STD."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.randn(len(points), count, *points.shape[1:], generator=generator)
    moved = moved.double() / moved.double().flatten(2).norm(dim=2)[..., None, None, None]
    lengths = radius * torch.rand(count, generator=generator).double().clamp_min(0.5) ** 0.1
    lengths[::2] = radius
    return points.double()[:, None] + moved * lengths[None, :, None, None, None] / STD[0]


@pytest.mark.parametrize("radius", [1e-4, 0.05, 0.4, 3.0])
@pytest.mark.parametrize("name", BUILDERS)
def test_no_jacobian_inside_the_ball_exceeds_the_local_bound(name: str, radius: float) -> None:
    inputs = digits()[0][1500:1504]
    found = local_lipschitz(trained(name), inputs, radius, input_std=STD, work=1e8)
    double = copy.deepcopy(trained(name)).double()
    points = ball(inputs, radius, 30, 1)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: double(x[None])[0]))
    for row in range(len(inputs)):
        slopes = jacobian(points[row]).detach().reshape(30, 10, -1) / STD[0]
        assert float(torch.linalg.matrix_norm(slopes, 2).max()) <= found.upper[row]
    assert (found.lower <= found.upper).all()
    assert (found.upper <= found.overall).all()
    assert len(found.methods) == len(inputs)


@pytest.mark.parametrize("radius", [0.02, 0.5])
@pytest.mark.parametrize("name", [*BUILDERS, "resnet"])
def test_every_point_of_the_ball_lies_in_the_enclosure(name: str, radius: float) -> None:
    if name == "resnet":
        model, inputs = small_resnet(3), torch.randn(3, 2, 8, 8)
    else:
        model, inputs = trained(name), digits()[0][1500:1503]
    network = lower(model, inputs[:1])
    scale = torch.full(inputs.shape[1:], 1 / STD[0], dtype=torch.float64)
    radii = torch.full((3,), radius, dtype=torch.float64)
    region = follow(network, inputs.double(), radii, scale).region
    points = ball(inputs, radius, 200, 2)
    for row in range(3):
        values = network.run(points[row])
        assert bool((values >= region.low[row]).all() and (values <= region.high[row]).all())
        moved = ((points[row] - inputs[row].double()) * STD[0]).flatten(1)
        form = region.centre[row] + moved @ region.slope[row].flatten(1)
        assert bool(((values - form).abs() <= region.rest[row] * (1 + 1e-9) + 1e-12).all())
    middle = (region.high - region.low).amax()
    assert float(middle) < math.inf


@pytest.mark.parametrize("name", BUILDERS)
def test_no_attack_succeeds_inside_a_locally_certified_ball(name: str) -> None:
    inputs, labels = digits()
    inputs, labels = inputs[1500:1506], labels[1500:1506]
    certifier = LocalCertifier.of(trained(name), inputs[:1], input_std=STD)
    radii = torch.from_numpy(certifier.certified_radii(inputs, labels, 0.6, halvings=6))
    safe = radii > 0
    assert int(safe.sum()) >= 4
    attacked = (inputs[safe], labels[safe], radii[safe])
    model = trained(name)
    assert not bool(pgd(model, *attacked, steps=40, restarts=3, input_std=STD).success.any())
    assert not bool(direct_search(model, *attacked, steps=40, input_std=STD).success.any())
    beyond = (inputs[safe], labels[safe], 20 * radii[safe])
    broken = pgd(model, *beyond, steps=40, restarts=1, input_std=STD).success
    assert float(broken.double().mean()) > 0.5


@pytest.mark.parametrize("name", BUILDERS)
def test_local_certificates_reach_further_than_the_global_one(name: str) -> None:
    inputs, labels = digits()
    inputs, labels = inputs[1500:1506], labels[1500:1506]
    wide = Certifier.of(trained(name), inputs[:1], input_std=STD)
    overall = wide.certified_radii(wide.margins(inputs, labels))
    certifier = LocalCertifier.of(trained(name), inputs[:1], input_std=STD)
    near = certifier.certified_radii(inputs, labels, 0.6, halvings=6)
    right = overall > 0
    assert np.median(near[right] / overall[right]) > 1.1
    assert (near[~right] == 0).all()
    radius = float(np.median(near))
    holds = certifier.certified(inputs, labels, radius)
    assert (near[holds] >= radius - 2 * 0.6 / 2**6).all()


def test_a_local_bound_of_a_linear_model_is_its_norm_everywhere() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    inputs = torch.randn(5, 3, 2, 2)
    found = local_lipschitz(model, inputs, 0.3, input_std=(0.5, 1.0, 2.0))
    scale = torch.tensor([2.0, 1.0, 0.5]).double().repeat_interleave(4)
    norm = float(torch.linalg.matrix_norm(model[1].weight.detach().double() * scale, 2))
    assert found.upper == pytest.approx(np.full(5, norm), rel=1e-8)
    assert found.lower == pytest.approx(np.full(5, norm), rel=3e-2)
    assert (found.decided == 1).all()


def test_a_small_ball_leaves_the_norm_of_the_linear_region() -> None:
    inputs = digits()[0][1500:1510]
    found = local_lipschitz(trained("mlp"), inputs, 1e-5, input_std=STD)
    double = copy.deepcopy(trained("mlp")).double()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: double(x[None])[0]))(inputs.double())
    flat = jacobians.detach().reshape(10, 10, -1) / STD[0]
    exact = torch.linalg.matrix_norm(flat, 2).numpy()
    np.testing.assert_allclose(found.upper, exact, rtol=1e-3)
    assert found.gain >= 1


def test_bounds_grow_with_the_ball_and_end_at_the_global_one() -> None:
    inputs = digits()[0][1500:1505]
    bounds = [
        local_lipschitz(trained("lenet"), inputs, radius, input_std=STD, work=0).upper
        for radius in (1e-3, 0.02, 0.1, 10.0)
    ]
    assert np.median(bounds[0]) < np.median(bounds[2]) <= np.median(bounds[3])
    overall = lipschitz(trained("lenet"), inputs[:1], input_std=STD, samples=0).upper
    assert bounds[-1].max() <= overall


def test_singular_values_are_bounded_from_above() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 3, 9), (2, 12, 5), (3, 1, 1)):
        matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
        exact = torch.linalg.matrix_norm(matrices, 2)
        bound = spectral_norms(matrices)
        assert bool((exact <= bound).all() and (bound <= exact * (1 + 1e-6)).all())


def test_what_has_no_local_rule_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    with pytest.raises(UnsupportedOpError, match="gelu"):
        local_lipschitz(model, torch.zeros(1, 4), 0.1)


def test_bad_questions_are_refused() -> None:
    inputs, labels = digits()
    model = trained("mlp")
    with pytest.raises(RobustnessError, match="radius"):
        local_lipschitz(model, inputs[:2], 0.0)
    with pytest.raises(RobustnessError, match="radius"):
        local_lipschitz(model, inputs[:2], math.nan)
    certifier = LocalCertifier.of(model, inputs[:1])
    with pytest.raises(RobustnessError, match="inputs must be"):
        certifier.bounds(inputs[:0], 0.1)
    with pytest.raises(RobustnessError, match="not finite"):
        certifier.bounds(inputs[:2] * math.nan, 0.1)
    with pytest.raises(RobustnessError, match="labels"):
        certifier.certified(inputs[:2], torch.tensor([0, 10]), 0.1)
    with pytest.raises(RobustnessError, match="label"):
        certifier.certified(inputs[:2], labels[:3], 0.1)
    with pytest.raises(RobustnessError, match="2 classes"):
        LocalCertifier.of(nn.Linear(3, 1).eval(), torch.zeros(1, 3)).certified(
            torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), 0.1
        )


class Pooled(nn.Module):
    """The larger of a * relu(x_0) and b * relu(x_1), in operations that only move or scale."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor([first, second]))

    def forward(self, x: Tensor) -> Tensor:
        scaled = nn.functional.relu(x * self.factors).flip(1) / 2
        return nn.functional.max_pool1d(scaled[:, None], 2).flatten(1)


@pytest.mark.parametrize("radius", [1e-3, 3.0, 1e300, 1.7e308])
@pytest.mark.parametrize("factors", [(10.0, 50.0), (50.0, 10.0)])
def test_a_ball_too_large_for_floats_is_bounded_by_what_lies_anywhere(
    factors: tuple[float, float], radius: float
) -> None:
    model = Pooled(*factors).eval()
    inputs = torch.tensor([[1.0, 1.0]])
    found = local_lipschitz(model, inputs, radius)
    reached = 25.0 if radius > 2 else max(factors) / 2  # the steep side is always in reach
    assert reached <= found.upper[0] <= found.overall
    certifier = LocalCertifier.of(nn.Sequential(model, nn.Linear(1, 3)).eval(), inputs)
    assert not certifier.certified(inputs, torch.tensor([0]), 1e300).any()
