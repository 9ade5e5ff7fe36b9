"""Blocks bounded as a whole: sound, never above the product, and visible with their names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fedprune import models
from fedprune.robustness import Certifier, chain_bound, lipschitz
from fedprune.robustness.blocks import block_between, dominators, worthwhile_blocks
from fedprune.robustness.composition import BLOCKS, PRODUCT
from fedprune.robustness.tracer import lower

from .networks import small_networks, small_resnet

EXAMPLE = torch.zeros(1, 2, 8, 8)


class Skips(nn.Module):
    """Dense residual blocks, one with its activation behind the addition, and a concatenation."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.third, self.fourth = nn.Linear(width, 4), nn.Linear(width + 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x - 0.5 * self.second(torch.tanh(self.norm(self.first(x)))))
        return self.fourth(torch.cat([x, nn.functional.leaky_relu(self.third(x), 0.1)], dim=1))


class SmallConvolutions(nn.Module):
    """Convolutions, an average pool and a shortcut, all small enough to be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.avg_pool2d(x + self.norm(self.second(x)), 2)
        return self.head(x.permute(0, 2, 3, 1).flatten(1))


def build(kind: type[nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model.eval()


def steepest(model: nn.Module, shape: tuple[int, ...], seed: int) -> float:
    """The largest Jacobian norm over many points of very different sizes, in float64."""
    double = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (3 * torch.rand(60, *[1] * len(shape), generator=generator) - 2)
    points = sizes.double() * torch.randn(60, *shape, generator=generator, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: double(x[None])[0]))(points)
    flat = jacobians.detach().reshape(60, jacobians.shape[1], -1)
    return float(torch.linalg.matrix_norm(flat, 2).max())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "shape"), [(Skips, (6,)), (SmallConvolutions, (2, 8, 8))])
def test_no_jacobian_is_larger_than_a_tightened_bound(
    kind: type[nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    model, example = build(kind, seed), torch.zeros(1, *shape)
    bound = lipschitz(model, example, samples=4)
    loose = lipschitz(model, example, samples=0, tighten=False)
    assert max(steepest(model, shape, seed), bound.lower) <= bound.upper < 0.98 * loose.upper
    assert bound.method == BLOCKS
    assert loose.method == PRODUCT
    assert dict(bound.alternatives) == {PRODUCT: loose.upper, BLOCKS: bound.upper}
    assert loose.alternatives == ((PRODUCT, loose.upper),)
    assert all(block.norm > 0 and block.method for block in bound.blocks)


@pytest.mark.parametrize("name", list(small_networks(0)))
def test_tightening_never_gives_a_larger_bound(name: str) -> None:
    model = small_networks(7)[name]
    tight = lipschitz(model, EXAMPLE, samples=4, iterations=20)
    assert tight.lower <= tight.upper <= lipschitz(model, EXAMPLE, samples=0, tighten=False).upper


def test_a_perceptron_is_bounded_by_lipsdp_of_its_weights() -> None:
    model = models.load("mlp", num_classes=5, input_shape=(1, 4, 4), seed=0).eval()
    weights = [
        module.weight.detach().double().numpy()
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    bound = lipschitz(model, torch.zeros(1, 1, 4, 4), samples=0)
    assert bound.upper == pytest.approx(chain_bound(weights).value, rel=1e-6)
    (block,) = bound.blocks
    assert block.norm == pytest.approx(bound.upper)
    assert block.product == pytest.approx(dict(bound.alternatives)[PRODUCT])


def test_linear_maps_that_follow_each_other_are_multiplied_out() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Identity(), nn.Linear(7, 5)).eval()
    both = (model[2].weight @ model[0].weight).detach().double()
    bound = lipschitz(model, torch.zeros(1, 5), samples=0)
    exact = (model[2].weight.detach().double() @ model[0].weight.detach().double()).numpy()
    assert bound.upper == pytest.approx(float(torch.tensor(exact).svd().S[0]), rel=1e-8)
    assert float(torch.linalg.matrix_norm(both, 2)) <= bound.upper * (1 + 1e-6)


def test_a_residual_branch_that_undoes_its_shortcut_is_seen() -> None:
    class Undone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 4, bias=False)
            self.branch.weight.data = -0.9 * torch.eye(4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    bound = lipschitz(Undone().eval(), torch.zeros(1, 4), samples=0)
    assert bound.upper == pytest.approx(0.1, rel=1e-5)
    assert dict(bound.alternatives)[PRODUCT] == pytest.approx(1.9, rel=1e-5)


def test_an_activation_with_another_largest_slope_keeps_it() -> None:
    for activation, slope in ((nn.Sigmoid(), 0.25), (nn.SELU(), 1.7581), (nn.ReLU(), 1.0)):
        model = nn.Sequential(nn.Linear(1, 1, bias=False), activation, nn.Linear(1, 1)).eval()
        model[0].weight.data.fill_(2.0)
        model[2].weight.data.fill_(3.0)
        bound = lipschitz(model, torch.zeros(1, 1), samples=0)
        assert bound.upper == pytest.approx(6 * slope, rel=1e-6)


def test_an_activation_that_falls_somewhere_is_left_to_the_product() -> None:
    class Absolute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.abs(self.first(x)))

    bound = lipschitz(Absolute().eval(), torch.zeros(1, 4), samples=0)
    assert bound.method == PRODUCT
    assert bound.blocks == ()


def test_a_certificate_uses_the_tightened_bound_of_the_body() -> None:
    model = models.load("mlp", num_classes=5, input_shape=(1, 4, 4), seed=0).eval()
    certifier = Certifier.of(model, torch.zeros(1, 1, 4, 4))
    assert certifier.body_method == BLOCKS
    weights = [m.weight.detach().double() for m in model.modules() if isinstance(m, nn.Linear)]
    norms = [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights[:-1]]
    assert certifier.body_upper < norms[0] * norms[1] * 0.9


def test_every_path_passes_a_nodes_dominator() -> None:
    network = lower(small_resnet(0), EXAMPLE)
    above = dominators(network)
    for name in network.steps:
        block = block_between(network, above[name], name)
        assert network.input not in block.part.steps
        for step in block.part.steps.values():
            assert all(s in block.part.steps or s == above[name] for s in step.inputs)


def test_large_parts_are_not_looked_into() -> None:
    network = lower(models.load("resnet20", seed=0).eval(), torch.zeros(1, 3, 32, 32))
    blocks = worthwhile_blocks(network, [network.output])
    assert all(len(block.part.steps) < 6 for block in blocks)
