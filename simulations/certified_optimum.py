"""Is the bound of a dense network the optimum of LipSDP, as an independent solver finds it?

LipSDP (Fazlyab et al. 2019, one multiplier a unit) is a semidefinite program; fedprune solves it
with an interior-point method of its own and accepts only what a Cholesky factor with outward
rounding proves. Here the same program is written out in CVXPY and solved by Clarabel, which knows
nothing of either. The claim: the certified bound is the optimum to a relative 1e-4, and not below
what Clarabel's dual solution proves to be out of reach. That solution violates its constraints a
little, which counts as much as the multipliers are large (in networks whose units differ much,
more than the gap that the solver reports): it proves its value less violations times multipliers.

Random networks of several shapes, with ordinary and with very unequal layers, and the digits
perceptron, trained with and without margins. Needs `pip install '.[benchmarks]'`.

    python simulations/certified_optimum.py --small --out OUT.json
    python simulations/certified_optimum.py --out simulations/results/certified_optimum.json
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _certified as certified
import _study as study
import cvxpy
import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedprune import robustness
from fedprune.randomness import SimulationRandomness

Floats = NDArray[np.float64]
CLOSE = 1e-4  # relative distance to the optimum that is claimed


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        shapes: of random networks, inputs first.
        draws: networks of each shape.
        spread: standard deviation of the logarithm of every layer's scale.
        epochs: of training the digits perceptron; 0 leaves it out.
        train_radius: of its margin training.
    """

    shapes: tuple[tuple[int, ...], ...] = (
        (8, 12, 4), (16, 24, 24, 6), (10, 8, 8, 8, 8, 3), (30, 40, 20, 10), (5, 60, 1),
    )  # fmt: skip
    draws: int = 4
    spread: float = 1.5
    epochs: float = 30
    train_radius: float = 0.3


SMALL = Setting(shapes=((8, 12, 4), (10, 8, 8, 3)), draws=2, epochs=0)


def solved(weights: list[Floats]) -> dict[str, float]:
    """Solve LipSDP with Clarabel: its optimum, what its dual proves, and the gap between them."""
    scales = [float(np.linalg.norm(weight, 2)) for weight in weights]
    even = [weight / scale for weight, scale in zip(weights, scales, strict=True)]
    sizes = [even[0].shape[1], *(len(weight) for weight in even[:-1])]
    starts = np.cumsum([0, *sizes])
    units, width = int(starts[-1] - sizes[0]), int(starts[-1])
    before, after = np.zeros((units, width)), np.zeros((units, width))
    for place, weight in enumerate(even[:-1]):
        rows = slice(starts[place + 1] - sizes[0], starts[place + 2] - sizes[0])
        before[rows, starts[place] : starts[place + 1]] = weight
        after[rows, starts[place + 1] : starts[place + 2]] = np.eye(sizes[place + 1])
    outputs = np.zeros((width, width))
    outputs[starts[-2] :, starts[-2] :] = even[-1].T @ even[-1]
    inputs = np.diag((np.arange(width) < sizes[0]).astype(np.float64))
    multipliers, square = cvxpy.Variable(units, nonneg=True), cvxpy.Variable()
    cross = before.T @ cvxpy.diag(multipliers) @ after
    own = after.T @ cvxpy.diag(multipliers) @ after
    matrix = square * inputs - outputs - (cross + cross.T) + 2 * own
    bounded = matrix >> 0
    problem = cvxpy.Problem(cvxpy.Minimize(square), [bounded])
    begun = time.perf_counter()
    problem.solve(
        solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10, max_iter=500
    )
    product = math.prod(scales)
    values, vectors = np.linalg.eigh((bounded.dual_value + bounded.dual_value.T) / 2)
    witness = (vectors * np.maximum(values, 0.0)) @ vectors.T
    witness /= np.sum(witness * inputs)
    violated = 2 * np.sum((after @ witness) * (after - before), axis=1)  # should not be above 0
    reported = float(np.sum(witness * outputs))  # of the program scaled to norms of one
    dual = reported - float(np.maximum(violated, 0.0) @ multipliers.value)
    return {
        "optimum": math.sqrt(float(square.value)) * product,
        "dual": math.sqrt(max(dual, 0.0)) * product,
        "product": product,
        "solver_seconds": round(time.perf_counter() - begun, 2),
    }


