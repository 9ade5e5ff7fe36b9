"""Pairs of points climb to steeper places than Jacobians at samples show, and never too high."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprune.robustness import lipschitz
from fedprune.robustness.lower import lower_bound


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)]
    return nn.Sequential(*layers).eval()


def found(model: nn.Module, scale: torch.Tensor | None = None) -> float:
    return lower_bound(model, torch.zeros(1, 6), None, scale, samples=12, iterations=15, seed=3)


def test_climbing_finds_steeper_places_and_stays_below_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = []
    for seed in range(5):
        model = network(seed)
        climbed = found(model)
        with monkeypatch.context() as still:
            still.setattr("fedprune.robustness.lower.ASCENT_STEPS", 0)
            gains.append(climbed / found(model))
        assert climbed <= lipschitz(model, torch.zeros(1, 6), samples=0).upper
    assert min(gains) >= 1
    assert max(gains) > 1.05


def test_units_of_the_unnormalised_input_carry_over() -> None:
    """f(s x) is steeper than f by the very s, wherever one looks."""
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    norm = float(torch.linalg.matrix_norm(model[0].weight.detach().double(), 2))
    scale = torch.full((6,), 4.0)
    assert found(model, scale) == pytest.approx(4 * norm, rel=1e-4)
    assert found(model, scale) <= 4 * norm * (1 + 1e-9)


def test_a_network_that_blows_up_on_the_way_is_no_trouble() -> None:
    class Bursting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0.5, torch.inf, x)

    slope = found(Bursting().eval())
    assert 0.9 < slope <= 1 + 1e-6


@pytest.mark.parametrize("offset", [1e6, 1e8, 1e10])
def test_large_outputs_that_hardly_vary_do_not_look_steep(offset: float) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 3)).eval()
        with torch.no_grad():
            model[0].weight *= 1e-3
            model[0].bias += offset
        assert found(model) <= lipschitz(model, torch.zeros(1, 6), samples=0).upper
