"""Which predictions of a classifier are right, without changing the model it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedprune.errors import FairnessError, ModelError


def correct_predictions(
    dense_model: nn.Module,
    pruned_model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows two classifiers of the same classes get right: [rows] each."""
    dense = class_scores(dense_model, inputs, labels, batch_size, "dense_model")
    pruned = class_scores(pruned_model, inputs, labels, batch_size, "pruned_model", dense.shape[1])
    truth = torch.as_tensor(labels).cpu()
    return (dense.argmax(dim=1) == truth).numpy(), (pruned.argmax(dim=1) == truth).numpy()


def predict_classes(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    name: str,
    num_classes: int | None = None,
) -> NDArray[np.int64]:
    scores = class_scores(model, inputs, labels, batch_size, name, num_classes)
    return scores.argmax(dim=1).numpy()


def class_scores(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    name: str,
    num_classes: int | None = None,
) -> torch.Tensor:
    """Scores [rows, num_classes] of a model in evaluation mode, checked against the labels."""
    if batch_size < 1:
        raise FairnessError(f"batch_size must be at least 1, got {batch_size}")
    device = next((parameter.device for parameter in model.parameters()), inputs.device)
    targets = torch.as_tensor(labels).cpu()
    if targets.ndim != 1 or targets.is_floating_point():
        raise FairnessError(
            f"labels must be [rows] class codes, got the shape {list(targets.shape)} "
            f"and the type {targets.dtype}"
        )
    found = []
    with _evaluation_mode(model), torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            scores = model(inputs[start : start + batch_size].to(device)).cpu()
            batch = targets[start : start + batch_size]
            _check_scores(scores, batch, name)
            if num_classes is not None and scores.shape[1] != num_classes:
                raise FairnessError(
                    f"{name} must tell {num_classes} classes apart, got {scores.shape[1]} scores"
                )
            found.append(scores)
    return torch.cat(found)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_scores(scores: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise FairnessError(
            f"{name} must return scores [rows, num_classes] for at least 2 classes, "
            f"got the shape {list(scores.shape)}"
        )
    if len(scores) != len(labels):
        raise FairnessError(
            f"{name} must return scores for each of {len(labels)} inputs, got {len(scores)} rows"
        )
    if not bool(torch.isfinite(scores).all()):
        raise ModelError(f"{name} returned scores that are not finite")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[1]:
        wrong = low if low < 0 else high
        raise FairnessError(
            f"labels must be from 0 to {scores.shape[1] - 1}, the classes of {name}, got {wrong}"
        )
