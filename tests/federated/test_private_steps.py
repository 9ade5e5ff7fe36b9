"""DP-SGD in whole numbers: one record counts for the clipping norm at most, measured exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedprune import models
from fedprune.errors import ModelError, PrivacyError
from fedprune.federated import per_record
from fedprune.federated.per_record import (
    PerRecordGradients,
    freeze,
    per_record_gradients,
    trainable_places,
)
from fedprune.federated.private_steps import (
    PrivateTraining,
    clip,
    clipped_sum,
    train_privately,
)
from fedprune.privacy.budgets.composition import epsilon_of
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD
from fedprune.privacy.mechanisms.gaussian_noise import SIGMA
from fedprune.randomness import SimulationRandomness
from fedprune.runs import Architecture, load_weights_vector, weights_vector

HOW = PrivateTraining(
    steps=3, sample_rate=1.0, noise_multiplier=0.7, max_grad_norm=0.5, batch_size=8,
    learning_rate=0.3,
)  # fmt: skip
SHAPES = {"mlp": (6,), "lenet": (1, 8, 8), "resnet20": (3, 8, 8)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Silent:
    """Words of zeros: the noise they give is zero."""

    word_bits, is_private = 64, False

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.zeros(count, dtype=np.uint64)


def architecture_of(name: str, *, shrunk: bool = False) -> Architecture:
    dense = Architecture.dense(name, 10, SHAPES[name])
    if not shrunk:
        return dense
    mask = torch.arange(len(dense.dense_layout)) % 3 != 0
    return dense.with_mask(mask)


def prepared(name: str, *, shrunk: bool = False, batch_size: int = 8) -> PerRecordGradients:
    gradients = per_record_gradients(architecture_of(name, shrunk=shrunk), batch_size)
    weights = weights_vector(gradients.model)
    noise = torch.rand(len(weights), generator=torch.Generator().manual_seed(3))
    load_weights_vector(gradients.model, weights * (0.8 + 0.4 * noise))
    return gradients


def rows_of(name: str, count: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 10, (count,), generator=random)
    return torch.randn(count, *SHAPES[name], generator=random), labels


def spoil(inputs: Tensor, labels: Tensor) -> None:
    """Put records among the others that break what can be broken."""
    for row, value in enumerate([math.nan, math.inf, -math.inf, 3e38, 1e20, 1e-40, 0.0]):
        inputs[row] = value
    inputs[7, ..., 0] = math.nan
    labels[8], labels[9], labels[10] = 10, -1, -100


def squared(units: Tensor) -> int:
    return sum(int(value) ** 2 for value in units)


@pytest.mark.parametrize(
    ("name", "shrunk"),
    [("mlp", False), ("mlp", True), ("lenet", False), ("lenet", True), ("resnet20", True)],
)
def test_a_record_changes_the_sum_by_the_clipping_norm_at_most(name: str, shrunk: bool) -> None:
    gradients = prepared(name, shrunk=shrunk)
    inputs, labels = rows_of(name, 19)
    spoil(inputs, labels)
    together = clipped_sum(gradients, inputs, labels, HOW)
    reached = 0.0
    for row in (0, 3, 4, 8, 11, 18):
        rest = torch.arange(19) != row
        change = together - clipped_sum(gradients, inputs[rest], labels[rest], HOW)
        assert squared(change) <= HOW.clip_units**2
        reached = max(reached, math.sqrt(squared(change)) / HOW.clip_units)
    assert reached > 0.999  # the bound is tight: ordinary gradients are longer than 1/2


@pytest.mark.parametrize("name", list(SHAPES))
def test_our_networks_take_several_records_at_once(name: str) -> None:
    assert prepared(name).rows_per_pass == prepared(name, shrunk=True).rows_per_pass == 8


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_spoiled_record_leaves_the_others_untouched_to_the_last_bit(name: str) -> None:
    gradients = prepared(name)
    inputs, labels = rows_of(name, 16)
    clean = [part.clone() for part in gradients.passes(inputs, labels)]
    spoil(inputs, labels)
    spoiled = [part.clone() for part in gradients.passes(inputs, labels)]
    assert torch.equal(torch.cat(clean)[11:], torch.cat(spoiled)[11:])
    units = clip(torch.cat(spoiled), 0.5, HOW.clip_units)
    assert not units[[0, 1, 2, 7, 8, 9, 10]].any()


@example([0.0], 1.0, 1.6)  # in floating point 2^30 / 1.6 is a whole number, exactly it is not
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40),
    st.floats(1e-6, 1e6),
    st.floats(2.0**-6, 2.0**16),
)
def test_what_comes_out_of_clipping_is_never_longer_than_the_norm(
    values: list[float], norm: float, multiplier: float
) -> None:
    how = replace(HOW, max_grad_norm=norm, noise_multiplier=multiplier)
    found = clip(torch.tensor([values]), norm, how.clip_units)[0]
    assert squared(found) <= how.clip_units**2
    assert how.clip_units * Fraction(multiplier) <= SIGMA  # never less noise than asked for
    length = math.fsum(value * value for value in values)
    if math.isfinite(length) and length <= norm * norm:  # what is short enough is only rounded
        unit = norm / how.clip_units
        for value, units in zip(values, found.tolist(), strict=True):
            assert abs(value - units * unit) <= unit + 1e-5 * abs(value)


def test_without_noise_and_with_every_record_it_is_clipped_gradient_descent() -> None:
    for name in SHAPES:
        gradients, twin = prepared(name), prepared(name, batch_size=1)
        inputs, labels = rows_of(name, 12)
        how = replace(HOW, momentum=0.9, weight_decay=0.01)
        train_privately(gradients, inputs, labels, how, Silent())
        moving = [torch.zeros_like(p) for p in twin.trainable]
        for _ in range(how.steps):
            total = [torch.zeros_like(p) for p in twin.trainable]
            for row in range(12):  # plain automatic differentiation, one record at a time
                loss = nn.functional.cross_entropy(twin.model(inputs[[row]]), labels[[row]])
                parts = torch.autograd.grad(loss, twin.trainable)
                length = torch.cat([part.flatten() for part in parts]).norm()
                factor = (how.max_grad_norm / length).clamp(max=1.0)
                total = [t + factor * part for t, part in zip(total, parts, strict=True)]
            with torch.no_grad():
                for parameter, moved, t in zip(twin.trainable, moving, total, strict=True):
                    moved.mul_(0.9).add_(t / how.batch_size + 0.01 * parameter)
                    parameter.sub_(how.learning_rate * moved)
        torch.testing.assert_close(
            weights_vector(gradients.model), weights_vector(twin.model), rtol=1e-4, atol=1e-5
        )


def test_the_noise_in_a_step_has_the_stated_size_in_every_parameter() -> None:
    gradients = prepared("lenet")
    before = weights_vector(gradients.model)
    how = replace(HOW, steps=1, learning_rate=1.0, noise_multiplier=2.0)
    inputs, labels = rows_of("lenet", 0)
    train_privately(gradients, inputs, labels, how, SimulationRandomness(1))
    moved = (weights_vector(gradients.model) - before).numpy() * how.batch_size
    assert moved.std() == pytest.approx(2.0 * how.max_grad_norm, rel=0.03)
    assert abs(moved.mean()) < 5 * moved.std() / math.sqrt(len(moved))


def test_batch_norms_and_buffers_stay_bit_for_bit() -> None:
    gradients = prepared("resnet20", shrunk=True)
    before = weights_vector(gradients.model).clone()
    counters = [b.clone() for b in gradients.model.buffers() if not b.is_floating_point()]
    inputs, labels = rows_of("resnet20", 9)
    train_privately(gradients, inputs, labels, HOW, SimulationRandomness(2))
    trained = trainable_places(gradients.model)
    after = weights_vector(gradients.model)
    assert torch.equal(before[~trained], after[~trained])
    assert (before[trained] != after[trained]).float().mean() > 0.99
    assert int(trained.sum()) == gradients.size
    after_counters = [b for b in gradients.model.buffers() if not b.is_floating_point()]
    assert all(map(torch.equal, counters, after_counters))


def test_an_empty_batch_gets_noise_as_any_other() -> None:
    gradients = prepared("mlp")
    start = weights_vector(gradients.model).clone()
    inputs, labels = rows_of("mlp", 3)
    never = replace(HOW, sample_rate=5e-324)
    train_privately(gradients, inputs, labels, never, SimulationRandomness(7))
    with_rows = weights_vector(gradients.model)
    assert not torch.equal(start, with_rows)


def test_steps_are_counted_and_records_drawn_at_the_accounted_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []

    def no_gradient(_: object, inputs: Tensor, *_rest: object) -> Tensor:
        drawn.append(len(inputs))
        return torch.zeros(gradients.size, dtype=torch.int64)

    gradients = prepared("mlp")
    monkeypatch.setattr("fedprune.federated.private_steps.clipped_sum", no_gradient)
    inputs, labels = rows_of("mlp", 50)
    how = replace(HOW, steps=200, sample_rate=0.13)
    train_privately(gradients, inputs, labels, how, SimulationRandomness(9))
    assert len(drawn) == how.steps == how.event.steps
    assert np.mean(drawn) / 50 == pytest.approx(how.event.sampling_rate, abs=0.015)


def test_weights_that_overflow_end_the_training_before_that_step() -> None:
    gradients = prepared("mlp")
    inputs, labels = rows_of("mlp", 5)
    how = replace(HOW, learning_rate=1e38, max_grad_norm=1e30, steps=5)
    start = weights_vector(gradients.model).clone()
    train_privately(gradients, inputs, labels, how, SimulationRandomness(1))
    assert torch.equal(weights_vector(gradients.model), start)


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps"), [(0.01, 0.8, 3000), (0.1, 1.5, 500), (0.05, 2.5, 1000)]
)
def test_the_epsilon_of_training_is_that_of_opacus_within_one_percent(
    rate: float, multiplier: float, steps: int
) -> None:
    how = replace(HOW, steps=steps, sample_rate=rate, noise_multiplier=multiplier)
    accountant = PRVAccountant()
    accountant.history = [(multiplier, rate, steps)]
    expected = accountant.get_epsilon(1e-5)
    assert epsilon_of([(how.event, 1)], 1e-5, ADD_REMOVE_RECORD) == pytest.approx(
        expected, rel=0.01
    )


@pytest.mark.parametrize("name", [*models.names(), "resnet18", "mobilenet_v2"])
def test_frozen_networks_pass_opacus_validator(name: str) -> None:
    model = models.load(name, num_classes=10, seed=1)
    freeze(model, name)
    model.training = True  # as the validator asks of the root alone
    assert ModuleValidator.validate(model) == []


def test_a_batch_norm_without_running_statistics_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ModelError, match=r"own cannot be trained .* batch norm '1' has no running"):
        freeze(model, "own")
    with pytest.raises(ModelError, match="no parameter to train"):
        freeze(nn.Sequential(nn.BatchNorm1d(4)), "own")


class Functional(nn.Module):
    """Uses a layer's weights without calling it: hooks on the layer see nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.inner.weight, self.inner.bias)


