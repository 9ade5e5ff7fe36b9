"""Examples that pruning treats differently, found where they are: on the client.

Pruning-identified exemplars (Hooker, Courville, Clark, Dauphin & Frome 2019, "What do compressed
deep neural networks forget?"): examples on which the most frequent prediction of a population of
dense models differs from that of a population of pruned ones; with one model each, those on which
the two disagree. A client looks at them itself. What may leave it is `counts`, a table in which a
record falls in one cell, to be treated as every count table is; indices and examples never leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fedprune.errors import FairnessError
from fedprune.fairness._predict import class_scores
from fedprune.fairness.counting import (
    Counts,
    as_codes,
    check_codes,
    check_lengths,
    check_size,
    count_cells,
    to_numpy,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Disagreements:
    """Rows on which dense and pruned disagree: for the eyes of the client that holds them.

    Printing one shows counts only.

    Attributes:
        counts: [num_groups, 2] rows of each group on which the models agree, and disagree.
        indices: [disagreements] places of the rows, the worst first.
        dense: [disagreements] what the dense models predict there.
        pruned: [disagreements] what the pruned models predict there.
        severity: [disagreements] by how much the probability of the true class fell, mean over
            the models; negative where pruning mended it.
    """

    counts: Counts
    indices: Counts = field(repr=False)
    dense: Counts = field(repr=False)
    pruned: Counts = field(repr=False)
    severity: Floats = field(repr=False)


def find_disagreements(
    dense_models: nn.Module | Sequence[nn.Module],
    pruned_models: nn.Module | Sequence[nn.Module],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    groups: ArrayLike | torch.Tensor,
    *,
    num_groups: int | None = None,
    batch_size: int = 256,
) -> Disagreements:
    """Find the rows whose modal prediction pruning changes, and count them by group.

    Args:
        dense_models: one classifier or several, [rows, ...] to scores [rows, num_classes].
        pruned_models: one classifier or several of the same classes, after pruning.
        inputs: [rows, ...].
        labels: [rows] class codes.
        groups: [rows] group codes, 0 to `num_groups` - 1.
        num_groups: groups in the counts; the largest code plus one where it is not given.
        batch_size: rows evaluated together.

    Raises:
        FairnessError: if there are no rows or models, lengths differ, a code is out of range,
            models tell different numbers of classes apart or one returns no row for every input.
        ModelError: if a model returns scores that are not finite.
    """
    codes = as_codes(groups, "groups")
    check_lengths(len(inputs), labels=len(labels), groups=len(codes))
    count = check_codes(codes, num_groups, "group code", "num_groups")
    dense = _probabilities(dense_models, inputs, labels, batch_size, "dense_model")
    pruned = _probabilities(pruned_models, inputs, labels, batch_size, "pruned_model")
    if dense.shape[2] != pruned.shape[2]:
        raise FairnessError(
            f"dense and pruned models must have the same classes, got {dense.shape[2]} "
            f"and {pruned.shape[2]}"
        )
    before, after = modal_predictions(dense.argmax(2)), modal_predictions(pruned.argmax(2))
    truth = np.arange(len(codes)), torch.as_tensor(labels).cpu().long().numpy()
    fall = dense.mean(axis=0)[truth] - pruned.mean(axis=0)[truth]
    places = np.flatnonzero(before != after)
    places = places[np.argsort(-fall[places], kind="stable")]
    counts = count_cells((codes, (before != after).astype(np.int64)), (count,), cells=(2,))
    return Disagreements(counts, places, before[places], after[places], fall[places])


def modal_predictions(predictions: ArrayLike) -> Counts:
    """Give the most frequent class of each row over the models, the lowest of equals.

    Args:
        predictions: [models, rows] class codes.

    Returns:
        [rows] int64.

    Raises:
        FairnessError: if there is no model or no row, or codes are not natural numbers or have gaps
            too large to count over.
    """
    codes = to_numpy(predictions, "predictions")
    if codes.ndim != 2 or 0 in codes.shape or codes.dtype.kind not in "iu" or codes.min() < 0:
        raise FairnessError(
            f"predictions must be class codes [models, rows] of at least one model and row, got "
            f"the shape {list(codes.shape)} and the type {codes.dtype}"
        )
    shape = (codes.shape[1], int(codes.max()) + 1)
    check_size(shape, "classes")
    votes = np.zeros(shape, dtype=np.int64)
    for model in codes:
        votes[np.arange(len(model)), model] += 1
    return np.asarray(votes.argmax(axis=1), dtype=np.int64)


def _probabilities(
    models: nn.Module | Sequence[nn.Module],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    name: str,
) -> Floats:
    """Class probabilities [models, rows, classes]."""
    several = [models] if isinstance(models, nn.Module) else list(models)
    if not several:
        raise FairnessError(f"at least one {name} is needed, got none")
    scores = [class_scores(model, inputs, labels, batch_size, name) for model in several]
    sizes = sorted({int(one.shape[1]) for one in scores})
    if len(sizes) > 1:
        raise FairnessError(f"every {name} must have the same classes, got {sizes}")
    return torch.stack(scores).double().softmax(dim=2).numpy()
