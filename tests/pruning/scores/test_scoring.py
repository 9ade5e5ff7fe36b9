from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import models
from fedprune.errors import LayoutMismatchError, ModelError, PruningError
from fedprune.pruning import CRITERIA, UnitLayout, score, score_clients

NAMES = [
    "plain", "residual", "concat", "grouped", "sigmoid", "gate", "signal", "recurrent",
    "pre_activation",
]  # fmt: skip


def labels_for(inputs: Tensor, classes: int = 4) -> Tensor:
    return torch.randint(classes, (len(inputs),), generator=torch.Generator().manual_seed(9))


def loss_with_gate(
    model: nn.Module, layout: UnitLayout, unit: int, gate: float, inputs: Tensor, labels: Tensor
) -> float:
    """Mean loss in double precision with one unit's gate set, at every site, by multiplication."""
    handles = []
    for site in layout.sites:
        column = torch.ones(len(site.units), dtype=torch.float64)
        column[torch.from_numpy(site.units) == unit] = gate
        module = model.get_submodule(site.name)
        if not isinstance(module, nn.Linear):
            ndim = 3 if inputs.ndim == 3 else 4
            is_flat = isinstance(module, nn.BatchNorm1d) and inputs.ndim == 4
            column = column if is_flat else column.reshape(1, -1, *([1] * (ndim - 2)))
        handles.append(module.register_forward_hook(lambda _m, _i, out, c=column: out * c))
    with torch.no_grad():
        loss = float(functional.cross_entropy(model(inputs), labels))
    for handle in handles:
        handle.remove()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_taylor_is_the_squared_slope_of_the_loss_in_a_gate(build: Any, name: str) -> None:
    model, inputs = build(name)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    precise, step = copy.deepcopy(model).double().eval(), 1e-5
    slopes = [
        (loss_with_gate(precise, layout, unit, 1 + step, inputs.double(), labels)
         - loss_with_gate(precise, layout, unit, 1 - step, inputs.double(), labels)) / (2 * step)
        for unit in range(len(layout))
    ]  # fmt: skip
    expected = torch.tensor(slopes).square().float()
    found = score(model, layout, [(inputs, labels)])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5 * float(expected.max()))


def test_taylor_is_what_the_batch_norms_own_gradients_say() -> None:
    """z scales γ and β together, so ∂L/∂z = γ·∂L/∂γ + β·∂L/∂β, summed over coupled layers."""
    model = models.load("resnet20", weights="", num_classes=10, seed=1)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    inputs = torch.randn(8, 3, 32, 32, generator=generator)
    labels = labels_for(inputs, 10)
    layout = UnitLayout.of(model, inputs)
    reference = copy.deepcopy(model).double().eval()
    shortcuts: dict[str, Tensor] = {}
    for name, module in reference.named_modules():
        if getattr(module, "is_selection", False):
            module.register_forward_hook(lambda _m, _i, out, n=name: _watch(shortcuts, n, out))
    functional.cross_entropy(reference(inputs.double()), labels).backward()
    slopes = torch.zeros(len(layout), dtype=torch.float64)
    for layer in layout.layers:
        module = reference.get_submodule(layer.name)
        if layer.kind == "norm":
            own = module.weight * module.weight.grad + module.bias * module.bias.grad
        elif layer.is_selection:
            out = shortcuts[layer.name]
            own = (out * out.grad).sum((0, 2, 3))
        else:
            continue
        slopes.index_add_(0, torch.from_numpy(layer.out_units), own.detach())
    found = score(model, layout, [(inputs, labels)])
    expected = slopes.square().float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def _watch(store: dict[str, Tensor], name: str, output: Tensor) -> None:
    output.retain_grad()
    store[name] = output


