"""No attack succeeds inside a certified ball, and the radii are what the formula says."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness import (
    Certifier,
    certified_accuracy,
    certified_curve,
    certified_interval,
    certified_radii,
    direct_search,
    lipschitz,
    pgd,
)
from fedprune.robustness.certificates import PAIRWISE, SQRT2

from .networks import small_networks, small_resnet

STD = (0.3,)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] divided by STD: [1797, 1, 8, 8], and labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)
    return pixels / STD[0], torch.from_numpy(labels).long()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


BUILDERS = {"mlp": _mlp, "cnn": _cnn}


@cache
def trained(name: str) -> nn.Module:
    """A network trained on digits with weight decay, so that its certificates are not empty."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]()
    inputs, labels = digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(inputs[:1400]), labels[:1400])
        decay = sum((p**2).sum() for p in model.parameters())
        optimiser.zero_grad()
        (loss + 3e-3 * decay).backward()
        optimiser.step()
    return model.eval()


@cache
def certified(name: str) -> tuple[Tensor, Tensor, np.ndarray]:
    inputs, labels = digits()
    inputs, labels = inputs[1400:1600], labels[1400:1600]
    certifier = Certifier.of(trained(name), inputs[:1], input_std=STD)
    return inputs, labels, certifier.certified_radii(certifier.margins(inputs, labels))


@pytest.mark.parametrize("name", BUILDERS)
def test_no_attack_succeeds_inside_a_certified_ball(name: str) -> None:
    inputs, labels, radii = certified(name)
    safe = torch.from_numpy(radii > 0)
    assert int(safe.sum()) > 150
    ball = (inputs[safe], labels[safe], torch.from_numpy(radii)[safe])
    model = trained(name)
    attacks = [
        pgd(model, *ball, steps=30, restarts=3, input_std=STD),
        direct_search(model, *ball, steps=60, input_std=STD),
    ]
    for attack in attacks:
        assert not bool(attack.success.any())
        assert bool((attack.distance <= ball[2]).all())
        moved = (attack.adversarial - ball[0].double()).flatten(1).norm(dim=1) * STD[0]
        torch.testing.assert_close(moved, attack.distance, rtol=1e-6, atol=1e-9)
        with torch.no_grad():
            predicted = copy.deepcopy(model).double()(attack.adversarial).argmax(1)
        assert torch.equal(predicted, ball[1])


@pytest.mark.parametrize("attack", [pgd, direct_search])
def test_the_attacks_do_break_larger_balls(attack: object) -> None:
    inputs, labels, radii = certified("mlp")
    safe = torch.from_numpy(radii > 0)
    far = 20 * torch.from_numpy(radii)[safe]
    assert callable(attack)
    result = attack(trained("mlp"), inputs[safe], labels[safe], far, steps=40, input_std=STD)
    assert float(result.success.double().mean()) > 0.8


def test_a_certificate_of_a_linear_model_is_the_distance_to_its_boundary() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    inputs = torch.randn(50, 3, 2, 2)
    labels = model(inputs).argmax(1)
    certifier = Certifier.of(model, inputs[:1], input_std=(0.5, 0.5, 0.5))
    radii = certifier.certified_radii(certifier.margins(inputs, labels))
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    logits = inputs.double().flatten(1) @ weight.T + bias
    for row, label in enumerate(labels):
        distances = [
            float((logits[row, label] - logits[row, j]) / (weight[label] - weight[j]).norm()) * 0.5
            for j in range(4)
            if j != label
        ]
        assert radii[row] == pytest.approx(min(distances), rel=1e-9)
        assert radii[row] <= min(distances)


