"""Every criterion on every kind of network: what all must keep, and each one's own formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from fedprune import models
from fedprune.errors import PruningError
from fedprune.pruning import CRITERIA, UnitLayout, mask_model, score, score_clients

FREE = [name for name, one in CRITERIA.items() if not one.sees_data]
DATA = [name for name, one in CRITERIA.items() if one.sees_data]
SCALED = ("residual", "signal", "pre_activation", "resnet20")  # a norm behind every unit
NETWORKS = ["residual", "grouped", "gate", "recurrent", "lenet", "resnet20", "mlp"]
EVERYWHERE = [
    (criterion, name)
    for criterion in CRITERIA
    for name in NETWORKS
    if criterion != "bn_scale" or name in SCALED
]
IDS = torch.tensor([7, 3, 7, 11, 3, 7, 3, 11, 7, 7, 11, 3])


class Gated(nn.Module):
    """A small fully connected network with its gates written out: z multiplies each unit."""

    def __init__(self, classes: int = 5, features: int = 4, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        x = self.first(x)
        x = torch.tanh(x if gates is None else x * gates[:6])
        x = self.second(x)
        return self.out(torch.tanh(x if gates is None else x * gates[6:]))


def network(build: Any, name: str) -> tuple[nn.Module, UnitLayout, Tensor]:
    """A network with units and 12 examples of its own kind."""
    if name in ("lenet", "resnet20", "mlp"):
        shape = {"lenet": (1, 8, 8), "resnet20": (3, 8, 8), "mlp": (5,)}[name]
        model = models.load(name, num_classes=4, input_shape=shape, seed=3)
        example = torch.randn(12, *shape, generator=torch.Generator().manual_seed(1))
    else:
        model, example = build(name)
        generator = torch.Generator().manual_seed(1)
        example = torch.randn(12, *example.shape[1:], generator=generator)
    return model, UnitLayout.of(model, example[:2]), example


def labels_for(inputs: Tensor, classes: int = 4) -> Tensor:
    return torch.randint(classes, (len(inputs),), generator=torch.Generator().manual_seed(9))


def close(found: Tensor, wanted: Tensor, rtol: float = 1e-3) -> None:
    scale = 1e-4 * float(wanted.abs().max()) + 1e-12
    torch.testing.assert_close(found.double(), wanted.double(), rtol=rtol, atol=scale)


@pytest.mark.parametrize(
    ("criterion", "name"),
    [one for one in EVERYWHERE if one[0] != "random"],  # which is named by the client
)
def test_a_clients_row_is_the_score_of_its_own_minibatch(
    build: Any, name: str, criterion: str
) -> None:
    model, layout, inputs = network(build, name)
    labels = labels_for(inputs)
    rows = score_clients(model, layout, inputs, labels, IDS, criterion, seed=5, batch_size=5)
    assert rows.shape == (3, len(layout))
    for row, client in zip(rows, (3, 7, 11), strict=True):
        own = client == IDS
        close(row, score(model, layout, [(inputs[own], labels[own])], criterion, seed=5))


@pytest.mark.parametrize(
    ("criterion", "name"),
    [one for one in EVERYWHERE if one[1] in ("residual", "grouped", "lenet", "mlp")],
)
def test_neither_order_nor_batching_changes_a_score(build: Any, name: str, criterion: str) -> None:
    model, layout, inputs = network(build, name)
    labels = labels_for(inputs)
    whole = score_clients(model, layout, inputs, labels, IDS, criterion, seed=5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    for size in (1, 5):
        mixed = score_clients(
            model, layout, inputs[order], labels[order], IDS[order], criterion,
            batch_size=size, seed=5,
        )  # fmt: skip
        close(mixed, whole)


@pytest.mark.parametrize("criterion", DATA)
def test_the_number_of_threads_changes_no_bit(build: Any, criterion: str) -> None:
    model, layout, inputs = network(build, "residual")
    labels, found = labels_for(inputs), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(
            score_clients(model, layout, inputs, labels, IDS, criterion, seed=5, batch_size=4)
        )
    torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_score_is_the_mean_over_minibatches_and_needs_one_if_it_sees_data(
    build: Any, criterion: str
) -> None:
    model, layout, inputs = network(build, "residual")
    labels = labels_for(inputs)
    first, second = (inputs[:5], labels[:5]), (inputs[5:], labels[5:])
    both = score(model, layout, iter([first, second]), criterion, seed=5)
    singly = [score(model, layout, [one], criterion, seed=5) for one in (first, second)]
    close(both, (singly[0] + singly[1]) / 2)
    if criterion in DATA:
        with pytest.raises(PruningError, match="at least one minibatch"):
            score(model, layout, [], criterion)
    else:
        assert torch.equal(score(model, layout, [], criterion, seed=5), both)


@pytest.mark.parametrize("criterion", DATA)
def test_bfloat16_is_near_or_refused_by_name(build: Any, criterion: str) -> None:
    model, layout, inputs = network(build, "residual")
    labels = labels_for(inputs)

    def scores(precision: str) -> Tensor:
        return score_clients(
            model, layout, inputs, labels, IDS, criterion, seed=5, precision=precision
        )

    if CRITERIA[criterion].precisions == ("float32",):
        with pytest.raises(PruningError, match=f"float32 with criterion {criterion}, got 'bfl"):
            scores("bfloat16")
    else:
        exact, reduced = scores("float32"), scores("bfloat16")
        assert 0 < (exact - reduced).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("criterion", FREE)
def test_criteria_without_data_give_every_client_the_same_in_any_precision(
    build: Any, criterion: str
) -> None:
    model, layout, inputs = network(build, "residual")
    by_precision = [
        score_clients(
            model, layout, inputs, labels_for(inputs), IDS, criterion, seed=5, precision=precision
        )
        for precision in ("float32", "bfloat16")
    ]
    assert torch.equal(*by_precision)
    if criterion != "random":
        assert torch.equal(by_precision[0], score(model, layout, [], criterion).expand(3, -1))


def gate_values(seed: int = 0) -> tuple[Any, ...]:
    """A network, its examples, and from autograd J [batch, classes, units] of the logits."""
    torch.manual_seed(seed)
    model = Gated()
    inputs = 2 * torch.randn(40, 4)
    layout, labels = UnitLayout.of(model, inputs[:2]), labels_for(inputs, 5)
    precise = copy.deepcopy(model).double()
    state = dict(precise.named_parameters())

    def logits(gates: Tensor) -> Tensor:
        out: Tensor = functional_call(precise, state, (inputs.double(), gates))
        return out

    ones = torch.ones(12, dtype=torch.float64)
    with torch.no_grad():
        outputs = logits(ones)
    return model, layout, inputs, labels, outputs, jacrev(logits)(ones).detach()


def test_fisher_is_the_mean_of_squared_slopes() -> None:
    model, layout, inputs, labels, outputs, jacobian = gate_values()
    onehot = functional.one_hot(labels, 5).double()
    slopes = torch.einsum("bc,bcu->bu", outputs.softmax(1) - onehot, jacobian)
    close(score(model, layout, [(inputs, labels)], "fisher"), slopes.square().mean(0))
    close(score(model, layout, [(inputs, labels)], "taylor"), slopes.mean(0).square())


def cross_entropy_after(outputs: Tensor, jacobian: Tensor, labels: Tensor) -> Tensor:
    """Mean over examples of CE(o − J_u, y) − CE(o, y) for every unit u."""
    moved = outputs.unsqueeze(2) - jacobian
    after = functional.cross_entropy(
        moved, labels.unsqueeze(1).expand(-1, moved.shape[2]), reduction="none"
    )
    before = functional.cross_entropy(outputs, labels, reduction="none")
    return (after - before.unsqueeze(1)).mean(0)


def test_linear_logits_with_all_classes_is_the_loss_of_linearised_logits() -> None:
    model, layout, inputs, labels, outputs, jacobian = gate_values()
    found = score(model, layout, [(inputs, labels)], "linear_logits_all")
    close(found, cross_entropy_after(outputs, jacobian, labels).abs())


def test_the_signed_form_says_what_the_loss_is_better_without() -> None:
    model, layout, inputs, labels, outputs, jacobian = gate_values()
    batch = [(inputs, labels)]
    signed, sizes = (score(model, layout, batch, f"linear_logits{s}") for s in ("_signed", ""))
    assert torch.equal(signed.abs(), sizes)
    assert torch.equal(signed < 0, cross_entropy_after(outputs, jacobian, labels) < 0)
    assert (signed < 0).any()
    for name, one in CRITERIA.items():
        assert one.is_signed == (name == "linear_logits_signed")


@pytest.mark.parametrize(("criterion", "alone"), [("linear_logits", 1), ("linear_logits_rest", 0)])
def test_linear_logits_moves_classes_that_it_takes_together_by_their_mean(
    criterion: str, alone: int
) -> None:
    model, layout, inputs, labels, outputs, jacobian = gate_values()
    together = jacobian.clone()
    for row, (logits, label) in enumerate(zip(outputs, labels, strict=True)):
        order = [k for k in logits.argsort(descending=True).tolist() if k != label][alone:]
        shares = logits[order].softmax(0)
        together[row, order] = (shares[:, None] * jacobian[row, order]).sum(0)
    found = score(model, layout, [(inputs, labels)], criterion)
    close(found, cross_entropy_after(outputs, together, labels).abs())


def test_every_form_of_linear_logits_is_exact_to_first_order() -> None:
    """For small J all agree with the slope of the loss: sum of the forms' J by probability."""
    model, layout, inputs, labels, _, _ = gate_values()
    for name in ("first", "second"):  # hardly anything comes out: J is small
        with torch.no_grad():
            getattr(model, name).weight.mul_(1e-2)
            getattr(model, name).bias.mul_(1e-2)
    slopes = -score(model, layout, [(inputs, labels)], "taylor").sqrt()
    for criterion in [name for name in CRITERIA if name.startswith("linear_logits")]:
        found = score(model, layout, [(inputs, labels)], criterion, seed=1)
        torch.testing.assert_close(found.abs(), slopes.abs(), rtol=0.05, atol=1e-6)


