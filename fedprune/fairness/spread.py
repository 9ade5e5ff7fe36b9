"""How accuracy differs between clients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedprune.fairness.sample import accuracies
from fedprune.fairness.summary import ClientSpread, Spread
from fedprune.fairness.tables import Counts


def client_spread(tables: Counts) -> ClientSpread:
    """Describe accuracy over the clients that have rows.

    Args:
        tables: [num_clients, num_groups, 2, 2].
    """
    by_client = tables.sum(axis=1)
    held = by_client[by_client.sum(axis=(1, 2)) > 0]
    dense, pruned = accuracies(held)
    overall_dense, overall_pruned = accuracies(held.sum(axis=0))
    mean_inverse_rows = float((1 / held.sum(axis=(1, 2))).mean())
    return ClientSpread(
        clients=len(held),
        dense=_spread(dense),
        pruned=_spread(pruned),
        chance_variance_dense=float(overall_dense * (1 - overall_dense)) * mean_inverse_rows,
        chance_variance_pruned=float(overall_pruned * (1 - overall_pruned)) * mean_inverse_rows,
    )


def _spread(accuracy: NDArray[np.float64]) -> Spread:
    ordered = np.sort(accuracy)
    tenth = max(1, len(ordered) // 10)
    return Spread(float(ordered.var()), float(ordered[:tenth].mean()), float(ordered[0]))