def test_unequal_normalisation_is_safe_for_a_linear_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2).eval()
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    model.bias.data.zero_()
    certifier = Certifier.of(model, torch.zeros(1, 2), input_std=(0.01, 1.0))
    radius = certifier.certified_radii(
        certifier.margins(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    )[0]
    assert 0 < radius <= 0.01


def test_pairwise_radii_are_never_below_those_from_the_whole_networks_bound() -> None:
    inputs, labels, radii = certified("mlp")
    model = trained("mlp")
    upper = lipschitz(model, inputs[:1], input_std=STD, samples=0).upper
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(inputs.double()).numpy()
    right = logits.argmax(1) == labels.numpy()
    top = np.sort(logits, axis=1)
    plain = (top[:, -1] - top[:, -2]) / (math.sqrt(2) * upper)
    assert (radii[right] >= plain[right] * (1 - 1e-9)).all()
    assert np.median(radii[right] / plain[right]) > 1.05


def test_margins_are_not_positive_where_the_prediction_is_wrong() -> None:
    inputs = certified("mlp")[0]
    certifier = Certifier.of(trained("mlp"), inputs[:1])
    with torch.no_grad():
        predicted = trained("mlp")(inputs).argmax(1)
    wrong = (predicted + 1) % 10
    assert (certifier.margins(inputs, wrong) <= 0).all()
    right = certifier.margins(inputs, predicted)
    assert (right > 0).all()


def test_stored_margins_and_a_recomputed_bound_give_the_same_radii() -> None:
    inputs, labels, radii = certified("cnn")
    certifier = Certifier.of(trained("cnn"), inputs[:1], input_std=STD)
    stored = certifier.margins(inputs, labels, batch_size=7)
    other_example = torch.ones_like(inputs[:1])
    again = Certifier.of(copy.deepcopy(trained("cnn")), other_example, input_std=STD).body_upper
    assert again == certifier.body_upper
    np.testing.assert_allclose(certified_radii(stored, again), radii, rtol=1e-9)


def test_a_network_without_a_linear_head_uses_its_whole_bound_and_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU()).eval()
    inputs, labels = digits()
    certifier = Certifier.of(model, inputs[:1])
    assert certifier.method == SQRT2
    assert Certifier.of(trained("mlp"), inputs[:1]).method == PAIRWISE
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(inputs.double())
    labels = logits.argmax(1)
    top = logits.sort(dim=1).values
    gaps = ((top[:, -1] - top[:, -2]) / math.sqrt(2)).numpy()
    margins = certifier.margins(inputs, labels)
    np.testing.assert_allclose(margins, gaps, atol=1e-9)
    assert (margins <= gaps).all()
    assert certifier.body_upper == lipschitz(model, inputs[:1], samples=0).upper


@pytest.mark.parametrize("name", list(small_networks(0)))
def test_random_networks_keep_their_certificates(name: str) -> None:
    model = small_networks(1)[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 2, 8, 8, generator=generator)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    certifier = Certifier.of(model, inputs[:1], input_std=(0.5, 2.0))
    radii = torch.from_numpy(certifier.certified_radii(certifier.margins(inputs, labels)))
    safe = radii > 0
    ball = (inputs[safe], labels[safe], radii[safe])
    attack = pgd(model, *ball, steps=20, restarts=2, input_std=(0.5, 2.0))
    search = direct_search(model, *ball, steps=20, input_std=(0.5, 2.0))
    assert not bool(attack.success.any() or search.success.any())


def test_identical_rows_of_the_head_are_decided_by_their_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[2].weight.data[1] = model[2].weight.data[0]
    model[2].bias.data = torch.tensor([1.0, 0.0])
    certifier = Certifier.of(model, torch.zeros(1, 3))
    margins = certifier.margins(torch.randn(2, 3), torch.tensor([0, 1]))
    assert margins[0] > 1e6
    assert margins[1] < 0