def test_linear_logits_of_two_classes_is_the_same_in_every_form() -> None:
    model = models.load("mlp", num_classes=2, input_shape=(5,), seed=3)
    inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs, 2)
    forms = [name for name in CRITERIA if name.startswith("linear_logits")]
    found = [score(model, layout, [(inputs, labels)], name, seed=1).abs() for name in forms]
    for one in found[1:]:
        close(one, found[0])


def test_a_linear_network_has_its_removals_predicted_exactly_by_linear_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    inputs = torch.randn(30, 4)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs, 5)
    found = score(model, layout, [(inputs, labels)], "linear_logits_all")
    close(found, score(model, layout, [(inputs, labels)], "oracle"))


def test_the_projection_estimates_the_loss_of_linearised_logits_without_bias_to_second_order() -> (
    None
):
    model, layout, inputs, labels, _, _ = gate_values()
    with torch.no_grad():
        model.out.weight.mul_(0.3)
    batch = [(inputs, labels)]
    exact = score(model, layout, batch, "linear_logits_all").double()
    without = score(model, layout, batch, "linear_logits").double()
    drawn = [
        score(model, layout, batch, "linear_logits_projected", seed=seed).double()
        for seed in range(40)
    ]
    mean = torch.stack(drawn).mean(0)
    assert (mean - exact).norm() < 0.5 * (without - exact).norm()


