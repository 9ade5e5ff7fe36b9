"""What is bounded is the model itself: no overwriting, broadcasting or rounding slips through."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness import Certifier, lipschitz, local_lipschitz, pgd
from fedprune.robustness.tracer import MAX_FOLDS, lower


class Forward(nn.Module):
    """A layer, and a function of it and the input; `level` is a constant for its use."""

    def __init__(
        self, function: Callable[[Forward, Tensor], Tensor], level: Tensor | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("level", torch.zeros(1) if level is None else level)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _clamped(self: Forward, x: Tensor) -> Tensor:
    hidden = self.layer(x)
    return hidden + hidden.clamp_max_(1000.0)


def _through_a_view(self: Forward, x: Tensor) -> Tensor:
    hidden = self.layer(x)
    kept = hidden[:, 1:]
    return torch.cat([hidden.view(-1, 2, 2).clamp_min_(-1e6).flatten(1), kept], 1)


def _result_thrown_away(self: Forward, x: Tensor) -> Tensor:
    hidden = self.layer(x).abs()
    hidden.clamp_max_(1e6)
    return hidden * 2


def _first_half_written(self: Forward, x: Tensor) -> Tensor:
    left, right = self.layer(x).chunk(2, 1)
    return torch.cat([left.relu_(), right], 1)


def _shortcut_added(self: Forward, x: Tensor) -> Tensor:
    hidden = functional.relu(self.layer(x), inplace=True)
    hidden += x
    return hidden.view(x.size(0), -1)


@pytest.mark.parametrize("function", [_clamped, _through_a_view, _result_thrown_away])
def test_a_read_after_an_overwrite_is_refused_even_where_it_hardly_ever_matters(
    function: Callable[[Forward, Tensor], Tensor],
) -> None:
    with pytest.raises(RobustnessError, match=r"reads '\w+' after 'clamp_\w+' has written over"):
        lower(Forward(function).eval(), torch.zeros(1, 4))


@pytest.mark.parametrize("function", [_first_half_written, _shortcut_added])
def test_overwriting_what_nobody_reads_again_is_followed(
    function: Callable[[Forward, Tensor], Tensor],
) -> None:
    model = Forward(function).eval()
    assert lipschitz(model, torch.zeros(1, 4), samples=0).upper > 0
    inputs = torch.randn(6, 4, dtype=torch.float64)
    found = lower(model, torch.zeros(1, 4)).run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(found, copy.deepcopy(model).double()(inputs.clone()))


def test_a_model_that_torch_cannot_differentiate_has_no_lower_bound_and_says_so() -> None:
    with pytest.raises(RobustnessError, match="cannot differentiate the model"):
        lipschitz(Forward(_shortcut_added).eval(), torch.zeros(1, 4))


LEVELS: list[Callable[[Forward, Tensor], Tensor]] = [
    lambda self, x: x.clamp(min=self.level), lambda self, x: torch.clamp(x, None, self.level),
    lambda self, x: torch.maximum(x, self.level), lambda self, x: x - self.level,
    lambda self, x: x / (self.level - 1),
]  # fmt: skip


@pytest.mark.parametrize("function", LEVELS)
def test_a_constant_that_copies_entries_by_broadcasting_is_refused(
    function: Callable[[Forward, Tensor], Tensor],
) -> None:
    wide = Forward(function, torch.full((3, 1, 1), -50.0)).eval()
    with pytest.raises(UnsupportedOpError, match="broadcasts"):
        lower(wide, torch.zeros(1, 1, 2, 2))
    assert lower(wide, torch.zeros(1, 3, 2, 2)).steps


def test_weights_that_a_model_computes_are_not_rounded_to_float32() -> None:
    """A weight norm of float32 is off by 3e-8, and so would be a bound from it."""
    for seed in range(8):
        torch.manual_seed(seed)
        layer = parametrizations.weight_norm(nn.Linear(5, 5, bias=False)).eval()
        layer.parametrizations.weight.original0.data.mul_(3 * torch.rand(5, 1))
        double = copy.deepcopy(layer).double()
        truth = float(torch.linalg.matrix_norm(double.weight.detach(), 2))
        upper = lipschitz(layer, torch.zeros(1, 5), samples=0).upper
        assert truth * (1 - 1e-15) <= upper <= truth * (1 + 1e-12)


def test_complex_weights_are_refused() -> None:
    model = Forward(lambda self, x: (x * self.level).abs(), torch.tensor([3.0j])).eval()
    with pytest.raises(RobustnessError, match="'level' of the model is complex"):
        lower(model, torch.zeros(1, 4))


def test_an_input_that_the_model_cannot_take_is_a_named_error() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'Linear' at node '_0'.*1x5 and 4x3"):
        lower(nn.Sequential(nn.Linear(4, 3)).eval(), torch.zeros(1, 5))
    model = Forward(lambda self, x: functional.prelu(x, self.layer(x))).eval()
    with pytest.raises(UnsupportedOpError, match="'prelu' at node"):
        lower(model, torch.zeros(1, 4))


def test_a_chain_of_batch_norms_is_folded_only_as_far_as_its_rounding_is_allowed_for() -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(4) for _ in range(3 * MAX_FOLDS)]
    for norm in norms:
        norm.running_var.uniform_(0.3, 2.0)
        norm.weight.data.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.Linear(4, 4), *norms).eval()
    bound = lipschitz(model, torch.zeros(1, 4), samples=0)
    assert bound.per_op[0].op == "linear" + MAX_FOLDS * "+batch_norm"
    double = copy.deepcopy(model).double()
    basis = torch.eye(4, dtype=torch.float64)
    images = (double(basis) - double(torch.zeros(1, 4, dtype=torch.float64))).detach()
    assert np.linalg.norm(images.numpy(), 2) <= bound.upper


def test_bounds_certificates_and_attacks_work_in_inference_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs, radii = torch.randn(5, 4), torch.full((5,), 0.1, dtype=torch.float64)
    labels = model(inputs).argmax(1)
    wanted = lipschitz(model, inputs[:1])
    with torch.inference_mode():
        assert lipschitz(model, inputs[:1].double().clone()).upper == wanted.upper
        Certifier.of(model, inputs[:1]).margins(inputs, labels)
        assert local_lipschitz(model, inputs.double().clone(), 0.1).lower.min() > 0
        assert pgd(model, inputs.clone(), labels, radii, steps=2, restarts=1).distance.max() > 0


def test_the_lower_bound_does_without_second_derivatives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 4)).eval()
    bound = lipschitz(model, torch.zeros(1, 4), samples=16)
    assert bound.upper / 3 <= bound.lower <= bound.upper
    alone = lipschitz(nn.Sequential(nn.Hardsigmoid()).eval(), torch.zeros(1, 3))
    assert 0.999 * alone.upper <= alone.lower <= alone.upper
    with pytest.raises(RobustnessError, match="whole number of at least 0, got -1"):
        lipschitz(model, torch.zeros(1, 4), samples=-1)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e-120, 1e-100, 1e290])
def test_weights_at_the_ends_of_float64_are_bounded_or_refused_by_name(size: float) -> None:
    torch.manual_seed(0)
    wide = nn.Linear(520, 520).double().eval()
    pair = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)).double().eval()
    for parameter in (*wide.parameters(), *pair.parameters()):
        parameter.data.normal_().mul_(size)
    truth = float(torch.linalg.matrix_norm(wide.weight.detach() / size, 2)) * size
    found = lipschitz(wide, torch.zeros(1, 520), samples=0).upper
    assert truth * (1 - 1e-9) <= found <= max(1.001 * truth, 1e-270)
    if size > 1:
        with pytest.raises(RobustnessError):
            lipschitz(pair, torch.zeros(1, 5), samples=0)
        return
    norms = [torch.linalg.matrix_norm(pair[i].weight.detach() / size, 2) for i in (0, 2)]
    upper = lipschitz(pair, torch.zeros(1, 5), samples=0).upper
    assert upper > 0
    assert math.sqrt(upper) <= 1.001 * size * math.sqrt(float(norms[0] * norms[1])) + 1e-150
