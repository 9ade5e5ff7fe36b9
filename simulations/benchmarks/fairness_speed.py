"""How long do gaps with intervals take over very many clients, and how much memory?

2,000 paired bootstrap resamples over 10,000 clients x 10 groups, from tables to the finished
summary, exact and noisy; beside it the same bootstrap of whole clients by drawing clients one
resample after another (indexing tables and adding them up), and on rows as `MetricFrame`-like
tools draw them. The target: under 2 s.

    python simulations/benchmarks/fairness_speed.py --out simulations/results/fairness_speed.json
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from _measuring import command, machine, spread, versions, write
from numpy.typing import NDArray

from fedprune.fairness import TableNoise, stack_tables, summarize
from fedprune.randomness import SimulationRandomness

Counts = NDArray[np.int64]

TARGET_SECONDS = 2.0
SLOW_RESAMPLES = 20  # the slow ways are timed on a few and multiplied up


def draw_tables(clients: int, groups: int, rows: int, seed: int) -> Counts:
    """Tables of clients whose groups fare differently: [clients, groups, 2, 2]."""
    generator = SimulationRandomness(seed, "tables").generator
    right, lost = np.linspace(0.95, 0.75, groups), np.linspace(0.03, 0.2, groups)
    cells = np.stack(
        [0.9 * (1 - right), 0.1 * (1 - right), right * lost, right * (1 - lost)], axis=1
    )
    return generator.multinomial(rows, cells, size=(clients, groups)).reshape(clients, groups, 2, 2)


def one_by_one(tables: Counts, resamples: int) -> None:
    """Resample whole clients by indexing their tables."""
    generator = np.random.default_rng(0)
    for _ in range(resamples):
        tables[generator.integers(0, len(tables), len(tables))].sum(axis=0)


def by_rows(tables: Counts, resamples: int) -> None:
    """Resample single rows, as tools do that hold them."""
    generator = np.random.default_rng(0)
    cells = np.repeat(np.arange(tables[0].size), tables.sum(axis=0).reshape(-1))
    for _ in range(resamples):
        np.bincount(cells[generator.integers(0, len(cells), len(cells))])


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Measure interleaved, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--rows", type=int, default=5, help="of a client in each group")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if min(options.clients, options.rows, options.repeats) < 1 or options.groups < 2:
        parser.error("--clients, --rows and --repeats must be at least 1, --groups 2")
    tables = draw_tables(options.clients, options.groups, options.rows, options.seed)
    noise = TableNoise("discrete-laplace", 1.0)
    drawn = noise.sample(tables.shape, SimulationRandomness(options.seed, "noise").generator)
    names = [f"group {code}" for code in range(options.groups)]

    def whole(counts: Counts, added: TableNoise | None) -> None:
        rng = SimulationRandomness(options.seed)
        summarize(counts, names, rng, resamples=options.resamples, noise=added)

    few = min(SLOW_RESAMPLES, options.resamples)
    ways: dict[str, tuple[Callable[[], None], float]] = {
        "exact": (lambda: whole(tables, None), 1.0),
        "noisy": (lambda: whole(tables + drawn, noise), 1.0),
        "one by one": (lambda: one_by_one(tables, few), options.resamples / few),
        "on rows": (lambda: by_rows(tables, few), options.resamples / few),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    whole(tables, None)  # to warm up
    for _ in range(options.repeats):
        for name, (work, factor) in ways.items():
            times[name].append(factor * seconds(work))
    tracemalloc.start()
    whole(tables, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    best = min(times["exact"])
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": command(
            [__file__, *([] if options.out is None else ["--out", str(options.out)])]
        ),
        "date": date.today().isoformat(),
        "seed": options.seed,
        "config": {name: value for name, value in vars(options).items() if name != "out"},
        "versions": versions(),
        "machine": machine(),
        "seconds": {name: spread(values) for name, values in times.items()},
        "times_faster_than": {
            name: round(min(times[name]) / best, 2) for name in ("one by one", "on rows")
        },
        "table_mebibytes": round(stack_tables(tables).nbytes / 2**20, 2),
        "peak_mebibytes": round(peak / 2**20, 1),
        "target": {"below_seconds": TARGET_SECONDS, "met": best < TARGET_SECONDS},
    }
    write(options.out, result)
    for name in ("seconds", "times_faster_than", "peak_mebibytes", "target"):
        print(name, result[name])


if __name__ == "__main__":
    main()
