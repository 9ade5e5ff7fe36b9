"""How should clients and units be divided over the phases of a question?

For several numbers of clients and epsilons, and for two, four and eight phases: recall of the true
top half over a grid of first cohort shares and last unit shares (the shares between fall
geometrically; later cohorts are equal). Beside the best of the grid stand `phase_plan`'s choice,
which sees only the variance of a single question, and a rule that looks one phase ahead: it asks
about as many units as gain the most correct decisions if the next phase were the last one.

Votes are drawn as the client model's shares plus Gaussian noise of the mechanism's exact variance:
the same law up to the central limit theorem, and fast enough to search.

    python simulations/phase_schedules.py --out simulations/results/phase_schedules.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, owens_t

from fedprune import __version__
from fedprune.privacy import ThresholdResponse, choose_undecided, phase_plan, units_to_ask
from fedprune.randomness import SimulationRandomness

Vector = NDArray[np.float64]
Plan: TypeAlias = list[tuple[float, float]]

UNITS, KEPT = 784, 392
SETTINGS = ((1000, 4.0), (1000, 8.0), (10_000, 1.0), (10_000, 4.0), (100_000, 4.0))
PHASES = (2, 4, 8)
FIRST_SHARES = (0.2, 0.35, 0.5, 0.65)
LAST_SHARES = (0.04, 0.08, 0.15, 0.25, 0.4)
SIZES = tuple(sorted({round(k) for k in np.geomspace(16, UNITS, 20)}))


@cache
def one_report(epsilon: float, units: int) -> float:
    """Variance of a vote from a single report about so many units."""
    return ThresholdResponse(epsilon, units).variance_per_vote(1)


def shrink(mean: Vector, variance: Vector) -> tuple[Vector, Vector]:
    """Posterior of votes that scatter around one half, as the prior without magnitudes has it."""
    own = max(float(np.mean((mean - 0.5) ** 2 - variance)), 1e-4)
    trusted = own / (own + variance)
    return 0.5 + trusted * (mean - 0.5), trusted * variance


def recall(seed: int, clients: int, epsilon: float, plan: Plan, ahead: bool) -> float:
    """Recall of one world asked by one plan."""
    draw = SimulationRandomness(seed, "schedules").generator
    importance = draw.normal(size=UNITS)
    share = ndtr(importance)
    weight, total, units = np.zeros(UNITS), np.zeros(UNITS), np.arange(UNITS)
    mean = variance = np.zeros(UNITS)
    for phase, (cohort, part) in enumerate(plan):
        reports = clients * cohort
        if phase:
            count = (
                one_phase_ahead(mean, variance, epsilon, reports)
                if ahead
                else units_to_ask(part, UNITS)
            )
            units = choose_undecided(mean, variance, KEPT, count)
        noise = one_report(epsilon, len(units)) / reports
        votes = share[units] + math.sqrt(noise) * draw.normal(size=len(units))
        weight[units] += 1 / noise
        total[units] += votes / noise
        mean, variance = shrink(total / weight, 1 / weight)
    found = np.argsort(-mean)[:KEPT]
    return float(np.isin(found, np.argsort(-importance)[:KEPT]).mean())


def one_phase_ahead(mean: Vector, variance: Vector, epsilon: float, reports: float) -> int:
    """How many units to ask about so that most decisions come out right after one phase."""
    falling = np.sort(mean)[::-1]
    distance = mean - (falling[KEPT - 1] + falling[KEPT]) / 2
    order = np.argsort(np.abs(distance) / np.sqrt(variance))
    now = ndtr(np.abs(distance) / np.sqrt(variance))
    gains = []
    for size in SIZES:
        asked = order[:size]
        noise = one_report(epsilon, size) / reports
        learnt = variance[asked] / np.sqrt(variance[asked] + noise)
        later = right_side(distance[asked], np.sqrt(variance[asked]), learnt)
        gains.append(float((later - now[asked]).sum()))
    return SIZES[int(np.argmax(gains))]


def right_side(distance: Vector, spread: Vector, learnt: Vector) -> Vector:
    """P[the later posterior mean lies on the truth's side of the cut], both being normal."""

    def both(h: Vector, k: Vector, r: Vector) -> Vector:  # Owen (1956): P[X < h, Y < k]
        h, k = np.where(h == 0, 1e-12, h), np.where(k == 0, 1e-12, k)
        rest = np.sqrt(1 - r * r)
        return np.asarray(
            (ndtr(h) + ndtr(k)) / 2
            - owens_t(h, (k / h - r) / rest)
            - owens_t(k, (h / k - r) / rest)
        )

    truth, known, r = distance / spread, distance / learnt, np.clip(learnt / spread, 1e-9, 1 - 1e-9)
    return both(truth, known, r) + both(-truth, -known, r)


def grid_plan(phases: int, first: float, last: float) -> Plan:
    """Equal later cohorts, geometric unit shares."""
    later = (1 - first) / (phases - 1)
    return [(first if t == 0 else later, last ** (t / (phases - 1))) for t in range(phases)]


def compare(repeats: int) -> list[dict[str, Any]]:
    """All settings and plans on the same worlds."""
    rows = []
    for clients, epsilon in SETTINGS:
        variance = one_report(epsilon, UNITS) / clients

        def mean(plan: Plan, ahead: bool = False, n: int = clients, e: float = epsilon) -> float:
            return float(np.mean([recall(seed, n, e, plan, ahead) for seed in range(repeats)]))

        single = mean([(1.0, 1.0)])
        for phases in PHASES:
            grid = {
                f"{first:g}/{last:g}": mean(grid_plan(phases, first, last))
                for first in FIRST_SHARES
                for last in LAST_SHARES
            }
            planned = phase_plan(phases, UNITS, variance=variance)
            best = max(grid, key=lambda name: grid[name])
            rows.append(
                {
                    "clients": clients,
                    "epsilon": epsilon,
                    "phases": phases,
                    "single": single,
                    "best_of_grid": best,
                    "best_recall": grid[best],
                    "plan": planned,
                    "plan_recall": mean(planned),
                    "one_phase_ahead_recall": mean(planned, ahead=True),
                    "grid": grid,
                }
            )
            row = rows[-1]
            print(
                f"n = {clients}, eps = {epsilon:g}, T = {phases}: single {single:.4f}, best of "
                f"grid {row['best_recall']:.4f} at {best}, plan {row['plan_recall']:.4f}, one "
                f"phase ahead {row['one_phase_ahead_recall']:.4f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Search, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    rows = compare(arguments.repeats)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/phase_schedules.py --repeats {arguments.repeats} --out OUT",
        "date": date.today().isoformat(),
        "config": {"units": UNITS, "keep_units": 0.5, "repeats": arguments.repeats},
        "versions": {"fedprune": __version__, "numpy": np.__version__},
        "rows": rows,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