class Attention(nn.Module):
    """Has a module that Opacus refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs[:, None, :]
        head: Tensor = self.head(self.attention(tokens, tokens, tokens)[0][:, 0])
        return head


class Mixing(nn.Module):
    """Centres a batch: records mix, and no layer says so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.inner(inputs)
        return logits - logits.mean(dim=0) / 2


@pytest.mark.parametrize("kind", [Functional, Attention, Mixing])
def test_what_opacus_cannot_take_apart_is_differentiated_record_by_record(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    template = kind()

    def build(_architecture: Architecture, rows: int) -> PerRecordGradients:
        twin = kind()
        twin.load_state_dict(template.state_dict())
        return PerRecordGradients(twin, "own", 10, rows)

    monkeypatch.setattr(per_record, "_prepared", build)
    per_record._sound_rows.cache_clear()
    gradients = per_record_gradients(architecture_of("mlp"), 8)
    per_record._sound_rows.cache_clear()
    assert gradients.rows_per_pass == 1
    inputs, labels = rows_of("mlp", 3)
    found = torch.cat(list(gradients.passes(inputs, labels)))
    loss = nn.functional.cross_entropy(template(inputs[[1]]), labels[[1]])
    parts = torch.autograd.grad(loss, list(template.parameters()))
    torch.testing.assert_close(found[1], torch.cat([part.flatten() for part in parts]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_multiplier", 0.0), ("noise_multiplier", -1.0), ("noise_multiplier", math.nan),
     ("noise_multiplier", 1e-3), ("noise_multiplier", math.inf), ("max_grad_norm", 0.0),
     ("max_grad_norm", math.nan), ("max_grad_norm", math.inf), ("sample_rate", 0.0),
     ("sample_rate", 1.5), ("sample_rate", math.nan), ("steps", 0), ("batch_size", 0)],
)  # fmt: skip
def test_settings_that_cannot_be_accounted_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=name.replace("sample_rate", "sampling rate")):
        replace(HOW, **{name: value})
