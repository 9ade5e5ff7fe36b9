"""How accuracy differs between clients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedprune.fairness.counting import Counts
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.sample import accuracies
from fedprune.fairness.summary import ClientSpread, Spread

Floats = NDArray[np.float64]

_HIDDEN = Spread(None, None, None)


def client_spread(tables: Counts, noise: TableNoise | None = None) -> ClientSpread:
    """Describe accuracy over the clients that have rows; over all where counts are noisy.

    Args:
        tables: [num_clients, num_groups, 2, 2].
        noise: in every cell of every table.
    """
    by_client = tables.sum(axis=1)
    if noise is not None:
        # A cell of a client's table over all groups sums one cell a group.
        cell_variance = noise.times(tables.shape[1]).variance
        between = [_between_variance(by_client, axis, cell_variance) for axis in (2, 1)]
        return ClientSpread(len(tables), _HIDDEN, _HIDDEN, None, None, *between)
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
        between_variance_dense=_between_variance(held, 2, 0.0),
        between_variance_pruned=_between_variance(held, 1, 0.0),
    )


def _spread(accuracy: Floats) -> Spread:
    ordered = np.sort(accuracy)
    tenth = max(1, len(ordered) // 10)
    return Spread(float(ordered.var()), float(ordered[:tenth].mean()), float(ordered[0]))


def _between_variance(by_client: Counts, axis: int, noise_variance: float) -> float | None:
    """Estimate the variance of the clients' own accuracies by the method of moments.

    With n_i rows, r_i right and overall accuracy A, the residual e_i = r_i - A n_i has
    E e_i^2 = n_i (n_i - 1) (p_i - A)^2 + n_i (p_i (1 - p_i) + (p_i - A)^2), and the second terms
    sum to A (1 - A) sum n_i. Noise adds its variance to e_i^2 and to n_i^2, which is taken out.

    Args:
        by_client: [num_clients, 2, 2].
        axis: to sum over: 2 for the dense model, 1 for the pruned one.
        noise_variance: of each of a client's four counts.
    """
    wrong, right = np.moveaxis(by_client.sum(axis=axis).astype(np.float64), 1, 0)
    rows, clients = wrong + right, len(by_client)
    pairs = float((rows * (rows - 1)).sum()) - 4 * noise_variance * clients
    hidden = 3 * noise_variance * 4 * np.sqrt(2.0 * clients)  # three deviations of noise squared
    if clients < 2 or pairs <= hidden or rows.sum() <= 0:
        return None
    share = min(1.0, max(0.0, float(right.sum() / rows.sum())))
    noise = 2 * noise_variance * ((1 - share) ** 2 + share**2) * clients
    squares = float(((right - share * rows) ** 2).sum()) * clients / (clients - 1) - noise
    return max(0.0, (squares - share * (1 - share) * float(rows.sum())) / pairs)
