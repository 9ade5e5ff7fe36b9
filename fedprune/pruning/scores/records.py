"""Scores of single records, each as if it were a client of its own and alone in the world.

What is said about one record must not depend on another, not even by a rounding or an error: a
guarantee for records rests on it. Records therefore go through the network in passes of one fixed
size, filled up with zeros; a check with random inputs makes sure that in such passes no bit of a
record's scores depends on its place and its neighbours, and where it does, every record has a pass
to itself. A record whose scores cannot be computed has scores of zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import ModelError
from fedprune.models.widened import widen
from fedprune.pruning.scores.clients import Source
from fedprune.pruning.scores.gates import GateGradients
from fedprune.pruning.scores.scoring import score_clients
from fedprune.pruning.structure.layout import UnitLayout

RECORDS_PER_PASS = 50

Score = Callable[[Tensor, Tensor], Tensor]


def score_records(
    model: nn.Module, layout: UnitLayout, records: Source, criterion: str = "taylor"
) -> Tensor:
    """Score every unit for every record, a minibatch of one.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        records: Where the records' inputs and labels come from; there may be none.
        criterion: A key of `CRITERIA` that draws nothing at random.

    Returns:
        [num_records, num_units] float32, finite. A record's row is the same, bit for bit, whatever
        the other records are.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the criterion is unknown or needs a seed.
        ModelError: if the model gives nothing finite even for inputs of zeros.
    """
    steady = copy_model(model).requires_grad_(False)
    widen(steady)
    score = _taylor(steady, layout) if criterion == "taylor" else _named(model, layout, criterion)
    if len(records) == 0:
        return torch.zeros(0, len(layout))
    rows = _sound_rows(score, records.batch(0, 1)[0].shape[1:])
    parts = [
        _one_pass(score, rows, *records.batch(start, min(start + rows, len(records))))
        for start in range(0, len(records), rows)
    ]
    return torch.cat(parts)


def _taylor(model: nn.Module, layout: UnitLayout) -> Score:
    gates = GateGradients(model, layout)
    return lambda inputs, labels: gates.of(inputs, labels).double().square().float()


def _named(model: nn.Module, layout: UnitLayout, criterion: str) -> Score:
    def score(inputs: Tensor, labels: Tensor) -> Tensor:
        return score_clients(model, layout, inputs, labels, torch.arange(len(labels)), criterion)

    return score


def _sound_rows(score: Score, shape: torch.Size) -> int:
    """Check with random inputs that the records of a pass do not touch each other."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(RECORDS_PER_PASS, *shape, generator=random)
    labels = torch.zeros(RECORDS_PER_PASS, dtype=torch.int64)
    try:
        found = score(inputs, labels)
        moved = [score(inputs.roll(by, 0), labels).roll(-by, 0) for by in (1, 7)]
        fewer = score(*_filled(inputs[:1], labels[:1], RECORDS_PER_PASS))[:1]
    except ModelError:
        return 1
    steady = torch.equal(fewer, found[:1]) and all(torch.equal(one, found) for one in moved)
    return RECORDS_PER_PASS if steady else 1


def _one_pass(score: Score, rows: int, inputs: Tensor, labels: Tensor) -> Tensor:
    """Score up to a pass of records; where they fail together, one by one in passes as large."""
    try:
        scores = score(*_filled(inputs, labels, rows))[: len(labels)]
    except ModelError:
        if len(labels) == 1:
            return torch.zeros(1, score(*_filled(inputs[:0], labels[:0], rows)).shape[1])
        singly = [_one_pass(score, rows, inputs[[i]], labels[[i]]) for i in range(len(labels))]
        return torch.cat(singly)
    return scores.where(scores.isfinite().all(dim=1, keepdim=True), 0.0)


def _filled(inputs: Tensor, labels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    missing = rows - len(labels)
    return (
        torch.cat([inputs, inputs.new_zeros(missing, *inputs.shape[1:])]),
        torch.cat([labels, labels.new_zeros(missing)]),
    )
