"""Inputs stay in their stated range, or are refused by name; attacks find what can be found."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fedprune.errors import RobustnessError
from fedprune.robustness import Certifier, check_range, direct_search, lipschitz, pgd
from fedprune.robustness import lower as lower_module

from .networks import small_resnet


def test_inputs_outside_the_stated_range_are_named() -> None:
    inputs = torch.rand(4, 2, 3, 3)
    low, high = check_range(inputs, (0.0, 1.0))
    assert float(low) == 0.0
    assert float(high) == 1.0
    assert check_range(inputs, ([-1.0, 0.0], [1.0, 2.0]))[0].shape == (2, 1, 1)
    for bad in (1.5, -0.1, math.nan, math.inf):
        wrong = inputs.clone()
        wrong[2, 1, 0, 0] = bad
        with pytest.raises(RobustnessError, match=r"input 2 has the value .* outside"):
            check_range(wrong, (0.0, 1.0))
    with pytest.raises(RobustnessError, match="outside the stated range"):
        check_range(inputs + 1.5, ([0.0, 0.0], [1.0, 9.0]))
    for empty in ((1.0, 0.0), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(RobustnessError, match="input_range"):
            check_range(inputs, empty)
    with pytest.raises(RobustnessError, match="each of the 2 channels"):
        check_range(inputs, ([0.0] * 3, [1.0] * 3))


@pytest.mark.parametrize("attack", [pgd, direct_search])
def test_attacks_keep_to_range_and_ball(attack: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    inputs, labels = torch.rand(20, 3, 2, 2), torch.randint(0, 3, (20,))
    radii = torch.full((20,), 0.8, dtype=torch.float64)
    std = (0.5, 1.0, 2.0)
    ball = (inputs, labels, radii)
    found = attack(model, *ball, steps=20, input_std=std, input_range=(0.0, [1.0, 1.2, 1.0]))
    high = torch.tensor([1.0, 1.2, 1.0], dtype=torch.float64)[:, None, None]
    assert bool((found.adversarial >= -1e-12).all())
    assert bool((found.adversarial <= high + 1e-12).all())
    assert bool((found.distance <= radii).all())
    free = attack(model, *ball, steps=20, input_std=std)
    assert bool((free.success | ~found.success).all())
    with pytest.raises(RobustnessError, match="stated range"):
        attack(model, *ball, input_range=(0.0, 0.5))


def test_certificates_of_linear_classifiers_fall_just_outside_and_never_inside() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 4)).eval()
    inputs = torch.randn(60, 10)
    labels = model(inputs).argmax(1)
    certifier = Certifier.of(model, inputs[:1])
    radii = torch.from_numpy(certifier.certified_radii(certifier.margins(inputs, labels)))
    inside = direct_search(model, inputs, labels, radii, steps=40).success
    inside |= pgd(model, inputs, labels, radii, steps=40, restarts=2).success
    assert not bool(inside.any())
    outside = direct_search(model, inputs, labels, 1.001 * radii, steps=40).success
    assert float(outside.double().mean()) > 0.95


def test_lower_bounds_do_not_depend_on_how_many_points_share_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example = small_resnet(0), torch.zeros(1, 2, 8, 8)
    together = lipschitz(model, example, samples=6, tighten=False).lower
    monkeypatch.setattr(lower_module, "MAX_PASS_BYTES", 1)
    assert lower_module._points_per_pass(model, example) == 1
    alone = lipschitz(model, example, samples=6, tighten=False).lower
    assert alone == pytest.approx(together, rel=0.02)