def test_certified_accuracy_counts_strictly_larger_radii_and_falls_with_the_radius() -> None:
    radii = np.array([-1.0, 0.0, 0.1, 0.1, 0.3])
    assert certified_accuracy(radii, 0.0) == 3 / 5
    assert certified_accuracy(radii, 0.1) == 1 / 5
    shares = [certified_accuracy(radii, r) for r in np.linspace(0, 0.5, 50)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("certified_rows", [0, 1, 7, 20])
def test_the_interval_is_that_of_clopper_and_pearson(certified_rows: int) -> None:
    radii = np.where(np.arange(20) < certified_rows, 1.0, 0.0)
    wanted = stats.binomtest(certified_rows, 20).proportion_ci(0.9, "exact")
    found = certified_interval(radii, 0.5, confidence=0.9)
    assert found == pytest.approx((wanted.low, wanted.high))


def test_radii_are_rounded_down() -> None:
    radius = certified_radii(np.array([1.0, -1.0, np.inf]), 3.0)
    assert radius[0] < 1 / 3 or radius[0] * 3 <= 1
    assert radius[1] <= 0
    assert certified_radii(np.array([1e300]), 1e-300)[0] < np.inf


def test_bad_questions_are_refused() -> None:
    model = trained("mlp")
    inputs, labels = digits()
    certifier = Certifier.of(model, inputs[:1])
    few = (inputs[:3], labels[:3])
    with pytest.raises(RobustnessError, match="n at least 1"):
        certifier.margins(inputs[:0], labels[:0])
    with pytest.raises(RobustnessError, match="labels must be integers"):
        certifier.margins(few[0], torch.tensor([0, 1, 10]))
    with pytest.raises(RobustnessError, match="inputs must be"):
        certifier.margins(few[0][:, :, :4], few[1])
    with pytest.raises(RobustnessError, match="not finite"):
        certifier.margins(few[0] * math.nan, few[1])
    with pytest.raises(RobustnessError, match="no examples"):
        certified_accuracy(np.array([]), 0.1)
    with pytest.raises(RobustnessError, match="radius"):
        certified_accuracy(np.array([1.0]), -0.1)
    with pytest.raises(RobustnessError, match="NaN"):
        certified_radii(np.array([np.nan]), 1.0)
    with pytest.raises(RobustnessError, match="body_upper"):
        certified_radii(np.array([1.0]), 0.0)
    with pytest.raises(RobustnessError, match="at least 2 classes"):
        Certifier.of(nn.Linear(3, 1).eval(), torch.zeros(1, 3))
    with pytest.raises(RobustnessError, match="radius"):
        pgd(model, *few, torch.tensor([0.1, -1.0, 0.1]))


def test_a_smaller_claimed_bound_is_broken_by_the_attacks() -> None:
    """The soundness tests can fail: a bound twenty times too small does not survive them."""
    inputs, labels, _ = certified("mlp")
    honest = Certifier.of(trained("mlp"), inputs[:1], input_std=STD)
    false = replace(honest, body_upper=honest.body_upper / 20)
    radii = torch.from_numpy(false.certified_radii(false.margins(inputs, labels))).clamp_min(0)
    attack = pgd(trained("mlp"), inputs, labels, radii, steps=20, restarts=1, input_std=STD)
    assert bool(attack.success[radii > 0].any())


def test_a_residual_network_keeps_its_head_in_the_certificate() -> None:
    certifier = Certifier.of(small_resnet(0), torch.zeros(1, 2, 8, 8))
    assert certifier.method == PAIRWISE
    assert certifier.split == "flatten" or certifier.split in certifier.network.steps


def test_a_curve_is_certified_accuracy_and_its_interval_radius_by_radius() -> None:
    radii = np.array([-1.0, 0.05, 0.1, 0.2, 0.4, 0.4])
    at = (0.0, 0.1, 0.3)
    standing = [radii > radius * 0.5 for radius in at]
    curve = certified_curve(radii, at, survived=standing, confidence=0.9)
    assert curve.certified == tuple(certified_accuracy(radii, radius) for radius in at)
    for low, high, radius in zip(curve.low, curve.high, at, strict=True):
        assert (low, high) == certified_interval(radii, radius, confidence=0.9)
    assert curve.found_accurate == tuple(float(one.mean()) for one in standing)
    assert (curve.examples, curve.confidence) == (6, 0.9)
    assert certified_curve(radii, at).found_accurate is None


def test_a_curve_refuses_an_attack_that_broke_a_certificate() -> None:
    radii = np.array([0.2, 0.3])
    with pytest.raises(RobustnessError, match="certificates are wrong"):
        certified_curve(radii, [0.1], survived=[np.array([True, False])])
    with pytest.raises(RobustnessError, match="one array"):
        certified_curve(radii, [0.1], survived=[np.array([True])])
