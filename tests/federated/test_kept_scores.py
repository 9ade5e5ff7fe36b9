"""What a process keeps of its clients' scores, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedprune.federated.kept_scores import KeptScores

UNITS = 3


class Scoring:
    """Scores that tell whose they are; remembers who was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, clients: Sequence[int]) -> Tensor:
        self.asked.append(list(clients))
        return expected(clients)


def expected(clients: Sequence[int]) -> Tensor:
    return torch.tensor([[100.0 * client + unit for unit in range(UNITS)] for client in clients])


@pytest.mark.parametrize("rows", [0, 1, 3, 100])
def test_scores_are_the_clients_own_whatever_fits(rows: int) -> None:
    kept, compute = KeptScores(50, most_bytes=4 * UNITS * rows), Scoring()
    for clients in ([4, 2, 9], [2], [9, 1, 4, 30], [30, 1], [49, 48, 2]):
        assert torch.equal(kept.get("a", clients, compute), expected(clients))
    assert (
        sorted(len(asked) for asked in compute.asked)
        == {
            0: [1, 2, 3, 3, 4],
            1: [2, 2, 3, 4],  # client 2 is the one that fits
            3: [2, 2, 2, 3],
            100: [2, 2, 3],
        }[rows]
    )


def test_kept_scores_are_not_computed_again_and_another_model_drops_them() -> None:
    kept, compute = KeptScores(10), Scoring()
    for key in ("a", "a", "b", "a"):
        kept.get(key, [3, 1], compute)
    assert compute.asked == [[1, 3], [1, 3], [1, 3]]


def test_no_more_is_kept_than_there_are_clients() -> None:
    kept, compute = KeptScores(1), Scoring()
    kept.get("a", [7], compute)
    assert torch.equal(kept.get("a", [7], compute), expected([7]))
    assert compute.asked == [[7]]
