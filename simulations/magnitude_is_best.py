"""Is magnitude the best k-sparse approximation, and where does that stop?

The theorem (Eckart-Young in spirit): of all v with at most k nonzero entries, the k largest entries
of w minimise |w - v| in the Euclidean norm, and with it the Frobenius norm of a matrix; of all
matrices with at most k nonzero rows, the k rows of largest norm do. What is left out is the error.

It is a statement about weights, not about what a network does: with inputs x of covariance C the
error in the outputs is (w - v)ᵀ C (w - v). There magnitude is the best only while C is a multiple
of the identity; otherwise it loses to the best support, even when v may be refitted on it.

All is checked against every support there is.

    python simulations/magnitude_is_best.py --small --out OUT.json
    python simulations/magnitude_is_best.py --out simulations/results/magnitude_is_best.json
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedprune.pruning import weights
from fedprune.randomness import SimulationRandomness

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        shape: rows and columns of the weight matrices.
        kept: entries that stay.
        kept_rows: rows that stay.
        correlations: of the inputs, for the part that is no theorem.
        draws: matrices for each.
    """

    shape: tuple[int, int] = (4, 4)
    kept: int = 6
    kept_rows: int = 2
    correlations: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
    draws: int = 100


SMALL = Setting(draws=15)


def by_magnitude(matrix: Matrix, kept: int) -> Matrix:
    """The matrix with its largest entries only, as the package's masks choose them."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix))
    masks = weights.magnitude_masks(layer, kept / matrix.size)
    return np.asarray(weights.apply_masks(layer, masks).weight.detach().numpy())


def by_row_norm(matrix: Matrix, kept: int) -> Matrix:
    """The matrix with its rows of largest norm only."""
    best = np.argsort(-np.linalg.norm(matrix, axis=1), kind="stable")[:kept]
    approximation = np.zeros_like(matrix)
    approximation[best] = matrix[best]
    return approximation


def best_of_all(matrix: Matrix, kept: int) -> float:
    """The least Frobenius error over every support of so many entries, each with its best values.

    On a fixed support the best values are the matrix's own: the error separates over entries.
    """
    squares = (matrix**2).ravel()
    return min(
        float(np.sqrt(np.delete(squares, list(support)).sum()))
        for support in itertools.combinations(range(matrix.size), kept)
    )


def best_rows_of_all(matrix: Matrix, kept: int) -> float:
    """The least Frobenius error over every choice of so many rows."""
    squares = (matrix**2).sum(axis=1)
    return min(
        float(np.sqrt(np.delete(squares, list(rows)).sum()))
        for rows in itertools.combinations(range(len(matrix)), kept)
    )


def output_error(vector: Matrix, covariance: Matrix, support: tuple[int, ...]) -> float:
    """Least (w - v)ᵀ C (w - v) over v on a support: the Schur complement of the rest."""
    out = np.setdiff1d(np.arange(len(vector)), support)
    inside = list(support)
    cross = covariance[np.ix_(out, inside)]
    rest = covariance[np.ix_(out, out)] - cross @ np.linalg.solve(
        covariance[np.ix_(inside, inside)], cross.T
    )
    return float(vector[out] @ rest @ vector[out])


def equicorrelated(size: int, correlation: float, scales: Matrix) -> Matrix:
    """Covariance of inputs with these deviations and one correlation between all of them."""
    shape = np.full((size, size), correlation) + (1 - correlation) * np.eye(size)
    return np.asarray(scales[:, None] * shape * scales)


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Compare with every support."""
    draws = SimulationRandomness(seed, "best approximation").generator
    worst = worst_rows = 0.0
    for _ in range(setting.draws):
        matrix = draws.normal(size=setting.shape)
        error = float(np.linalg.norm(matrix - by_magnitude(matrix, setting.kept)))
        worst = max(worst, abs(error - best_of_all(matrix, setting.kept)))
        error = float(np.linalg.norm(matrix - by_row_norm(matrix, setting.kept_rows)))
        worst_rows = max(worst_rows, abs(error - best_rows_of_all(matrix, setting.kept_rows)))
    return {
        "largest_difference_from_the_best": worst,
        "largest_difference_from_the_best_rows": worst_rows,
        "outputs": [row for spread in (0.0, 0.5) for row in outputs(setting, spread, draws)],
    }


def outputs(setting: Setting, scale: float, draws: np.random.Generator) -> list[dict[str, Any]]:
    """The best support's output error over that of magnitude's, by inputs' correlation."""
    size, kept = int(np.prod(setting.shape)) // 2, setting.kept // 2
    rows = []
    for correlation in setting.correlations:
        ratios = []
        for _ in range(setting.draws):
            vector = draws.normal(size=size)
            covariance = equicorrelated(size, correlation, np.exp(scale * draws.normal(size=size)))
            chosen = tuple(sorted(np.argsort(-np.abs(vector), kind="stable")[:kept].tolist()))
            least = min(
                output_error(vector, covariance, support)
                for support in itertools.combinations(range(size), kept)
            )
            ratios.append(least / output_error(vector, covariance, chosen))
        rows.append({"correlation": correlation, "input_spread": scale, **study.spread(ratios)})
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """The best output error over magnitude's, by correlation."""
    figure, (panel,) = study.panels(1, width=5.5)
    for number, scale in enumerate((0.0, 0.5)):
        rows = [row for row in result["outputs"] if row["input_spread"] == scale]
        name = "inputs of one scale" if scale == 0 else "inputs of different scales"
        study.curve(panel, [row["correlation"] for row in rows], rows, name, number)
    panel.axhline(1, color="#999999", lw=0.8)
    study.label(
        panel, "Best in weights, not in outputs", "correlation of the inputs",
        "output error, best support / magnitude",
    )  # fmt: skip
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Compare, print, write JSON and picture."""
    arguments = study.parser(__doc__).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    print(f"weights: off the best of all supports by {result['largest_difference_from_the_best']}")
    print(f"rows: off the best by {result['largest_difference_from_the_best_rows']}")
    for row in result["outputs"]:
        print(
            f"outputs, input spread {row['input_spread']:g}, correlation {row['correlation']:g}: "
            f"{study.interval(row)} = best error / magnitude's"
        )


if __name__ == "__main__":
    main()