def test_without_batch_norm_taylor_is_what_the_weights_own_gradients_say(build: Any) -> None:
    """Molchanov et al. 2019, equation 8: the gate's slope is Σ w·∂L/∂w, bias included."""
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    functional.cross_entropy(model(inputs), labels).backward()
    slopes = []
    for name in ("conv1", "conv2", "hidden"):
        layer = model.get_submodule(name)
        of_weights = (layer.weight * layer.weight.grad).flatten(1).sum(1)
        slopes.append(of_weights + layer.bias * layer.bias.grad)
    expected = torch.cat(slopes).square().detach()
    found = score(model, layout, [(inputs, labels)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_clients_row_is_the_score_of_its_examples(build: Any, name: str) -> None:
    model, inputs = build(name)
    inputs = torch.cat([inputs, inputs.flip(0) * 0.7])
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    ids = torch.tensor([7, 3, 7, 11, 3, 7, 3, 11, 7, 7, 11, 3])
    rows = score_clients(model, layout, inputs, labels, ids, batch_size=5)
    assert rows.shape == (3, len(layout))
    assert rows.dtype == torch.float32
    for row, client in zip(rows, (3, 7, 11), strict=True):
        own = ids == client
        alone = score(model, layout, [(inputs[own], labels[own])])
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-6 * float(alone.max()))


def test_batches_and_order_change_nothing_but_rounding(build: Any) -> None:
    model, inputs = build("residual")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    ids = torch.tensor([0, 1, 0, 1, 0, 1])
    whole = score_clients(model, layout, inputs, labels, ids)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    for size in (1, 2, 4):
        mixed = score_clients(
            model, layout, inputs[order], labels[order], ids[order], batch_size=size
        )
        torch.testing.assert_close(mixed, whole, rtol=1e-4, atol=1e-7)


def test_the_score_is_the_mean_over_minibatches(build: Any) -> None:
    model, inputs = build("residual")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    first, second = (inputs[:2], labels[:2]), (inputs[2:], labels[2:])
    both = score(model, layout, iter([first, second]))
    separate = (score(model, layout, [first]) + score(model, layout, [second])) / 2
    torch.testing.assert_close(both, separate)


def test_examples_can_be_made_as_they_are_needed(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)

    @dataclass
    class Lazy:
        asked: list[tuple[int, int]]

        def __len__(self) -> int:
            return len(inputs)

        def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
            self.asked.append((start, stop))
            return inputs[start:stop], labels[start:stop]

    lazy, ids, done = Lazy([]), torch.arange(6) // 2, []
    found = score_clients(
        model, layout, lazy, None, ids, batch_size=4, progress=lambda *at: done.append(at)
    )
    assert lazy.asked == [(0, 4), (4, 6)]
    assert done == [(4, 6), (6, 6)]
    eager = score_clients(model, layout, inputs, labels, ids, batch_size=4)
    assert torch.equal(found, eager)
    assert torch.equal(score_clients(model, layout, lazy, labels, ids, batch_size=4), eager)


def test_scaling_a_channel_and_its_reader_changes_taylor_in_nothing(build: Any) -> None:
    """A ReLU network stays the same function; magnitude does not notice that."""
    model, inputs = build("residual")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    scaled = copy.deepcopy(model)
    factors = torch.tensor([0.01, 0.3, 1.0, 4.0, 50.0])
    with torch.no_grad():
        scaled.inner_bn.weight.mul_(factors)
        scaled.inner_bn.bias.mul_(factors)
        scaled.back.weight.div_(factors.view(1, -1, 1, 1))
        scaled.inner.weight.mul_(factors.view(-1, 1, 1, 1))
        scaled.inner_bn.running_mean.mul_(factors)
        scaled.inner_bn.running_var.add_(scaled.inner_bn.eps).mul_(factors**2).sub_(
            scaled.inner_bn.eps
        )
    torch.testing.assert_close(scaled(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    before, after = (score(m, layout, [(inputs, labels)]) for m in (model, scaled))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-5 * float(before.max()))
    assert torch.equal(before.argsort(), after.argsort())
    by_size = [score(m, layout, [], "magnitude")[layout.groups[1].units] for m in (model, scaled)]
    assert not torch.equal(by_size[0].argsort(), by_size[1].argsort())


def test_a_silent_unit_scores_zero(build: Any) -> None:
    model, inputs = build("residual")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    with torch.no_grad():
        model.inner_bn.weight[2] = model.inner_bn.bias[2] = 0
    found = score(model, layout, [(inputs, labels)])
    assert found[layout.groups[1].start + 2] == 0
    assert found.count_nonzero() == len(layout) - 1


def test_magnitude_is_the_norm_of_a_units_producing_weights(build: Any) -> None:
    model, inputs = build("residual")
    layout = UnitLayout.of(model, inputs)
    rows = torch.cat([model.stem.weight.flatten(1), model.back.weight.flatten(1)], 1)
    for criterion, power in (("magnitude_l1", 1), ("magnitude_l2", 2), ("magnitude", 2)):
        found = score(model, layout, [], criterion)
        torch.testing.assert_close(found[:6], rows.norm(p=power, dim=1).detach())
    by_client = score_clients(
        model, layout, inputs, labels_for(inputs), torch.arange(6), "magnitude_l1"
    )
    assert torch.equal(by_client, score(model, layout, [], "magnitude_l1").expand(6, -1))


def test_random_scores_repeat_with_the_seed_and_differ_by_client(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    first = score(model, layout, [], "random", seed=1)
    assert torch.equal(first, score(model, layout, [], "random", seed=1))
    assert not torch.equal(first, score(model, layout, [], "random", seed=2))
    ids = torch.arange(6) // 2
    rows = score_clients(model, layout, inputs, labels, ids, "random", seed=1)
    assert len({tuple(row.tolist()) for row in rows}) == 3
    alone = score_clients(model, layout, inputs[2:4], labels[2:4], ids[2:4], "random", seed=1)
    assert torch.equal(rows[1], alone[0])
    with pytest.raises(PruningError, match="needs a seed"):
        score(model, layout, [], "random")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_changes_neither_the_model_nor_the_inputs(build: Any, criterion: str) -> None:
    model, inputs = build("residual")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = inputs.clone()
    score(model, layout, [(inputs, labels)], criterion, seed=0)
    score_clients(model, layout, inputs, labels, torch.arange(6), criterion, seed=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(kept, inputs)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_scoring_works_inside_no_grad(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    outside = score(model, layout, [(inputs, labels)])
    with torch.no_grad():
        assert torch.equal(score(model, layout, [(inputs, labels)]), outside)


def test_bad_input_is_one_sentence(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    ids = torch.arange(6)
    with pytest.raises(PruningError, match=r"criterion must be one of random, .*'tailor'"):
        score(model, layout, [(inputs, labels)], "tailor")
    with pytest.raises(PruningError, match="at least one minibatch"):
        score(model, layout, [])
    with pytest.raises(ModelError, match=r"labels must be in \[0, 4\).*got 4"):
        score(model, layout, [(inputs, labels.clamp(max=3) * 0 + 4)])
    with pytest.raises(ModelError, match="got -1"):
        score_clients(model, layout, inputs, labels * 0 - 1, ids)
    with pytest.raises(ModelError, match="loss of PlainCnn is nan"):
        score(model, layout, [(inputs * float("nan"), labels)])
    with pytest.raises(PruningError, match=r"client_ids must be 6 integers.*\[5\]"):
        score_clients(model, layout, inputs, labels, ids[:5])
    with pytest.raises(PruningError, match=r"labels must be 6 integers.*\[5\]"):
        score_clients(model, layout, inputs, labels[:5], ids)
    with pytest.raises(PruningError, match="labels must be given"):
        score_clients(model, layout, inputs, None, ids)
    with pytest.raises(PruningError, match="batch_size must be at least 1, got 0"):
        score_clients(model, layout, inputs, labels, ids, batch_size=0)
    with pytest.raises(PruningError, match="at least one example"):
        score_clients(model, layout, inputs[:0], labels[:0], ids[:0])
    with pytest.raises(LayoutMismatchError):
        score(build("residual")[0], layout, [(inputs, labels)])
    with torch.no_grad():
        model.out.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="loss of PlainCnn is"):
        score(model, layout, [(inputs, labels)])
    with torch.no_grad():
        model.conv1.weight[0] = float("nan")
    with pytest.raises(ModelError, match="magnitude score of unit 0 of PlainCnn is not finite"):
        score(model, layout, [], "magnitude")
