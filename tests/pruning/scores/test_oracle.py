"""The exact change of the loss without each unit: by the naive way, interrupted, and on gates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import models
from fedprune.errors import LayoutMismatchError, ModelError, PruningError
from fedprune.pruning import (
    UnitLayout,
    mask_model,
    oracle,
    oracle_clients,
    score,
    select,
    separate_gates,
    shrink,
)
from fedprune.pruning.scores.removals import Removals
from fedprune.pruning.structure.programs import trace_program

NAMES = [
    "plain", "residual", "concat", "grouped", "sigmoid", "gate", "signal", "recurrent",
    "pre_activation",
]  # fmt: skip


class Branching(nn.Module):
    """Which way it goes depends on a number, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out(torch.relu(x) if bool(x.sum() < 1e9) else -x)


class StoppedError(Exception):
    pass


def many(inputs: Tensor, count: int) -> Tensor:
    return torch.randn(count, *inputs.shape[1:], generator=torch.Generator().manual_seed(3))


def labels_for(inputs: Tensor, classes: int = 4) -> Tensor:
    return torch.randint(classes, (len(inputs),), generator=torch.Generator().manual_seed(9))


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs.double()), labels))


def naive(model: nn.Module, layout: UnitLayout, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mask each unit in double precision and evaluate the whole network."""
    precise = copy.deepcopy(model).double().eval()
    base = loss_of(precise, inputs, labels)
    found = []
    for unit in range(len(layout)):
        masked = mask_model(precise, layout, torch.arange(len(layout)) != unit)
        found.append(loss_of(masked, inputs, labels) - base)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_is_what_masking_each_unit_gives(build: Any, name: str) -> None:
    model, example = build(name)
    layout, inputs = UnitLayout.of(model, example), many(example, 20)
    labels = labels_for(inputs)
    found = oracle(model, layout, inputs, labels)
    assert found.dtype == torch.float64
    wanted = naive(model, layout, inputs, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)
    assert (wanted < 0).any()
    assert (wanted > 0).any()


def test_of_a_residual_network_only_what_follows_a_unit_is_computed_again() -> None:
    model = models.load("resnet20", num_classes=10, input_shape=(3, 8, 8), seed=0)
    inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs, 10)
    removals = Removals(model, layout)
    removals.look_at(inputs)
    calls = {"conv1": 0, "layer1.0.conv1": 0, "layer3.2.conv2": 0}
    for name in calls:
        module = removals._base.get_submodule(name)
        module.register_forward_pre_hook(lambda _m, _i, n=name: calls.update({n: calls[n] + 1}))
    whole, without = removals.losses(inputs, labels)
    # The stem belongs to its own 16 units, the first block's inner layer to 16 more.
    assert calls == {"conv1": 17, "layer1.0.conv1": 33, "layer3.2.conv2": len(layout) + 1}
    units = torch.tensor([0, 20, 200, len(layout) - 1])
    for unit in units.tolist():
        masked = mask_model(model, layout, torch.arange(len(layout)) != unit)
        with torch.no_grad():
            wanted = functional.cross_entropy(masked(inputs), labels, reduction="none")
        torch.testing.assert_close(without[unit].float(), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        wanted = functional.cross_entropy(model(inputs), labels, reduction="none")
    torch.testing.assert_close(whole.float(), wanted, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_traced_is_passed_whole() -> None:
    torch.manual_seed(0)
    model, inputs = Branching(), torch.randn(20, 5)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    assert trace_program(model, {"first", "out"}, inputs) is None
    found = oracle(model, layout, inputs, labels)
    wanted = naive(model, layout, inputs, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)


def test_a_network_that_overwrites_its_values_is_noticed(build: Any) -> None:
    layers = {"stem", "inner"}
    model, inputs = build("residual")
    program = trace_program(model, layers, inputs)
    assert program is not None
    assert program.overwrites
    other = trace_program(build("grouped")[0], {"expand"}, build("grouped")[1])
    assert other is not None
    assert not other.overwrites


def test_the_number_of_threads_changes_no_bit_of_the_oracle(build: Any) -> None:
    model, example = build("residual")
    layout, inputs = UnitLayout.of(model, example), many(example, 130)
    labels, found = labels_for(inputs), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(oracle(model, layout, inputs, labels))
    torch.set_num_threads(1)
    assert torch.equal(*found)


def test_a_client_has_the_oracle_of_its_own_examples(build: Any) -> None:
    model, example = build("concat")
    layout, inputs = UnitLayout.of(model, example), many(example, 30)
    labels = labels_for(inputs)
    ids = torch.tensor([5, 2, 9]).repeat(10)
    rows = oracle_clients(model, layout, inputs, labels, ids)
    for row, client in zip(rows, (2, 5, 9), strict=True):
        own = ids == client
        alone = oracle(model, layout, inputs[own], labels[own])
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-6)
    whole = oracle(model, layout, inputs, labels)
    torch.testing.assert_close(rows.mean(0), whole, rtol=1e-9, atol=1e-12)
    by_name = score(model, layout, [(inputs, labels)], "oracle")
    torch.testing.assert_close(by_name, whole.abs().float())


@pytest.mark.parametrize("after", [1, 3])
def test_an_oracle_that_was_interrupted_goes_on_to_the_same_bits(
    build: Any, tmp_path: Path, after: int
) -> None:
    model, example = build("plain")
    layout, inputs = UnitLayout.of(model, example), many(example, 130)
    labels, state = labels_for(inputs), tmp_path / "kept" / "oracle.safetensors"
    whole = oracle(model, layout, inputs, labels)
    seen: list[tuple[int, int]] = []

    def stop(done: int, of: int) -> None:
        seen.append((done, of))
        if len(seen) == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        oracle(model, layout, inputs, labels, state=state, progress=stop)
    rest: list[int] = []
    found = oracle(
        model, layout, inputs, labels, state=state, progress=lambda done, _of: rest.append(done)
    )
    assert torch.equal(found, whole)
    assert rest[0] > seen[-1][0]
    assert rest[-1] == 130
    rest.clear()
    again = oracle(
        model, layout, inputs, labels, state=state, progress=lambda done, _of: rest.append(done)
    )
    assert torch.equal(again, whole)
    assert rest == []
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_a_state_file_of_something_else_is_refused_and_left_alone(
    build: Any, tmp_path: Path
) -> None:
    model, example = build("plain")
    layout, inputs = UnitLayout.of(model, example), many(example, 20)
    labels, state = labels_for(inputs), tmp_path / "oracle.safetensors"
    oracle(model, layout, inputs, labels, state=state)
    kept = state.read_bytes()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.out.bias[0] += 1e-3
    for network, images, named in (
        (other, inputs, labels),
        (model, inputs + 1e-3, labels),
        (model, inputs, labels.roll(1)),
        (model, inputs[:10], labels[:10]),
    ):
        with pytest.raises(PruningError, match="another network, other units or other examples"):
            oracle(network, layout, images, named, state=state)
    assert state.read_bytes() == kept
    state.write_bytes(kept[:40])
    with pytest.raises(PruningError, match="no state of an oracle or damaged"):
        oracle(model, layout, inputs, labels, state=state)


def test_the_oracle_changes_neither_the_model_nor_the_inputs(build: Any) -> None:
    model, example = build("residual")
    layout, inputs = UnitLayout.of(model, example), many(example, 20)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = inputs.clone()
    oracle(model, layout, inputs, labels_for(inputs))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(inputs, images)
    assert model.training


def test_the_only_unit_of_a_group_has_an_oracle_too() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 4)), torch.randn(20, 3)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    (found,) = oracle(model, layout, inputs, labels).tolist()
    silent = model[2].bias.detach().double().expand(20, -1)
    wanted = float(functional.cross_entropy(silent, labels))
    change = wanted - loss_of(copy.deepcopy(model).double(), inputs, labels)
    assert found == pytest.approx(change, abs=1e-7)


def test_bad_input_is_one_sentence(build: Any) -> None:
    model, inputs = build("plain")
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    with pytest.raises(PruningError, match="at least one example"):
        oracle(model, layout, inputs[:0], labels[:0])
    with pytest.raises(PruningError, match="labels must be given"):
        oracle(model, layout, inputs)
    with pytest.raises(ModelError, match=r"labels must be in \[0, 4\).*got 4"):
        oracle(model, layout, inputs, labels * 0 + 4)
    with pytest.raises(ModelError, match="the loss of PlainCnn is nan for an example"):
        oracle(model, layout, inputs * float("nan"), labels)
    with pytest.raises(LayoutMismatchError):
        oracle(build("residual")[0], layout, inputs, labels)


# Separate gates.


def test_every_channel_of_every_batch_norm_has_a_gate_as_in_the_paper() -> None:
    model = models.load("resnet20", num_classes=10, input_shape=(3, 32, 32), seed=0)
    layout = UnitLayout.of(model, torch.zeros(1, 3, 32, 32))
    gates = separate_gates(layout)
    channels = {n: m.num_features for n, m in model.named_modules() if hasattr(m, "num_features")}
    assert len(gates) == sum(channels.values()) == 688
    assert {group.name: len(group) for group in gates.groups} == channels
    assert len(gates) - channels["bn1"] == 672
    assert len(separate_gates(layout, selections=True)) == 688 + 32 + 64
    assert separate_gates(gates) is gates


@pytest.mark.parametrize("name", [*NAMES])
def test_slopes_of_separate_gates_add_up_to_the_units_slope(build: Any, name: str) -> None:
    from fedprune.pruning.scores.gates import GateGradients

    model, inputs = build(name)
    layout, labels = UnitLayout.of(model, inputs), labels_for(inputs)
    gates = separate_gates(layout, selections=True)
    apart = GateGradients(model, gates).of(inputs, labels)
    together = torch.zeros(6, len(layout)).index_add_(1, gates.unit_of, apart)
    wanted = GateGradients(model, layout).of(inputs, labels)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["residual", "concat", "plain", "signal"])
def test_the_oracle_of_a_gate_closes_its_channel_alone(build: Any, name: str) -> None:
    model, example = build(name)
    inputs = many(example, 20)
    gates, labels = separate_gates(UnitLayout.of(model, example)), labels_for(inputs)
    found = oracle(model, gates, inputs, labels)
    precise = copy.deepcopy(model).double()
    base = loss_of(precise, inputs, labels)
    wanted = []
    for site in gates.sites:
        for gate in site.units[site.units >= 0].tolist():
            channels = torch.from_numpy(site.units != gate).double()
            module = precise.get_submodule(site.name)
            last = isinstance(module, nn.Linear)
            channels = channels if last else channels.view(-1, *[1] * (inputs.ndim - 2))
            handle = module.register_forward_hook(lambda _m, _i, out, c=channels: out * c)
            wanted.append(loss_of(precise, inputs, labels) - base)
            handle.remove()
    torch.testing.assert_close(
        found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=2e-6
    )


def test_magnitude_of_a_gate_is_that_of_the_weights_before_it(build: Any) -> None:
    model, inputs = build("residual")
    gates = separate_gates(UnitLayout.of(model, inputs))
    found = score(model, gates, [], "magnitude_l2")
    for gate, conv in (("stem_bn", "stem"), ("back_bn", "back"), ("skip", "skip")):
        (group,) = (one for one in gates.groups if one.name == gate)
        norms = model.get_submodule(conv).weight.flatten(1).norm(dim=1).detach()
        torch.testing.assert_close(found[group.units], norms)


def test_surgery_refuses_separate_gates_by_name(build: Any) -> None:
    model, inputs = build("residual")
    gates = separate_gates(UnitLayout.of(model, inputs))
    mask = select(score(model, gates, [(inputs, labels_for(inputs))]), gates, keep_units=0.5)
    for removal in (mask_model, shrink):
        with pytest.raises(PruningError, match="separate gates of Residual can be scored but not"):
            removal(model, gates, mask)
    with pytest.raises(PruningError, match="separate gates of Residual"):
        gates.params(mask)