def drawn_curvature(jacobian: Tensor, outputs: Tensor) -> Tensor:
    """E over labels of the model's own of j·jᵀ, averaged over examples: [units, units]."""
    p = outputs.softmax(1)
    centred = jacobian - torch.einsum("bc,bcu->bu", p, jacobian).unsqueeze(1)
    return torch.einsum("bc,bcu,bcv->uv", p, centred, centred) / len(p)


@pytest.mark.parametrize("criterion", ["taylor_second", "taylor_second_full"])
def test_the_second_order_converges_to_the_gauss_newton_curvature(criterion: str) -> None:
    model, layout, inputs, labels, outputs, jacobian = gate_values()
    onehot = functional.one_hot(labels, 5).double()
    slopes = torch.einsum("bc,bcu->bu", outputs.softmax(1) - onehot, jacobian).mean(0)
    curvature = drawn_curvature(jacobian, outputs)
    if criterion == "taylor_second":
        second = curvature.diagonal()
    else:
        same = layout.group_of.unsqueeze(0) == layout.group_of.unsqueeze(1)
        second = (curvature * same).sum(1)
    wanted = second / 2 - slopes
    drawn = [
        score(model, layout, [(inputs, labels)], criterion, seed=seed).double()
        for seed in range(60)
    ]
    clear = wanted.abs() > 0.3 * wanted.abs().max()  # far from 0 no absolute value folds the noise
    found = torch.stack(drawn)[:, clear]
    error = (found.mean(0) - wanted[clear].abs()).abs()
    assert clear.sum() >= 3
    assert bool((error < 4 * found.std(0) / 60**0.5 + 1e-6).all())


def test_a_drawn_label_is_named_by_the_example_alone(build: Any) -> None:
    model, layout, inputs = network(build, "mlp")
    labels = labels_for(inputs)
    alone = score(model, layout, [(inputs[3:4], labels[3:4])], "taylor_second", seed=1)
    for ids in (torch.arange(12), torch.arange(12) + 100):
        rows = score_clients(model, layout, inputs, labels, ids, "taylor_second", seed=1)
        close(rows[3], alone)
    batch = [(inputs, labels)]
    by_seed = [score(model, layout, batch, "taylor_second", seed=seed) for seed in (None, 1, 2)]
    assert torch.equal(by_seed[0], score(model, layout, batch, "taylor_second"))
    assert not torch.equal(by_seed[0], by_seed[1])
    assert not torch.equal(by_seed[1], by_seed[2])


