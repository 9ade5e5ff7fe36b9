"""A client's part in giving batch norms new statistics: sums over its own training rows.

They leave it as they are, like the weights of open training, and are written down as that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune import robustness
from fedprune.federated.answering import send_unprotected
from fedprune.federated.answers import Answers, Outcomes
from fedprune.federated.messages import Question
from fedprune.federated.station import RowSource, Station, model_of
from fedprune.robustness import BatchNormSums

KIND = "query.norms"
_BATCH = 256  # rows a pass; sums do not depend on it but for rounding


def answer_norms(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Sum the moments of what every batch norm receives."""
    model = model_of(question.architecture, question.weights)
    rows = np.stack([_packed(_sums(station, model, client)) for client in clients])
    packed = rows.astype("<f8").view(np.uint8)
    answers = Answers(np.array(clients, dtype=np.int64), {"sums": packed})
    return send_unprotected(station, question, "norm-statistics", clients, answers)


def _sums(station: Station, model: torch.nn.Module, client: int) -> BatchNormSums:
    source = RowSource(station.dataset.train, station.index(client, "train"))

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(source), _BATCH):
            yield source.batch(start, min(start + _BATCH, len(source)))[0]

    return robustness.batch_norm_sums(model, batches())


def _packed(found: BatchNormSums) -> NDArray[np.float64]:
    """One vector: of every layer its count, its sums and its squares."""
    parts = [
        torch.cat([total.new_tensor([found.counts[name]]), total, found.squares[name]])
        for name, total in found.sums.items()
    ]
    return torch.cat(parts).double().numpy()


def unpacked(vector: NDArray[np.float64], channels: dict[str, int]) -> BatchNormSums:
    """Read what clients sent, or the sum of it.

    Args:
        vector: float64, of each layer 1 + 2 channels numbers.
        channels: of every batch norm with statistics, by name, in the order of the model.
    """
    counts, sums, squares, start = {}, {}, {}, 0
    for name, width in channels.items():
        part = torch.from_numpy(np.array(vector[start : start + 1 + 2 * width]))
        counts[name] = round(float(part[0]))
        sums[name], squares[name] = part[1 : 1 + width], part[1 + width :]
        start += 1 + 2 * width
    return BatchNormSums(counts, sums, squares, examples=max(counts.values(), default=0))
