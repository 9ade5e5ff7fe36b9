"""The upper bound is never below what is found, and what cannot be bounded is refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from fedprune import models
from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness import lipschitz
from fedprune.robustness.tracer import lower

from .networks import Shared, randomise, small_networks, small_resnet

EXAMPLE = torch.zeros(1, 2, 8, 8)
NAMES = list(small_networks(0))


def secant(model: nn.Module, shape: tuple[int, ...], seed: int, std: float = 1.0) -> float:
    """The steepest of many secants, in float64: a lower bound that shares no code with ours."""
    generator = torch.Generator().manual_seed(seed)
    double = copy.deepcopy(model).double()
    start = torch.randn(300, *shape, generator=generator, dtype=torch.float64)
    size = 10 ** (4 * torch.rand(300, *[1] * len(shape), generator=generator) - 3)
    step = size * torch.randn(300, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        moved = (double(start + step / std) - double(start)).flatten(1).norm(dim=1)
    return float((moved / step.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_the_upper_bound_is_never_below_what_is_found(name: str, seed: int) -> None:
    model = small_networks(seed)[name]
    bound = lipschitz(model, EXAMPLE, samples=6, seed=seed)
    assert 0 < bound.lower <= bound.upper < math.inf
    assert secant(model, (2, 8, 8), seed) <= bound.upper
    assert bound.ratio == bound.upper / bound.lower
    assert all(op.norm >= 0 and op.method for op in bound.per_op)


@pytest.mark.parametrize("name", NAMES)
def test_a_lowered_network_computes_what_the_model_computes(name: str) -> None:
    model = small_networks(3)[name]
    network = lower(model, EXAMPLE)
    inputs = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(inputs)
    torch.testing.assert_close(network.run(inputs), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_the_error_bound_covers_the_distance_from_exact_rational_arithmetic(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    inputs = torch.randn(4, 9)
    evaluation = lower(model.eval(), inputs[:1]).evaluate(inputs.double())
    for row, found, error in zip(inputs, evaluation.outputs, evaluation.errors, strict=True):
        exact = [Fraction(value) for value in row.tolist()]
        for layer in model:
            exact = _exact_layer(layer, exact)
        gap = sum((Fraction(f) - e) ** 2 for f, e in zip(found.tolist(), exact, strict=True))
        assert 0 < gap <= Fraction(float(error)) ** 2
        assert error < 1e-12


def _exact_layer(layer: nn.Module, values: list[Fraction]) -> list[Fraction]:
    if isinstance(layer, nn.ReLU):
        return [max(value, Fraction(0)) for value in values]
    assert isinstance(layer, nn.Linear)
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [
        sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(bias))
        for row, bias in rows
    ]


@pytest.mark.parametrize("name", NAMES)
def test_two_orders_of_the_same_computation_differ_by_less_than_the_error_bound(name: str) -> None:
    model = small_networks(2)[name]
    inputs = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    evaluation = lower(model, EXAMPLE).evaluate(inputs)
    with torch.no_grad():
        unfolded = copy.deepcopy(model).double()(inputs)
    gaps = (unfolded - evaluation.outputs).flatten(1).norm(dim=1).numpy()
    assert (gaps <= 2 * evaluation.errors).all()
    assert (evaluation.errors < 1e-9).all()


def test_batch_norm_is_folded_only_where_nothing_else_reads_its_input() -> None:
    shared = lipschitz(randomise(Shared(), 0), EXAMPLE, samples=0)
    assert "batch_norm" in [op.op for op in shared.per_op]
    folded = lipschitz(small_resnet(0), EXAMPLE, samples=0)
    assert [op.op for op in folded.per_op].count("conv2d+batch_norm") == 5
    assert "batch_norm" not in [op.op for op in folded.per_op]


def test_the_bound_of_a_residual_block_is_one_plus_its_branch() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    model = Skip().eval()
    norm = float(torch.linalg.matrix_norm(model.branch.weight.detach().double(), 2))
    bound = lipschitz(model, torch.zeros(1, 6), tighten=False)
    assert bound.upper == pytest.approx(1 + norm, rel=1e-12)


def test_concatenation_takes_the_root_of_the_sum_of_squares() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((3 * x, x * 4), dim=-1)

    bound = lipschitz(Twice().eval(), torch.zeros(1, 6))
    assert 5.0 <= bound.upper == pytest.approx(5.0, rel=1e-12)
    assert bound.lower == pytest.approx(5.0)


def test_a_linear_network_is_bounded_tightly_from_both_sides() -> None:
    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(128, 7)), 1)
    bound = lipschitz(model, EXAMPLE, iterations=60)
    assert 1.0 <= bound.ratio <= 1.001


@pytest.mark.parametrize("std", [(0.25, 0.5), (0.5,)])
@pytest.mark.parametrize("name", NAMES)
def test_bounds_in_pixels_hold_for_the_model_behind_its_normalisation(
    name: str, std: tuple[float, ...]
) -> None:
    model = small_networks(4)[name]
    bound = lipschitz(model, EXAMPLE, input_std=std)

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer(
                "factor", 1 / torch.tensor(std, dtype=torch.float64)[:, None, None]
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x * self.factor)

    whole = Normalised().eval()
    assert bound.lower <= bound.upper
    assert secant(whole, (2, 8, 8), 0) <= bound.upper
    assert bound.upper <= lipschitz(whole, EXAMPLE, samples=0).upper * (1 + 1e-9)


def test_folding_the_normalisation_is_tighter_than_multiplying_by_the_largest_factor() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(128, 2)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 4.0]])[:, :, None, None]
    plain = lipschitz(model, EXAMPLE, samples=0, tighten=False).upper
    folded = lipschitz(model, EXAMPLE, samples=0, input_std=(0.25, 1.0), tighten=False)
    assert folded.upper == pytest.approx(plain)


@pytest.mark.parametrize("name", ["lenet", "mlp", "resnet20", "resnet32"])
def test_the_networks_of_this_package_are_bounded(name: str) -> None:
    model = models.load(name, seed=0)
    shape = models.default_input_shape(name)
    bound = lipschitz(model, torch.zeros(1, *shape), samples=2, iterations=4)
    assert 0 < bound.lower <= bound.upper < math.inf


def test_more_inputs_never_lower_the_lower_bound() -> None:
    model = small_resnet(0)
    few = lipschitz(model, EXAMPLE, samples=3).lower
    generator = torch.Generator().manual_seed(1)
    more = torch.randn(40, 2, 8, 8, generator=generator)
    assert lipschitz(model, EXAMPLE, samples=3, lower_inputs=more).lower >= few * 0.999
    assert lipschitz(model, EXAMPLE, samples=0).lower == 0.0


def test_the_same_seed_gives_the_same_bounds_and_the_model_is_left_alone() -> None:
    model = small_resnet(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    assert lipschitz(model, EXAMPLE, seed=3) == lipschitz(model, EXAMPLE, seed=3)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class _Named(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.odd_one = layer
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd_one(x))


class _Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class _BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class _Merge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]).flatten()


def refused() -> Iterator[tuple[nn.Module, str, str]]:
    yield _Named(nn.Hardshrink()), "odd_one", "Hardshrink"
    yield _Named(nn.Softplus()), "odd_one", "Softplus"
    yield _Named(nn.BatchNorm1d(8, track_running_stats=False)), "odd_one", "BatchNorm1d"
    yield _Product(), "mul", "mul"
    yield _BatchMean(), "mean", "mean"
    yield _Merge(), "cat", "cat"


@pytest.mark.parametrize(("model", "node", "operation"), list(refused()))
def test_an_operation_without_a_rule_is_named_with_its_node(
    model: nn.Module, node: str, operation: str
) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        lipschitz(model.eval(), torch.zeros(1, 8))
    assert repr(node) in str(caught.value)
    assert repr(operation) in str(caught.value)


def test_train_mode_is_refused_even_of_one_layer() -> None:
    model = small_resnet(0)
    model[1].train()
    with pytest.raises(RobustnessError, match=r"'1' is in train mode"):
        lipschitz(model, EXAMPLE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    model = small_resnet(0)
    model[3].second_norm.running_mean[1] = bad
    with pytest.raises(RobustnessError, match=r"3\.second_norm\.running_mean"):
        lipschitz(model, EXAMPLE)


def test_hooks_are_refused() -> None:
    model = small_resnet(0)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RobustnessError, match="hooks"):
        lipschitz(model, EXAMPLE)


def test_data_dependent_control_flow_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else 2 * x

    with pytest.raises(RobustnessError, match="cannot be traced"):
        lipschitz(Branching().eval(), torch.zeros(1, 8))


def test_an_in_place_change_that_the_graph_does_not_show_is_noticed() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x * 1.0
            return self.relu(hidden) + hidden

    with pytest.raises(RobustnessError, match="does not compute"):
        lipschitz(Overwriting().eval(), torch.zeros(1, 8))


@pytest.mark.parametrize("shape", [(2, 8), (8,), (0, 8)])
def test_an_example_that_is_not_one_row_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RobustnessError, match=r"\[1, \.\.\.\]"):
        lipschitz(nn.Linear(8, 2).eval(), torch.zeros(shape))


@pytest.mark.parametrize("std", [(0.1, 0.0), (0.1, math.nan), (0.1, 0.2, 0.3), (-1.0,)])
def test_a_normalisation_that_cannot_be_is_refused(std: tuple[float, ...]) -> None:
    with pytest.raises(RobustnessError, match="input_std"):
        lipschitz(small_resnet(0), EXAMPLE, input_std=std)


def test_a_pruned_to_zero_network_has_a_bound_of_nearly_zero() -> None:
    model = small_resnet(0)
    model[-1].weight.data.zero_()
    bound = lipschitz(model, EXAMPLE)
    assert bound.upper < 1e-100
    assert bound.lower == 0.0
    assert math.isinf(bound.ratio)


def test_a_subclass_that_inherits_forward_counts_as_its_base_and_one_that_does_not_is_opened() -> (
    None
):
    class Plain(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    plain, doubled = Plain(5, 4), Doubled(5, 4)
    doubled.load_state_dict(plain.state_dict())
    bounds = [
        lipschitz(nn.Sequential(layer).eval(), torch.zeros(1, 5)).upper
        for layer in (plain, doubled)
    ]
    assert bounds[1] == pytest.approx(2 * bounds[0], rel=1e-12)
