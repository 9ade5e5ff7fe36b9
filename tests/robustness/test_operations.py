"""Every operation with a rule is lowered exactly and bounded from above, linear ones closely."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness import lipschitz
from fedprune.robustness.lipschitz import bound_network
from fedprune.robustness.tracer import lower


class Call(nn.Module):
    """A model that is one function of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def explicit(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The linear part of a layer as a matrix: column i is layer(e_i) - layer(0)."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        images = layer(basis) - layer(torch.zeros_like(basis))
    return images.reshape(size, -1).numpy().T


def upper(layer: nn.Module, shape: tuple[int, ...]) -> float:
    bounded = bound_network(layer.eval(), torch.zeros(1, *shape))
    return bounded.bounds[bounded.network.output]


def steepest(model: nn.Module, shape: tuple[int, ...], *, spread: float = 3.0) -> float:
    """The largest Jacobian norm at many points, by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    double = copy.deepcopy(model).double()
    best = 0.0
    for scale in (0.0, 1e-3, 0.1, 1.0, spread):
        for _ in range(6):
            point = scale * torch.randn(1, *shape, generator=generator, dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(double, point)
            flat = jacobian.reshape(-1, math.prod(shape))
            best = max(best, float(torch.linalg.matrix_norm(flat, 2)))
    return best


TRANSPOSED = [
    (nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), (2, 5)),
    (nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1), (2, 3, 4)),
    (nn.ConvTranspose2d(4, 2, (3, 2), (1, 3), (2, 0), groups=2), (4, 3, 2)),
    (nn.ConvTranspose2d(2, 2, 2, 1, 0, output_padding=1, dilation=2), (2, 3, 3)),
    (nn.ConvTranspose3d(1, 2, 2, 2), (1, 2, 2, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), TRANSPOSED, ids=repr)
def test_transposed_convolutions_have_the_norm_of_their_matrix(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    truth = np.linalg.norm(explicit(layer.double(), shape), 2)
    slack = 1.3 if layer.output_padding[0] >= layer.stride[0] else 1 + 1e-9
    assert truth <= upper(layer, shape) <= slack * truth


def test_a_batch_norm_behind_a_transposed_convolution_is_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6))
    model[1].running_var.uniform_(0.2, 2)
    model[1].weight.data.uniform_(-2, 2)
    model[1].bias.data.uniform_(-2, 2)
    shape = (4, 3, 3)
    truth = np.linalg.norm(explicit(model.eval().double(), shape), 2)
    bound = lipschitz(model, torch.zeros(1, *shape), samples=0)
    assert truth <= bound.upper <= truth * (1 + 1e-9)
    assert [op.op for op in bound.per_op] == ["conv_transpose2d+batch_norm"]
    scaled = lipschitz(model, torch.zeros(1, *shape), input_std=(1.0, 2.0, 3.0, 4.0), samples=0)
    std = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None, None]
    truth = np.linalg.norm(explicit(lambda x: model(x / std), shape), 2)
    assert truth <= scaled.upper <= truth * (1 + 1e-9)


MOVES: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = [
    ("index list", lambda x: x[:, [0, 2, 2, 2]], (3, 4)),
    ("index tensor", lambda x: x[..., torch.tensor([1, 1, 0])], (3, 2)),
    ("boolean mask", lambda x: x[:, torch.tensor([True, False, True])], (3, 2)),
    ("new axis", lambda x: x[:, None], (3, 2)),
    ("flip", lambda x: x.flip(1), (3, 2)),
    ("roll", lambda x: torch.roll(x, 1, 2), (3, 4)),
    ("repeat", lambda x: x.repeat(1, 3, 1), (2, 2)),
    ("expand", lambda x: x.expand(-1, 5, -1), (1, 3)),
    ("repeat_interleave", lambda x: x.repeat_interleave(2, dim=1), (3,)),
    ("index_select", lambda x: x.index_select(1, torch.tensor([0, 0, 1])), (3, 2)),
    ("narrow", lambda x: x.narrow(1, 1, 2), (4, 2)),
    ("unflatten", lambda x: x.unflatten(1, (2, 2)), (4, 3)),
    ("triu", lambda x: x.triu(), (3, 3)),
    ("unfold", lambda x: functional.unfold(x, 2, padding=1), (2, 3, 3)),
    ("pixel_shuffle", lambda x: functional.pixel_shuffle(x, 2), (4, 2, 2)),
    ("nearest", lambda x: functional.interpolate(x, scale_factor=2), (2, 3, 3)),
    ("nearest, uneven", lambda x: functional.interpolate(x, (5, 4)), (1, 3, 3)),
    ("smaller", lambda x: functional.interpolate(x, (2, 2), mode="nearest-exact"), (1, 5, 5)),
    ("modules", nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2)), (1, 3, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shape"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_whatever_moves_entries_has_the_norm_of_its_matrix(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    truth = np.linalg.norm(explicit(function, shape), 2)
    assert truth * (1 - 1e-12) <= upper(Call(function), shape) <= truth * (1 + 1e-12)


def _split(x: Tensor) -> Tensor:
    first, rest = torch.split(x, [1, 2], dim=1)
    return torch.cat([2 * first, 2 * rest], dim=1)


MATRIX = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)

LINEAR: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = [
    ("a matrix on the right", lambda x: x @ MATRIX, (2, 3)),
    ("split and joined", _split, (3, 2)),
    ("stacked", lambda x: torch.stack([x, 2 * x, -x], 2), (3, 2)),
    ("unbound", lambda x: 3 * torch.unbind(x, 2)[1], (2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shape"), [m[1:] for m in LINEAR], ids=[m[0] for m in LINEAR])
def test_other_linear_operations_have_the_norm_of_their_matrix_or_a_little_more(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    truth = np.linalg.norm(explicit(function, shape), 2)
    assert truth <= upper(Call(function), shape) * (1 + 1e-12) <= 1.5 * truth


class Halves(nn.Module):
    """ShuffleNet's unit: chunk, one half worked on, concatenated, shuffled by a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        joined = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = joined.size()
        joined = joined.view(batch, 2, channels // 2, height, width)
        return torch.transpose(joined, 1, 2).contiguous().view(batch, -1, height, width)


def test_a_tensor_cut_into_pieces_is_followed_piece_by_piece() -> None:
    torch.manual_seed(0)
    shape = (4, 3, 3)
    model = Halves().eval()
    truth = np.linalg.norm(explicit(copy.deepcopy(model).double(), shape), 2)
    assert truth <= upper(model, shape) <= 1.42 * truth


SLOPES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("celu", nn.CELU(0.5)), ("softshrink", nn.Softshrink(0.3)), ("logsigmoid", nn.LogSigmoid()),
    ("tanhshrink", nn.Tanhshrink()), ("erf", torch.erf), ("atan", torch.atan),
    ("rrelu", nn.RReLU(1.0, 3.0).eval()), ("threshold", nn.Threshold(0.5, 0.5)),
    ("clamp_min", lambda x: x.clamp_min(-0.5)), ("maximum", lambda x: torch.maximum(x, -x)),
    ("minimum", lambda x: torch.minimum(x, torch.full((), 0.25, dtype=x.dtype))),
    ("gelu", nn.GELU()), ("tanh gelu", nn.GELU(approximate="tanh")), ("silu", nn.SiLU()),
    ("mish", nn.Mish()), ("selu", nn.SELU()), ("hardswish", nn.Hardswish()), ("elu", nn.ELU(1.7)),
    ("hardsigmoid", nn.Hardsigmoid()), ("softsign", nn.Softsign()), ("sigmoid", nn.Sigmoid()),
]  # fmt: skip


@pytest.mark.parametrize("function", [s[1] for s in SLOPES], ids=[s[0] for s in SLOPES])
def test_an_activation_is_nowhere_steeper_than_its_slope(
    function: Callable[[Tensor], Tensor],
) -> None:
    module = function if isinstance(function, nn.Module) else Call(function)
    bound = upper(nn.Sequential(module), (1,))
    points = torch.linspace(-12, 12, 400_001, dtype=torch.float64)[:, None]
    values = function(points)[:, 0]
    slopes = (values[1:] - values[:-1]).abs() / (points[1:, 0] - points[:-1, 0])
    assert float(slopes.max()) <= bound * (1 + 1e-9)
    assert bound <= math.sqrt(2) * 1.001 * float(slopes.max())


NORMALISED = [
    (nn.LayerNorm(5), (5,)), (nn.LayerNorm((2, 3), eps=1e-3), (4, 2, 3)),
    (nn.GroupNorm(2, 4, eps=0.01), (4, 2)), (nn.GroupNorm(1, 3), (3,)),
    (nn.InstanceNorm2d(2, affine=True), (2, 3, 3)), (nn.RMSNorm(6, eps=1e-2), (6,)),
    (nn.InstanceNorm1d(2, track_running_stats=True), (2, 4)),
    (nn.Softmax(dim=1), (5,)), (nn.Softmin(dim=-1), (2, 3)), (nn.LogSoftmax(dim=1), (6,)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), NORMALISED, ids=repr)
def test_normalisations_over_an_example_are_bounded_and_computed_as_torch_does(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    for parameter in layer.parameters():
        parameter.data.uniform_(-2, 2)
    found, bound = steepest(layer.eval(), shape, spread=30.0), upper(layer, shape)
    assert 0 < found <= bound
    network = lower(layer, torch.zeros(1, *shape))
    inputs = (
        torch.randn(6, *shape, dtype=torch.float64)
        * torch.tensor([1e-3, 1, 1, 9, 99, 1e3])[(slice(None), *[None] * len(shape))]
    )
    evaluation = network.evaluate(inputs)
    with torch.no_grad():
        wanted = copy.deepcopy(layer).double()(inputs)
    gaps = (evaluation.outputs - wanted).flatten(1).norm(dim=1).numpy()
    assert (gaps <= 2 * evaluation.errors).all()


def test_the_bound_of_a_layer_norm_is_reached_where_all_entries_are_equal() -> None:
    layer = nn.LayerNorm(6, eps=0.04).eval()
    assert upper(layer, (6,)) == pytest.approx(5.0, rel=1e-12)
    assert steepest(layer, (6,)) == pytest.approx(5.0, rel=1e-9)


def test_the_error_bound_of_a_layer_norm_covers_its_distance_from_exact_arithmetic() -> None:
    torch.manual_seed(0)
    layer = nn.LayerNorm(7, eps=2.0**-10).eval()
    layer.weight.data.uniform_(-3, 3)
    layer.bias.data.uniform_(-3, 3)
    inputs = torch.randn(5, 7) * torch.tensor([1e-3, 0.1, 1.0, 1e3, 1e6])[:, None] + 5.0
    evaluation = lower(layer, inputs[:1]).evaluate(inputs.double())
    for row, found, error in zip(inputs, evaluation.outputs, evaluation.errors, strict=True):
        entries = [Fraction(v) for v in row.tolist()]
        centred = [v - sum(entries) / 7 for v in entries]
        square = sum(v * v for v in centred) / 7 + Fraction(1, 2**10)
        scale = 10**40
        root = Fraction(math.isqrt(int(square * scale * scale)), scale)
        gap = Fraction(0)
        for value, entry, weight, bias in zip(
            found.tolist(), centred, layer.weight.tolist(), layer.bias.tolist(), strict=True
        ):
            gap += (Fraction(value) - entry / root * Fraction(weight) - Fraction(bias)) ** 2
        assert gap <= Fraction(float(error)) ** 2


REFUSED: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("gate", lambda x: x * torch.sigmoid(x), "combines|only one side"),
    ("gate of a mean", lambda x: x * x.mean(1, keepdim=True), "only one side"),
    ("attention", lambda x: x.transpose(1, 2) @ x, "matmul"),
    ("attention function", lambda x: functional.scaled_dot_product_attention(x, x, x), "not known"),
    ("square", lambda x: x**2, "pow"),
    ("quotient", lambda x: 1 / x, "divisor|truediv"),
    ("flipped batch", lambda x: x.flip((0,)), "mixes the examples"),
    ("chosen example", lambda x: x[0], "batch"),
    ("index of examples", lambda x: x[[0, 0]], "batch"),
    ("batch softmax", lambda x: x.softmax(0), "batch's"),
    ("softplus", functional.softplus, "not known"),
    ("hardshrink", functional.hardshrink, "not known"),
    ("a jump", lambda x: functional.threshold(x, 0.0, 1.0), "jumps"),
    ("dropout that drops", lambda x: functional.dropout(x, 0.5, training=True), "training=True"),
    ("bilinear", lambda x: functional.interpolate(x[:, None], (4, 4), mode="bilinear"), "bilinear"),
    ("pool with indices", lambda x: functional.max_pool1d(x, 2, return_indices=True), "indices"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "why"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_has_no_global_bound_is_refused_by_node_and_operation(
    function: Callable[[Tensor], Any], why: str
) -> None:
    with pytest.raises(UnsupportedOpError, match=r"operation '\w+' at node '\w+'") as caught:
        lower(Call(function).eval(), torch.randn(1, 3, 4))
    assert re.search(why, str(caught.value))


class Gated(nn.Module):
    """A squeeze-and-excite block."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))


def test_a_squeeze_and_excite_gate_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="'mul' at node 'mul'"):
        lower(Gated().eval(), torch.zeros(1, 4, 5, 5))


def test_modules_without_a_rule_are_named_with_their_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1)).eval()
    with pytest.raises(RobustnessError):
        lower(model, torch.zeros(1, 4))
    with pytest.raises(UnsupportedOpError, match=r"'Softplus' at node '_1'.*module 1"):
        lower(nn.Sequential(nn.Linear(4, 4), nn.Softplus()).eval(), torch.zeros(1, 4))


class Constant(nn.Module):
    """Keeps tensors that are neither parameters nor buffers, and overwrites one of them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.full((3,), factor, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + 0 * self.calls.sum() + torch.ones(3)


def test_constants_that_are_not_finite_are_refused_and_the_model_is_left_alone() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(RobustnessError, match="not finite"):
            lower(Constant(bad).eval(), torch.zeros(1, 3))
    model = Constant(2.0).eval()
    before = set(vars(model))
    assert upper(model, (3,)) == pytest.approx(2.0)
    assert set(vars(model)) == before


def test_a_wrong_size_that_the_model_asserts_is_a_named_error() -> None:
    def checked(x: Tensor) -> Tensor:
        torch._assert(x.shape[-1] == 5, "wrong width")
        return x

    with pytest.raises(UnsupportedOpError, match="_assert"):
        lower(Call(checked).eval(), torch.zeros(1, 3))


def test_stochastic_depth_in_eval_mode_is_the_identity() -> None:
    from torchvision.ops import StochasticDepth

    assert upper(nn.Sequential(StochasticDepth(0.3, "row")).eval(), (3,)) == pytest.approx(1.0)
    model = Call(partial(functional.relu)).eval()
    assert upper(model, (3,)) == pytest.approx(1.0)