def compared(name: str, weights: list[Floats]) -> dict[str, Any]:
    """One network's bound beside the solver's."""
    begun = time.perf_counter()
    bound = robustness.chain_bound(weights).value
    seconds = time.perf_counter() - begun
    found = solved(weights)
    accuracy = abs(found["optimum"] / found["dual"] - 1) + 1e-9
    row = {
        "name": name,
        "bound": bound,
        **found,
        "seconds": round(seconds, 3),
        "relative_to_optimum": bound / found["optimum"] - 1,
        "solver_accuracy": accuracy,
        "holds": -accuracy <= bound / found["optimum"] - 1 <= CLOSE + accuracy,
    }
    print(
        f"{name:<34} bound {bound:<12.7g} optimum {found['optimum']:<12.7g} "
        f"({row['relative_to_optimum']:+.1e}, solver to {accuracy:.1e}) product "
        f"{found['product'] / bound:.2f}x; {seconds:.2f} s against {found['solver_seconds']:.2f} s",
        flush=True,
    )
    return row


def random_networks(setting: Setting, seed: int) -> list[tuple[str, list[Floats]]]:
    """Gaussian layers whose scales differ; every second draw has units of very unequal size."""
    numbers = SimulationRandomness(seed, "certified optimum").generator
    made = []
    for shape, draw in itertools.product(setting.shapes, range(setting.draws)):
        weights = []
        for into, out in itertools.pairwise(shape):
            weight = numbers.standard_normal((out, into)) / math.sqrt(into)
            if draw % 2:
                weight *= np.exp(numbers.standard_normal((out, 1)))
            weights.append(weight * math.exp(setting.spread * numbers.standard_normal()))
        made.append((f"{'-'.join(map(str, shape))}, draw {draw}", weights))
    return made


def perceptrons(setting: Setting, task: study.Problem, seed: int) -> list[tuple[str, list[Floats]]]:
    """The digits perceptron after training, as weights."""
    made = []
    for name, radius in (("standard", 0.0), ("margins", setting.train_radius)):
        model = certified.train(
            task.fresh(seed), task, radius=radius, epochs=setting.epochs, seed=seed
        )
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        weights = [layer.weight.detach().double().numpy() for layer in layers]
        made.append((f"digits perceptron, {name} training", weights))
    return made


def draw(result: dict[str, Any], path: Path) -> None:
    """How far every bound is above the optimum, and the product of norms."""
    figure, (panel,) = study.panels(1, width=6.4)
    rows = result["rows"]
    above = [max(abs(row["relative_to_optimum"]), 1e-12) for row in rows]
    product = [row["product"] / row["optimum"] - 1 for row in rows]
    panel.plot(range(len(rows)), above, "o", label="this package's bound, distance")
    panel.plot(
        range(len(rows)), [row["solver_accuracy"] for row in rows], ":", label="solver's gap"
    )
    panel.plot(range(len(rows)), product, "s", label="product of layer norms, excess")
    panel.axhline(CLOSE, ls="--", color="black", label="claimed")
    panel.set_yscale("log")
    study.label(panel, "distance to the optimum of LipSDP", "network", "relative")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Solve, compare, write JSON and picture; exit 1 where the claim fails."""
    arguments = certified.add_options(study.parser(__doc__)).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    networks = random_networks(setting, arguments.seed)
    if setting.epochs:
        networks += perceptrons(setting, certified.asked(arguments), arguments.seed)
    rows = [compared(name, weights) for name, weights in networks]
    holds = all(row["holds"] for row in rows)
    worst = max(row["relative_to_optimum"] for row in rows)
    found = {"rows": rows, "holds": holds, "farthest_above_optimum": worst}
    study.finish(__doc__, arguments, setting, begun, found, draw)
    if not holds:
        raise SystemExit("a bound is not the optimum")


if __name__ == "__main__":
    main()
