"""A client's local training: plain stochastic gradient descent on its own rows.

Every engine trains with this code, on one thread and from one stream of random numbers a client,
so that the same client gets the same bits wherever it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.errors import ModelError, RunError
from fedprune.federated.trial import Traits
from fedprune.robustness import MarginLoss

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in one round.

    With a `margin_radius` above 0 the loss is `robustness.MarginLoss` at that radius, in units of
    the unnormalised input, whose channels were divided by `input_std` (none: they were not).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    margin_radius: float = 0.0
    input_std: Sequence[float] = ()


class _Margins:
    """A loss with margins for one network; each client's begins where the round's weights do."""

    def __init__(self, model: nn.Module, loss: MarginLoss) -> None:
        self.made_from, self._weights = loss, torch.zeros(0)
        self._loss = loss.bound_to(model)
        self._vectors = self._loss.vectors

    def at(self, weights: Tensor) -> Loss:
        """The loss as it begins at these weights, which the network has now."""
        if torch.equal(self._weights, weights):
            self._loss.resume(self._vectors)
        else:
            self._loss.restart()
            self._weights, self._vectors = weights.clone(), self._loss.vectors
        return self._loss


class Trainer:
    """A network that is trained for one client after another; it keeps nothing of any of them.

    Attributes:
        model: the network; its weights are the last client's.
        traits: what was found out about it.
        size: how many numbers a vector of its weights has.
    """

    def __init__(self, model: nn.Module, traits: Traits) -> None:
        """Take a network of one's own."""
        self.model, self.traits = model, traits
        named = model.state_dict()
        self._state = [tensor for tensor in named.values() if tensor.is_floating_point()]
        self._sizes = [tensor.numel() for tensor in self._state]
        self.size = sum(self._sizes)
        # What no weights vector covers, such as counts of batches, must not pass from one client
        # to the next: who was trained here before is chance.
        kept = {tensor.data_ptr() for tensor in self._state}
        self._others = [
            (buffer, buffer.clone()) for buffer in model.buffers() if buffer.data_ptr() not in kept
        ]
        self._margins: _Margins | None = None

    def train(
        self,
        weights: Tensor,
        inputs: Tensor,
        labels: Tensor,
        how: LocalTraining,
        generator: np.random.Generator,
        margins: MarginLoss | None = None,
        row_weights: Tensor | None = None,
    ) -> float:
        """Start from `weights` [size] and train on one client's rows, as `train_locally` does.

        With `margins`, made for the same architecture, the loss is that instead of cross-entropy;
        with `row_weights` [rows] every row's cross-entropy is multiplied by its weight.

        Raises:
            RunError: if the weights are not the network's.
            ModelError: if the loss is not finite.
        """
        self._load(weights)
        loss_of: Loss = nn.functional.cross_entropy
        if margins is not None:
            if self._margins is None or self._margins.made_from is not margins:
                self._margins = _Margins(self.model, margins)
            loss_of = self._margins.at(weights)
        return train_locally(
            self.model, inputs, labels, how, generator, self.traits, loss_of, row_weights
        )

    def read(self, out: Tensor | None = None) -> Tensor:
        """Give the weights as one vector [size] float32, into `out` if it is given."""
        if not self._state:
            return torch.zeros(0)
        parts = [tensor.reshape(-1).float() for tensor in self._state]
        return torch.cat(parts, out=out)

    def _load(self, weights: Tensor) -> None:
        if weights.numel() != self.size:
            raise RunError(
                f"weights must have {self.size} numbers for this model, got {weights.numel()}"
            )
        with torch.no_grad():
            for tensor, part in zip(self._state, torch.split(weights, self._sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))
            for buffer, first in self._others:
                buffer.copy_(first)


