"""Pairs of points climb to steeper places than Jacobians at samples show, and never too high."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprune.robustness import lipschitz
from fedprune.robustness.lower import lower_bound
from fedprune.robustness.tracer import lower


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)]
    return nn.Sequential(*layers).eval()


def found(model: nn.Module, scale: torch.Tensor | None = None) -> float:
    centre = torch.zeros(1, 6)
    options = {"samples": 12, "iterations": 15, "seed": 3}
    return lower_bound(model, lower(model, centre), centre, None, scale, **options)


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


def test_slopes_too_large_for_float32_are_found_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False)).double().eval()
    with torch.no_grad():
        for layer in model:
            layer.weight *= 1e25
    product = model[1].weight.detach() @ model[0].weight.detach()
    norm = float(torch.linalg.matrix_norm(product, 2))
    assert found(model) == pytest.approx(norm, rel=1e-4)
    assert found(model) <= norm * (1 + 1e-12)


def test_weights_that_float32_would_round_are_those_of_the_network_itself() -> None:
    """1e8 + 4.5 is 1e8 + 8 in float32: the slope of that other network is 8."""
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, 0] = 1.0
        model[1].weight.copy_(torch.tensor([[1e8 + 4.5, -1e8]], dtype=torch.float64))
    assert found(model) == pytest.approx(4.5, rel=1e-5)


def test_large_values_that_cancel_inside_do_not_look_steep() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e11) - 1e11

    assert 0.9 < found(Shifted().eval()) <= 1.0
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
        with torch.no_grad():
            model[0].bias.fill_(3e8)
            model[1].running_mean.copy_(model[0].bias)
        assert found(model) <= lipschitz(model, torch.zeros(1, 6), samples=0).upper


@pytest.mark.parametrize("offset", [1e6, 1e8, 1e10])
def test_large_outputs_that_hardly_vary_do_not_look_steep(offset: float) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 3)).eval()
        with torch.no_grad():
            model[0].weight *= 1e-3
            model[0].bias += offset
        assert found(model) <= lipschitz(model, torch.zeros(1, 6), samples=0).upper
