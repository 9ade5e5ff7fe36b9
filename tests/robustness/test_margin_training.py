"""The margin loss: the bound it follows is the product bound, and training with it certifies."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from fedprune import models
from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness import Certifier, MarginLoss, certified_accuracy, lipschitz

from .networks import Functional, small_networks, small_resnet

EXAMPLE = torch.zeros(1, 2, 8, 8)


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)
    return pixels[order], torch.from_numpy(labels).long()[order]


@pytest.mark.parametrize("name", ["mlp", "resnet", "branches", "shared"])
def test_after_enough_iterations_the_followed_bound_is_the_product_of_norms(name: str) -> None:
    model = small_networks(2)[name]
    loss = MarginLoss(model, EXAMPLE, 0.1, iterations=60)
    with torch.no_grad():
        followed = float(loss.body_bound())
    network = Certifier.of(model, EXAMPLE)
    exact = network.network.bounds()[network.split]
    assert followed <= exact * (1 + 1e-5)
    # explicit norms above the torus, averages and reflections leave a little room
    assert followed >= exact * 0.9


def test_the_gaps_are_those_of_the_head_times_the_body() -> None:
    model = models.load("mlp", num_classes=5, input_shape=(1, 4, 4), seed=0).train()
    loss = MarginLoss(model, torch.zeros(1, 1, 4, 4), 0.1, input_std=(0.25,), iterations=40)
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    body = 4 * math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in weights[:-1])
    wanted = body * torch.cdist(weights[-1], weights[-1])
    torch.testing.assert_close(loss.gaps().detach(), wanted, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_that_of_the_norms() -> None:
    """Against finite differences of the exact product, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()
    model[1].running_var.uniform_(0.5, 2.0)
    loss = MarginLoss(model, torch.zeros(1, 6), 0.1, iterations=200)
    loss.body_bound().backward()
    slope = model[0].weight.grad.clone()

    def exact(weight: Tensor) -> float:
        scale = model[1].weight / torch.sqrt(model[1].running_var + model[1].eps)
        return float(torch.linalg.matrix_norm((scale[:, None] * weight).detach(), 2))

    weight = model[0].weight.detach()
    for place in ((0, 0), (3, 2), (4, 5)):
        step = torch.zeros_like(weight)
        step[place] = 1e-5
        difference = (exact(weight + step) - exact(weight - step)) / 2e-5
        assert float(slope[place]) == pytest.approx(difference, abs=1e-5)


def test_a_radius_of_zero_is_cross_entropy_and_a_larger_one_costs_more() -> None:
    model = models.load("mlp", num_classes=5, input_shape=(1, 4, 4), seed=0)
    loss = MarginLoss(model, torch.zeros(1, 1, 4, 4), 0.2)
    inputs, labels = torch.randn(7, 1, 4, 4), torch.arange(7) % 5
    logits = model(inputs)
    plain = functional.cross_entropy(logits, labels)
    assert torch.equal(loss(logits, labels, radius=0), plain)
    losses = [float(loss(logits, labels, radius=r).detach()) for r in (0.01, 0.1, 0.2)]
    assert float(plain.detach()) < losses[0] < losses[1] < losses[2]
    assert float(loss(logits, labels).detach()) == pytest.approx(losses[2], rel=1e-3)


def test_the_model_is_left_as_it_was() -> None:
    model = small_resnet(1).train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    loss = MarginLoss(model, EXAMPLE, 0.1)
    labels = torch.tensor([0, 1])
    loss(model.eval()(torch.randn(2, 2, 8, 8)), labels)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    torch.random.set_rng_state(state)
    assert torch.equal(
        MarginLoss(model, EXAMPLE, 0.1).gaps(), MarginLoss(model, EXAMPLE, 0.1).gaps()
    )


def test_removed_units_and_zero_layers_give_no_nan() -> None:
    model = models.load("lenet", num_classes=3, input_shape=(1, 8, 8), seed=0)
    model.conv2.weight.data.zero_()
    loss = MarginLoss(model, torch.zeros(1, 1, 8, 8), 0.1)
    value = loss(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0]))
    value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_training_with_margins_certifies_more_and_keeps_the_accuracy() -> None:
    inputs, labels = digits()
    found = {}
    for radius in (0.0, 0.15):
        model = models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0).train()
        loss_of = MarginLoss(model, inputs[:1], 0.15)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
        for step in range(350):
            rows = torch.arange(64 * step, 64 * step + 64) % 1400
            reach = radius * min(1.0, step / 100)
            loss = loss_of(model(inputs[rows]), labels[rows], radius=reach)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        certifier = Certifier.of(model.eval(), inputs[:1])
        radii = certifier.certified_radii(certifier.margins(inputs[1400:], labels[1400:]))
        found[radius] = certified_accuracy(radii, 0.0), certified_accuracy(radii, 0.2)
    assert found[0.15][0] >= found[0.0][0] - 0.02
    assert found[0.15][1] > found[0.0][1] + 0.1


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(RobustnessError, match="do not belong to a layer"):
        MarginLoss(Functional(), EXAMPLE, 0.1)
    with pytest.raises(RobustnessError, match="radius"):
        MarginLoss(small_resnet(0), EXAMPLE, 0.0)
    with pytest.raises(RobustnessError, match="iterations"):
        MarginLoss(small_resnet(0), EXAMPLE, 0.1, iterations=0)
    with pytest.raises(RobustnessError, match="2 classes"):
        MarginLoss(nn.Linear(3, 1), torch.zeros(1, 3), 0.1)
    with pytest.raises(UnsupportedOpError):
        MarginLoss(nn.Sequential(nn.Linear(4, 4), nn.Softplus()), torch.zeros(1, 4), 0.1)


def test_the_final_certificate_does_not_rest_on_the_followed_bound() -> None:
    model = small_resnet(4)
    loss = MarginLoss(model, EXAMPLE, 0.1)
    with torch.no_grad():
        assert float(loss.body_bound()) <= lipschitz(model, EXAMPLE, samples=0).upper * 1e3
    certifier = Certifier.of(model, EXAMPLE)
    assert certifier.body_upper == Certifier.of(copy.deepcopy(model), EXAMPLE).body_upper


class Joined(nn.Module):
    """A transposed convolution with two batch norms, stacked, and the larger of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 3, 2, 1)
        self.norms = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
        self.head = nn.Linear(65, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norms(self.up(x))
        stacked = torch.stack([torch.maximum(hidden, -2 * hidden), hidden], 2)
        return self.head(stacked.flatten(1)[:, ::5])


def test_every_way_of_joining_and_every_layer_with_weights_is_followed() -> None:
    torch.manual_seed(0)
    model = Joined()
    for norm in model.norms:
        norm.running_var.uniform_(0.2, 2.0)
        norm.weight.data.uniform_(0.5, 2.0)
    example = torch.zeros(1, 2, 5, 5)
    loss = MarginLoss(model, example, 0.1, iterations=100)
    model.eval()
    for factor in (1.0, 3.0):  # the weights are live
        model.up.weight.data.mul_(factor)
        network = Certifier.of(model, example)
        exact = network.network.bounds()[network.split]
        assert float(loss.body_bound().detach()) == pytest.approx(exact, rel=0.02)