def train_locally(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    how: LocalTraining,
    generator: np.random.Generator,
    traits: Traits | None = None,
    loss_of: Loss = nn.functional.cross_entropy,
    row_weights: Tensor | None = None,
) -> float:
    """Train `model` in place on one client's rows.

    Args:
        model: on return it has the client's weights and is in eval mode.
        inputs: [rows, *input_shape] float32.
        labels: [rows] int64.
        how: epochs, batch size, step size.
        generator: decides the order of the rows, and what the network itself draws.
        traits: what a trial of the network found; without it nothing is assumed.
        loss_of: the mean loss of logits [n, classes] with labels [n].
        row_weights: [rows] float32; the loss is the mean of weighted cross-entropies then.

    Returns:
        Mean loss over the last epoch, before each of its steps.

    Raises:
        ModelError: if the loss is not finite.
    """
    traits = traits or Traits(draws=True, channels_last=False)
    with torch.random.fork_rng(devices=[], enabled=traits.draws):
        if traits.draws:
            torch.default_generator.manual_seed(int(generator.integers(0, 2**63)))
        rows = _Rows(inputs, labels, traits.channels_last, row_weights)
        return _descend(model, rows, how, generator, loss_of)


def _descend(
    model: nn.Module,
    rows: _Rows,
    how: LocalTraining,
    generator: np.random.Generator,
    loss_of: Loss,
) -> float:
    _set_mode(model, len(rows))
    steps = _Sgd([p for p in model.parameters() if p.requires_grad], how)
    mean = 0.0
    for _ in range(how.epochs):
        total = 0.0
        for batch in _batches(len(rows), how.batch_size, generator):
            inputs, labels, weights = rows.batch(batch)
            logits = model(inputs)
            if weights is None:
                loss = loss_of(logits, labels)
            else:
                each = nn.functional.cross_entropy(logits, labels, reduction="none")
                loss = (weights * each).mean()
            steps.clear()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            total += loss.item() * len(batch)
        mean = total / len(rows)
        if not math.isfinite(mean):
            raise ModelError(
                f"training diverged: the loss is {mean} at a learning rate of "
                f"{how.learning_rate:g}; it must be smaller, or the data hold values that are "
                "not finite"
            )
    steps.clear()
    model.eval()
    return mean


class _Rows:
    """A client's rows, laid out once in the order of memory that the network is fastest with."""

    def __init__(
        self, inputs: Tensor, labels: Tensor, channels_last: bool, weights: Tensor | None
    ) -> None:
        self._channels_last, self._weights = channels_last, weights
        self._inputs = inputs.permute(0, 2, 3, 1).contiguous() if channels_last else inputs
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        index = torch.from_numpy(places)
        inputs = self._inputs[index]
        if self._channels_last:
            inputs = inputs.permute(0, 3, 1, 2)
        weights = None if self._weights is None else self._weights[index]
        return inputs, self._labels[index], weights


class _Sgd:
    """Gradient descent with momentum, in the arithmetic of `torch.optim.SGD`.

    An optimizer object a client would cost as much as a small network's step.
    """

    def __init__(self, parameters: list[nn.Parameter], how: LocalTraining) -> None:
        self._parameters, self._how = parameters, how
        self._momenta: dict[nn.Parameter, Tensor] = {}

    def clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        how = self._how
        for parameter in self._parameters:
            change = parameter.grad
            if change is None:
                continue
            if how.weight_decay:
                change = change.add(parameter, alpha=how.weight_decay)
            if how.momentum:
                change = self._with_momentum(parameter, change)
            parameter.add_(change, alpha=-how.learning_rate)

    def _with_momentum(self, parameter: nn.Parameter, change: Tensor) -> Tensor:
        known = self._momenta.get(parameter)
        if known is None:
            known = self._momenta[parameter] = change  # nobody else has it: grads are dropped
        else:
            known.mul_(self._how.momentum).add_(change)
        return known


def _set_mode(model: nn.Module, rows: int) -> None:
    """Train mode; but a single row has no batch statistics, so batch norm then stays fixed."""
    model.train()
    if rows == 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _batches(rows: int, batch_size: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffle and cut; a last batch of one row joins the one before it."""
    order = generator.permutation(rows)
    cuts = list(range(batch_size, rows, batch_size))
    if cuts and rows - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)
