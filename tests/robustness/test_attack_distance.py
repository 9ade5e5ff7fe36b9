"""Distances at which attacks succeed lie beyond what is certified, and where they must."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fedprune import robustness
from fedprune.errors import RobustnessError


def network(*widths: int) -> nn.Module:
    layers = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Linear(before, after), nn.ReLU())
    ]
    return nn.Sequential(*layers[:-1]).eval()


def test_a_linear_classifiers_distances_are_those_to_its_plane() -> None:
    model = network(6, 2)
    inputs = torch.randn(80, 6)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
        weight, bias = (tensor.double() for tensor in (model[0].weight, model[0].bias))
        slope, offset = weight[0] - weight[1], bias[0] - bias[1]
        wanted = ((inputs.double() @ slope + offset).abs() / slope.norm()).numpy()
    found = robustness.attack_distances(model, inputs, labels, [0.1, 1.0, 10.0, 100.0])
    # Ten times the radius, halved twelve times, leaves 10 / 4096 of the distance at most.
    assert np.allclose(found, wanted, rtol=10 / 2**12)
    assert np.all(found >= wanted * (1 - 1e-9))


def test_a_normalised_input_is_measured_before_its_normalisation() -> None:
    model, std = network(4, 2), torch.tensor([0.5, 2.0, 0.25, 1.0])
    inputs = torch.randn(20, 4)
    labels = model(inputs).argmax(dim=1)
    folded = network(4, 2)
    folded.load_state_dict(
        {k: v / std if v.ndim == 2 else v for k, v in model.state_dict().items()}
    )
    own = robustness.attack_distances(model, inputs, labels, [50.0], input_std=std.tolist())
    raw = robustness.attack_distances(folded, inputs * std, labels, [50.0])
    assert np.allclose(own, raw, rtol=1e-3)


def test_no_attack_comes_nearer_than_a_certificate_and_wrong_examples_are_at_zero() -> None:
    model, inputs = network(5, 16, 16, 3), torch.randn(150, 5)
    labels = torch.randint(0, 3, (150,))
    certifier = robustness.Certifier.of(model, inputs[:1])
    radii = robustness.certified_radii(certifier.margins(inputs, labels), certifier.body_upper)
    found = robustness.attack_distances(model, inputs, labels, [0.5, 2.0, 8.0], restarts=2)
    right = (model(inputs).argmax(dim=1) == labels).numpy()
    assert np.array_equal(found == 0, ~right)
    assert np.all(found[right] >= radii[right])
    assert np.isfinite(found).mean() > 0.5


def test_a_larger_ball_never_takes_a_nearer_input_back() -> None:
    model, inputs = network(5, 16, 3), torch.randn(70, 5)
    labels = model(inputs).argmax(dim=1)
    small = robustness.attack_distances(model, inputs, labels, [0.3])
    both = robustness.attack_distances(model, inputs, labels, [3.0, 0.3])
    assert np.array_equal(both[np.isfinite(small)], small[np.isfinite(small)])
    assert np.all(small[np.isfinite(small)] <= 0.3)
    assert np.isfinite(both).sum() > np.isfinite(small).sum()


def test_what_keeps_inputs_in_their_range_cannot_break_what_only_outside_breaks() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=True)).eval()
    model[0].weight.data = torch.tensor([[1.0], [0.0]])
    model[0].bias.data = torch.tensor([0.5, 0.0])  # class 0 above -0.5, which no input in [0, 1] is
    inputs, labels = torch.rand(10, 1), torch.zeros(10, dtype=torch.int64)
    free = robustness.attack_distances(model, inputs, labels, [2.0])
    kept = robustness.attack_distances(model, inputs, labels, [2.0], input_range=(0.0, 1.0))
    assert np.isfinite(free).all()
    assert np.isinf(kept).all()


def test_no_radii_and_no_examples_are_refused() -> None:
    model, inputs = network(3, 2), torch.randn(4, 3)
    with pytest.raises(RobustnessError, match="at least one radius"):
        robustness.attack_distances(model, inputs, torch.zeros(4, dtype=torch.int64), [])
    with pytest.raises(RobustnessError, match="inputs"):
        robustness.attack_distances(model, inputs[:0], torch.zeros(0, dtype=torch.int64), [1.0])
