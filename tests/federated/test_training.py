"""Local training: the arithmetic of torch's optimizer, and nothing left over from one client."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune import models
from fedprune.errors import ModelError, RunError
from fedprune.federated.training import LocalTraining, Trainer, train_locally
from fedprune.federated.trial import Traits, traits_of
from fedprune.runs import weights_vector

PLAIN = Traits(draws=False, channels_last=False)
SHAPE = (3, 8, 8)
HOW = LocalTraining(epochs=2, batch_size=4, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *SHAPE, generator=generator)
    return inputs, torch.randint(0, 10, (count,), generator=generator)


def order(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def network(norm: nn.Module, *more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), *more, nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * 64, 10))


def with_batch_counts() -> nn.Module:
    return network(nn.BatchNorm2d(6, momentum=None))  # averages over all batches that it counted


def with_dropout() -> nn.Module:
    return network(nn.Identity(), nn.Dropout(0.5))


class Viewing(nn.Module):
    """Relies on how images lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).view(len(images), -1))
        return logits


class Striding(nn.Module):
    """Computes something else where images lie differently in memory, without a complaint."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Linear(3 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.as_strided((len(images), 3 * 64), (3 * 64, 1))
        logits: Tensor = self.head(flat) + self.conv(images).mean()
        return logits


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_a_step_is_that_of_torchs_optimizer_bit_for_bit(
    momentum: float, weight_decay: float
) -> None:
    inputs, labels = rows(11)
    how = LocalTraining(3, 4, 0.1, momentum, weight_decay)
    ours, theirs = (models.load("lenet", input_shape=SHAPE, seed=3) for _ in range(2))
    train_locally(ours, inputs, labels, how, order(), PLAIN)
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay
    )
    theirs.train()
    random = order()
    for _ in range(3):
        places = torch.from_numpy(random.permutation(11))
        for batch in (places[:4], places[4:8], places[8:]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    assert torch.equal(weights_vector(ours), weights_vector(theirs))


@pytest.mark.parametrize("make", [with_batch_counts, with_dropout])
def test_a_client_is_trained_alike_whoever_was_trained_before_it(make) -> None:
    first, second = make(), make()
    trainers = [Trainer(model, traits_of(model, SHAPE)) for model in (first, second)]
    start = weights_vector(first)
    trainers[0].train(start, *rows(9, seed=5), HOW, order(5))
    torch.rand(7)  # and whatever else drew meanwhile
    losses = [trainer.train(start, *rows(9), HOW, order()) for trainer in trainers]
    assert losses[0] == losses[1]
    assert torch.equal(trainers[0].read(), trainers[1].read())


def test_what_a_network_draws_is_put_back_and_differs_from_client_to_client() -> None:
    model = with_dropout()
    trainer = Trainer(model, traits_of(model, SHAPE))
    start, before = weights_vector(model), torch.random.get_rng_state()
    losses = [trainer.train(start, *rows(9), HOW, order(seed)) for seed in (1, 2)]
    assert losses[0] != losses[1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_read_vector_is_the_weights_vector_of_the_model() -> None:
    model = network(nn.BatchNorm2d(6))
    trainer = Trainer(model, PLAIN)
    trainer.train(weights_vector(model), *rows(9), HOW, order())
    slot = torch.zeros(trainer.size)
    trainer.read(slot)
    assert torch.equal(slot, weights_vector(model))
    assert torch.equal(slot, trainer.read())


def test_layouts_in_memory_differ_by_rounding_only() -> None:
    found = []
    for channels_last in (False, True):
        model = models.load("lenet", input_shape=SHAPE, seed=3)
        train_locally(model, *rows(9), HOW, order(), Traits(False, channels_last))
        found.append(weights_vector(model))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_channels_lie_together_only_where_the_network_computes_the_same() -> None:
    convolutional = models.load("lenet", input_shape=SHAPE, seed=0)
    assert traits_of(convolutional, SHAPE).channels_last
    assert not traits_of(models.load("mlp", input_shape=SHAPE, seed=0), SHAPE).channels_last
    assert not traits_of(Viewing(), SHAPE).channels_last
    assert not traits_of(Striding(), SHAPE).channels_last


def test_a_trial_leaves_network_and_random_state_as_they_were() -> None:
    model = network(nn.BatchNorm2d(6), nn.Dropout(0.1))
    before, drawn = weights_vector(model), torch.random.get_rng_state()
    assert traits_of(model, SHAPE).draws
    assert torch.equal(before, weights_vector(model))
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_single_row_leaves_batch_norm_as_it_is() -> None:
    model = network(nn.BatchNorm2d(6))
    trainer = Trainer(model, traits_of(model, SHAPE))
    trainer.train(weights_vector(model), *rows(1), HOW, order())
    assert torch.equal(model.state_dict()["1.running_mean"], torch.zeros(6))
    assert not torch.equal(model.state_dict()["0.weight"], network(nn.Identity())[0].weight)


def test_weights_of_another_network_are_refused() -> None:
    trainer = Trainer(with_dropout(), PLAIN)
    with pytest.raises(RunError, match=f"must have {trainer.size} numbers"):
        trainer.train(torch.zeros(3), *rows(2), HOW, order())


def test_a_step_that_is_too_large_is_said_in_one_sentence() -> None:
    how = LocalTraining(20, 4, 1e20, 0.0, 0.0)
    with pytest.raises(ModelError, match="training diverged"):
        train_locally(with_batch_counts(), *rows(9), how, order())