def test_labels_are_drawn_with_the_models_own_probabilities() -> None:
    from fedprune.pruning.scores.criteria.derivatives import drawn_labels
    from fedprune.pruning.scores.criteria.of_gates import uniforms_of

    inputs = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(4000, -1)
    counts = torch.bincount(drawn_labels(logits, uniforms_of(inputs, 1, 3)[:, 0]), minlength=4)
    wanted = logits[0].softmax(0)
    error = (counts / 4000 - wanted).abs()
    assert bool((error < 4 * (wanted * (1 - wanted) / 4000).sqrt()).all())


def test_taylor_weights_is_the_sum_of_each_weights_squared_slope(build: Any) -> None:
    model, layout, inputs = network(build, "residual")
    labels = labels_for(inputs)
    precise = copy.deepcopy(model).double().eval()
    functional.cross_entropy(precise(inputs.double()), labels).backward()
    squares = {
        name: (parameter * parameter.grad).square().flatten(1 if parameter.ndim > 1 else 0)
        for name, parameter in precise.named_parameters()
        if parameter.grad is not None
    }

    def of(name: str) -> Tensor:
        return squares[name].sum(1) if squares[name].ndim > 1 else squares[name]

    inner = of("inner.weight") + of("inner_bn.weight") + of("inner_bn.bias")
    stem = sum(of(f"{n}.weight") for n in ("stem", "stem_bn", "back", "back_bn"))
    stem = stem + of("stem_bn.bias") + of("back_bn.bias")
    found = score(model, layout, [(inputs, labels)], "taylor_weights")
    close(found[:6], stem.detach())
    close(found[6:11], inner.detach())


def test_bn_scale_is_gamma_or_the_norm_of_several(build: Any) -> None:
    model, inputs = build("residual")
    layout = UnitLayout.of(model, inputs)
    found = score(model, layout, [], "bn_scale")
    both = torch.stack([model.stem_bn.weight, model.back_bn.weight]).norm(dim=0)
    close(found[:6], both.detach())
    close(found[6:11], model.inner_bn.weight.detach().abs())


@pytest.mark.parametrize(("name", "group"), [("plain", "conv1"), ("grouped", "point")])
def test_bn_scale_refuses_a_network_with_units_that_no_norm_scales(
    build: Any, name: str, group: str
) -> None:
    model, inputs = build(name)
    with pytest.raises(PruningError, match=f"group {group} of .* has units without one"):
        score(model, UnitLayout.of(model, inputs), [], "bn_scale")


def test_separate_taylor_squares_before_it_sums(build: Any) -> None:
    """Coupled units differ from `taylor`, units of one gate do not."""
    model, layout, inputs = network(build, "residual")
    batch = [(inputs, labels_for(inputs))]
    together, separate = (score(model, layout, batch, n) for n in ("taylor", "taylor_separate"))
    inner = layout.groups[1].units
    close(separate[inner], together[inner])
    assert not torch.allclose(separate[:6], together[:6], rtol=0.05)


def test_the_oracle_is_the_change_of_the_loss_on_a_clients_examples(build: Any) -> None:
    model, layout, inputs = network(build, "grouped")
    labels, precise = labels_for(inputs), copy.deepcopy(model).double()
    found = score_clients(model, layout, inputs, labels, IDS, "oracle")

    def loss(one: nn.Module, own: Tensor) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(one(inputs[own].double()), labels[own]))

    for unit in (0, 7, len(layout) - 1):
        keep = torch.arange(len(layout)) != unit
        masked = mask_model(precise, layout, keep)
        for row, client in zip(found, (3, 7, 11), strict=True):
            own = client == IDS
            change = abs(loss(masked, own) - loss(precise, own))
            assert abs(float(row[unit]) - change) < 1e-5


def test_a_thousand_classes_need_no_more_memory_or_passes_than_ten() -> None:
    model = models.load("mlp", num_classes=1000, input_shape=(5,), seed=3)
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs, 1000)
    batch = [(inputs, labels)]
    cheap, exact = (score(model, layout, batch, n) for n in ("linear_logits", "linear_logits_all"))
    assert torch.corrcoef(torch.stack([cheap, exact]))[0, 1] > 0.95
