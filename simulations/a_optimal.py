"""When is choosing sensors by magnitude A-optimal, and when is it not?

A unit seen as a sensor: it measures y_i = a_iᵀ x + noise of x ~ N(0, τ² I) with noise deviation σ.
Keeping the units S leaves a posterior covariance of x,

    Σ_S = (I/τ² + A_Sᵀ A_S / σ²)⁻¹,

and the A-optimal S of size k has the least trace, the expected squared error. Magnitude keeps the k
largest |a_i|. Where the a_i are orthogonal,

    tr Σ_S = d τ² - Σ_{i in S} τ² |a_i|² τ² / (|a_i|² τ² + σ²),

a sum over S of a rising function of |a_i|, so magnitude is optimal. Where they overlap it buys the
same measurement again and again, while a greedy choice, which sees what is already known, stays
close to the best of all choices.

What is told is the reduction of the trace, d τ² - tr Σ_S, as a share of the best one. The claim:
exactly 1 for magnitude at overlap 0, below 1 beyond; greedy near 1 throughout.

    python simulations/a_optimal.py --small --out OUT.json
    python simulations/a_optimal.py --out simulations/results/a_optimal.json
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
from numpy.typing import NDArray

from fedprune.randomness import SimulationRandomness

Matrix = NDArray[np.float64]
Support = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        sensors: n, also the dimension of x, so that orthogonal sensors exist.
        kept: k.
        overlaps: ρ, the share of each sensor's squared length along one of the common directions.
        clusters: number of common directions; sensors take turns.
        draws: designs for each overlap.
        deviation: σ.
        prior_deviation: τ.
    """

    sensors: int = 12
    kept: int = 5
    overlaps: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99)
    clusters: int = 4
    draws: int = 100
    deviation: float = 0.3
    prior_deviation: float = 1.0


SMALL = Setting(draws=8)


def design(setting: Setting, overlap: float, draws: np.random.Generator) -> Matrix:
    """Sensors a_i as rows, with lognormal lengths: orthogonal at overlap 0, clustered at 1."""
    size = setting.sensors
    basis, _ = np.linalg.qr(draws.normal(size=(size, size)))
    common, _ = np.linalg.qr(draws.normal(size=(size, setting.clusters)))
    shared = common.T[np.arange(size) % setting.clusters]
    rows = np.sqrt(1 - overlap) * basis.T + np.sqrt(overlap) * shared
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * np.exp(0.5 * draws.normal(size=(size, 1))))


def posterior_trace(sensors: Matrix, support: Support, setting: Setting) -> float:
    """Trace of the posterior covariance when these sensors are kept."""
    kept = sensors[list(support)]
    precision = np.eye(sensors.shape[1]) / setting.prior_deviation**2
    precision = precision + kept.T @ kept / setting.deviation**2
    return float(np.trace(np.linalg.inv(precision)))


def orthogonal_trace(lengths: Matrix, dimension: int, setting: Setting) -> float:
    """The closed form for orthogonal sensors of these lengths."""
    prior = setting.prior_deviation**2
    gains = prior**2 * lengths**2 / (prior * lengths**2 + setting.deviation**2)
    return float(dimension * prior - gains.sum())


def by_magnitude(sensors: Matrix, setting: Setting) -> Support:
    """The k longest sensors, ties to the lower one."""
    order = np.argsort(-np.linalg.norm(sensors, axis=1), kind="stable")
    return tuple(sorted(order[: setting.kept].tolist()))


def greedy(sensors: Matrix, setting: Setting) -> Support:
    """One sensor at a time, always the one that lowers the trace most; ties to the lower one."""
    chosen: Support = ()
    for _ in range(setting.kept):
        rest = [i for i in range(len(sensors)) if i not in chosen]
        traces = [posterior_trace(sensors, (*chosen, i), setting) for i in rest]
        chosen = (*chosen, rest[int(np.argmin(traces))])
    return tuple(sorted(chosen))


def exhaustive(sensors: Matrix, setting: Setting) -> Support:
    """The best of all choices."""
    choices = itertools.combinations(range(len(sensors)), setting.kept)
    return min(choices, key=lambda support: posterior_trace(sensors, support, setting))


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Reductions of the trace as shares of the best one, by overlap."""
    rows, prior = [], setting.sensors * setting.prior_deviation**2
    for overlap in setting.overlaps:
        found: dict[str, list[float]] = {"magnitude": [], "greedy": [], "random": []}
        same = 0
        for number in range(setting.draws):
            draws = SimulationRandomness(seed, "design", str(overlap), number).generator
            sensors = design(setting, overlap, draws)
            best = exhaustive(sensors, setting)
            reduction = prior - posterior_trace(sensors, best, setting)
            chance = tuple(draws.permutation(setting.sensors)[: setting.kept].tolist())
            choices = {
                "magnitude": by_magnitude(sensors, setting),
                "greedy": greedy(sensors, setting),
                "random": chance,
            }
            same += choices["magnitude"] == best
            for name, support in choices.items():
                left = posterior_trace(sensors, support, setting)
                found[name].append((prior - left) / reduction)
        shares = {name: study.spread(values) for name, values in found.items()}
        rows.append({"overlap": overlap, "magnitude_is_best": same / setting.draws, **shares})
    return {"rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Shares of the best reduction, and how often magnitude is the best."""
    figure, (left, right) = study.panels(2)
    overlaps = [row["overlap"] for row in result["rows"]]
    for number, name in enumerate(("magnitude", "greedy", "random")):
        study.curve(left, overlaps, [row[name] for row in result["rows"]], name, number)
    right.plot(overlaps, [row["magnitude_is_best"] for row in result["rows"]], "-o", ms=3.5)
    study.label(
        left, "reduction of the posterior trace", "overlap of the sensors", "share of the best"
    )
    study.label(right, "magnitude's choice is the best one", "overlap of the sensors", "share")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Compare, print, write JSON and picture."""
    arguments = study.parser(__doc__).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    print("overlap  magnitude              greedy                   magnitude is best")
    for row in result["rows"]:
        print(
            f"{row['overlap']:>7g}  {study.interval(row['magnitude']):<22} "
            f"{study.interval(row['greedy'], 4):<24} {row['magnitude_is_best']:.2f}"
        )


if __name__ == "__main__":
    main()
