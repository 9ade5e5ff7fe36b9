"""Fine-tuning under a tolerance for every group's excess loss: one dual variable a group.

Before a round its clients count, on their own training rows, where the dense and the present model
are right. From the sum follow the groups' excess losses, the duals move along them
(`fairness.dual_step`), and the round's examples are weighed by `fairness.group_weights` (Tran,
Fioretto, Kim & Naidu 2022). The counts leave the clients, and are written down as that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune import fairness
from fedprune.federated.evaluation import sum_tables
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.group_weights import write_weights

Floats = NDArray[np.float64]

LARGEST_DUAL = 10.0
LEAST_ROWS = 30  # of a group, below which its loss is mostly chance and moves no dual


@dataclass(frozen=True)
class Weighted:
    """How a round weighs its examples.

    Attributes:
        settings: what its question says of it.
        told: what its event says: excess losses, duals, weights.
    """

    settings: dict[str, str]
    told: JsonDict


def weigh(
    experiment: Experiment,
    held: Held,
    dense: Held,
    round_name: str,
    clients: list[int],
    duals: ArrayLike | None,
) -> Weighted:
    """Ask a round's clients for their counts and move the duals.

    Args:
        experiment: the run.
        held: the model that the round begins with.
        dense: what it is compared with.
        round_name: of the round of training.
        clients: who takes part in it.
        duals: [num_groups] as the last round left them; None before the first.
    """
    train, groups = experiment.config.train, experiment.config.data.groups
    names = experiment.schema.group_names(groups)
    before = np.zeros(len(names)) if duals is None else np.asarray(duals, dtype=np.float64)
    counts = sum_tables(experiment, held, dense, "train", clients, f"{round_name}-groups")
    rows = counts.sum(axis=(1, 2))
    excess = excess_losses(counts)
    after = fairness.dual_step(
        before,
        excess,
        tolerance=train.fairness_tolerance,
        step=train.fairness_step,
        largest=LARGEST_DUAL,
    )
    weights = fairness.group_weights(after, rows)
    told = {
        "excess_losses": [None if np.isnan(value) else float(value) for value in excess],
        "duals": after.tolist(),
        "group_weights": weights.tolist(),
    }
    asked = {"groups": groups, "group_weights": write_weights(weights)}
    return Weighted(asked, told)


def excess_losses(counts: NDArray[np.int64]) -> Floats:
    """How much more each group lost by pruning than everybody: [num_groups].

    NaN, by which `fairness.dual_step` leaves a dual where it is, for a group of fewer than
    `LEAST_ROWS` rows: one of two rows lost would be a loss of a half.

    Args:
        counts: [num_groups, 2, 2], dense wrong or right by pruned wrong or right.
    """
    lost = (counts[:, 1, 0] - counts[:, 0, 1]).astype(np.float64)
    rows = counts.sum(axis=(1, 2)).astype(np.float64)
    excess = lost / np.maximum(rows, 1.0) - lost.sum() / max(1.0, rows.sum())
    return np.where(rows < LEAST_ROWS, np.nan, excess)
