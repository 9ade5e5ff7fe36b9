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


BALL = (torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.ones(3))

BAD_ATTACKS: list[tuple[str, tuple[Any, ...], str]] = [
    ("labels outside", (BALL[0], BALL[1] + 1, BALL[2]), "integers in .0, 3., got 1 to 3"),
    (
        "labels as floats",
        (BALL[0], BALL[1].double(), BALL[2]),
        "one integer for each of 3 inputs, got torch.float64",
    ),
    ("inputs not finite", (BALL[0] * math.nan, *BALL[1:]), "not finite"),
    ("no inputs", (BALL[0][:0], BALL[1][:0], BALL[2][:0]), "n at least 1"),
]


@pytest.mark.parametrize("attack", [pgd, direct_search])
def test_an_attack_that_could_not_succeed_is_refused(attack: Any) -> None:
    """A comparison with NaN is false, which would pass for a robust model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    for _, ball, why in BAD_ATTACKS:
        with pytest.raises(RobustnessError, match=why):
            attack(model, *ball)
    with pytest.raises(RobustnessError, match="steps"):
        attack(model, *BALL, steps=0)
    with pytest.raises(RobustnessError, match="train mode"):
        attack(nn.Sequential(nn.Linear(4, 3)), *BALL)
    with pytest.raises(RobustnessError, match="2 classes"):
        attack(nn.Linear(4, 1).eval(), *BALL)
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(RobustnessError, match=r"'0\.weight' of the model has values that are not"):
        attack(model, *BALL)


def test_labels_of_any_integer_format_are_the_same_to_certificates_and_attacks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh()).eval()
    inputs, labels = torch.randn(2, 4), torch.tensor([1, 1])
    certifier = Certifier.of(model, inputs[:1])
    wanted = certifier.margins(inputs, labels)
    for kind in (torch.bool, torch.uint8, torch.int32):
        assert (certifier.margins(inputs, labels.to(kind)) == wanted).all()
        ball = (inputs, labels.to(kind), torch.full((2,), 0.1))
        assert pgd(model, *ball, steps=2, restarts=1).success.tolist() == (wanted < 0).tolist()
