"""A client's local training: plain stochastic gradient descent on its own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.errors import ModelError


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in one round."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float


def train_locally(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    how: LocalTraining,
    generator: np.random.Generator,
) -> float:
    """Train `model` in place on one client's rows.

    Args:
        model: on return it has the client's weights and is in eval mode.
        inputs: [rows, *input_shape] float32.
        labels: [rows] int64.
        how: epochs, batch size, step size.
        generator: decides the order of the rows.

    Returns:
        Mean cross-entropy over the last epoch, before each of its steps.

    Raises:
        ModelError: if the loss is not finite.
    """
    _set_mode(model, len(labels))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=how.learning_rate,
        momentum=how.momentum,
        weight_decay=how.weight_decay,
    )
    mean = 0.0
    for _ in range(how.epochs):
        total = 0.0
        for batch in _batches(len(labels), how.batch_size, generator):
            index = torch.from_numpy(batch)
            loss = nn.functional.cross_entropy(model(inputs[index]), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        mean = total / len(labels)
        if not math.isfinite(mean):
            raise ModelError(
                f"training diverged: the loss is {mean} at a learning rate of "
                f"{how.learning_rate:g}; it must be smaller, or the data hold values that are "
                "not finite"
            )
    model.eval()
    return mean


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
