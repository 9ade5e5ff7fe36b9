"""How fast are reports drawn and summed, and does the memory of an estimate grow with them?

Processor microseconds a report with the operating system's CSPRNG: whole-vector reports (784 units,
epsilon = 8), block reports (784 units, epsilon = 4), bit-wise ones; reports a second that
`estimate` sums; and the peak memory of summing a stream of ever more reports. The best of a few
repeats, in processor time of one core: whatever else the machine does only makes it slower.

    python simulations/benchmarks/reports.py --out simulations/results/reports.json
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from _measuring import machine

from fedprune import __version__
from fedprune.privacy import BitwiseResponse, Mechanism, Report, ThresholdResponse
from fedprune.randomness import SecureRandomness, SimulationRandomness

TARGETS = {
    "whole_784_eps8.draw_us": ("below", 60.0),
    "block_784_eps4.draw_us": ("below", 5.0),
    "block_784_eps4.reports_per_second": ("above", 1e6),
    "whole_448_eps8.seconds_per_100000": ("below", 2.0),
    "memory_growth": ("below", 1.2),
}


def best_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The fastest of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def cohort(mechanism: Mechanism, clients: int) -> tuple[Any, list[SecureRandomness]]:
    """Masks, and a source of its own for every client."""
    masks = np.random.default_rng(0).random((clients, mechanism.num_units)) < 0.5
    return masks, [SecureRandomness() for _ in range(clients)]


def measure(mechanism: Mechanism, clients: int, repeats: int) -> dict[str, float]:
    """Draw and estimate, as reports and as packed rows."""
    masks, rngs = cohort(mechanism, clients)
    reports = mechanism.randomize_many(masks, rngs)
    rows = mechanism.randomize_rows(masks, rngs)
    drawn = best_seconds(lambda: mechanism.randomize_many(masks, rngs), repeats)
    packed = best_seconds(lambda: mechanism.randomize_rows(masks, rngs), repeats)
    streams = [SimulationRandomness(1, client) for client in range(clients)]
    seeded = best_seconds(lambda: mechanism.randomize_many(masks, streams), repeats)
    summed = best_seconds(lambda: mechanism.estimate(reports), repeats)
    summed_rows = best_seconds(lambda: mechanism.estimate(rows), repeats)
    return {
        "clients": clients,
        "report_bytes": mechanism.report_bytes,
        "draw_us": 1e6 * drawn / clients,
        "draw_rows_us": 1e6 * packed / clients,
        "draw_simulated_us": 1e6 * seeded / clients,
        "reports_per_second": clients / summed,
        "rows_per_second": clients / summed_rows,
        "seconds_per_100000": 1e5 * summed / clients,
    }


def memory_growth(mechanism: Mechanism, few: int, many: int) -> float:
    """Peak memory of an estimate over a stream of many reports, over that of few."""
    masks, rngs = cohort(mechanism, 100)
    some = mechanism.randomize_many(masks, rngs)

    def stream(count: int) -> Iterator[Report]:
        return (some[i % len(some)] for i in range(count))

    peaks = []
    for count in (few, many):
        tracemalloc.start()
        mechanism.estimate(stream(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks[1] / peaks[0]


def main() -> None:
    """Measure, print, compare with the targets and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    whole = ThresholdResponse(8.0, 448, block_units=448)
    figures: dict[str, Any] = {
        "whole_784_eps8": measure(ThresholdResponse(8.0, 784), 20_000, options.repeats),
        "block_784_eps4": measure(ThresholdResponse(4.0, 784), 100_000, options.repeats),
        "best_448_eps8": measure(ThresholdResponse(8.0, 448), 100_000, options.repeats),
        "whole_448_eps8": measure(whole, 100_000, options.repeats),
        "bitwise_448_eps8": measure(BitwiseResponse(8.0, 448, delta=1e-5), 20_000, options.repeats),
        "memory_growth": memory_growth(whole, 100_000, 800_000),
    }
    figures["targets"] = {}
    for name, (side, limit) in TARGETS.items():
        group, _, key = name.partition(".")
        value = figures[group][key] if key else figures[group]
        met = value < limit if side == "below" else value > limit
        figures["targets"][name] = {"value": value, side: limit, "met": bool(met)}
    figures |= {
        "command": f"python simulations/benchmarks/reports.py --repeats {options.repeats}",
        "date": date.today().isoformat(),
        "fedprune": __version__,
        "numpy": np.__version__,
        "machine": machine(),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
