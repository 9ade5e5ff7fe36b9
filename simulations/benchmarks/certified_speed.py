"""How long does a certified bound take, how much memory, and what does remembering save?

    python simulations/benchmarks/certified_speed.py --out simulations/results/certified_speed.json
    python simulations/benchmarks/certified_speed.py --turns 1 --networks resnet20 --threads 1

Every measurement is a process of its own, turn after turn. It bounds a network whose layers were
never seen (cold), the same network again (warm: every norm is remembered by the digest of its
weights), and after one layer was changed, as a pruning step may. Wanted: ResNet-20 on 32x32 in
less than 1 s and torchvision's ResNet-18 on 224x224 in less than 60 s on two cores, with less than
4 GiB of peak resident memory. Importing is not counted; tracing, folding and the check that the
traced network computes what the model does are. The lower bound is measured apart (2 points).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from _measuring import command, machine, spread, versions, write

NETWORKS: dict[str, tuple[tuple[int, ...], float]] = {
    "resnet20": ((1, 3, 32, 32), 1.0),
    "resnet56": ((1, 3, 32, 32), 3.0),
    "resnet18": ((1, 3, 224, 224), 60.0),
}
"""Input shape, and the seconds wanted."""

TORCHVISION = ("resnet18",)
MEMORY_GIB = 4.0


def build(name: str, weights: str) -> Any:
    """Load the network; without a weights file its weights are random."""
    import torch

    from fedprune import models

    if name in TORCHVISION:
        import torchvision

        torch.manual_seed(0)
        return torchvision.models.get_model(name).eval()
    return models.load(name, weights=weights, seed=0).eval()


def measure(name: str, threads: int, weights: str) -> dict[str, float]:
    """Seconds of every kind of bound, and the peak of resident memory in GiB."""
    import torch

    from fedprune.robustness import NORMS, lipschitz

    torch.set_num_threads(threads)
    model, shape = build(name, weights), NETWORKS[name][0]
    example = torch.zeros(shape)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    found: dict[str, float] = {}

    def timed(label: str, run: Callable[[], Any]) -> Any:
        begun, busy = time.perf_counter(), time.process_time()
        result = run()
        found[f"{label}_seconds"] = time.perf_counter() - begun
        found[f"{label}_cpu_seconds"] = time.process_time() - busy
        return result

    bound = timed("cold", lambda: lipschitz(model, example, samples=0))
    found["upper"] = bound.upper
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    again = timed("warm", lambda: lipschitz(model, example, samples=0))
    if again.upper != bound.upper:
        raise SystemExit(f"{name}: {again.upper} is remembered and {bound.upper} was computed")
    computed = NORMS.misses
    last.weight.data *= 0.5
    timed("one_layer_changed", lambda: lipschitz(model, example, samples=0))
    found["norms"], found["norms_computed_again"] = computed, NORMS.misses - computed
    timed("with_lower", lambda: lipschitz(model, example, samples=2))
    found["peak_gib_with_lower"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def one_process(name: str, threads: int, weights: str) -> dict[str, float]:
    """Measure in a fresh process with so many threads for every library."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        words = [sys.executable, __file__, "--child", name, "--out", str(out)]
        words += ["--threads", str(threads), "--weights", weights]
        limits = {
            key: str(threads)
            for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        }
        subprocess.run(words, env={**os.environ, **limits}, check=True)
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    return found


def summary(turns: dict[str, list[dict[str, float]]], threads: int) -> dict[str, Any]:
    """Spreads of every figure, ratios to the cold bound, and what was wanted."""
    found: dict[str, Any] = {}
    for name, rows in turns.items():
        cold = [row["cold_seconds"] for row in rows]
        found[name] = {
            "input": NETWORKS[name][0],
            "threads": threads,
            **{key: spread([row[key] for row in rows]) for key in rows[0]},
            "warm_over_cold": spread([row["warm_seconds"] / row["cold_seconds"] for row in rows]),
            "one_layer_over_cold": spread(
                [row["one_layer_changed_seconds"] / row["cold_seconds"] for row in rows]
            ),
            "wanted_seconds": NETWORKS[name][1],
            "wanted_gib": MEMORY_GIB,
            "met": statistics.median(cold) < NETWORKS[name][1]
            and max(row["peak_gib_with_lower"] for row in rows) < MEMORY_GIB,
        }
    return found


def table(result: dict[str, Any]) -> str:
    """Medians for people."""
    keys = ("cold_seconds", "warm_seconds", "one_layer_changed_seconds", "with_lower_seconds",
            "cold_cpu_seconds", "peak_gib", "peak_gib_with_lower")  # fmt: skip
    return "\n".join(
        f"{name:10} " + "  ".join(f"{key} {row[key]['median']:.3g}" for key in keys)
        + f"  (wanted {row['wanted_seconds']:g} s: {'met' if row['met'] else 'NOT met'})"
        for name, row in result["networks"].items()
    )  # fmt: skip


def main() -> None:
    """Measure every network in turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "resnet18"])
    parser.add_argument("--weights", default="", help="trained weights of resnet20 or resnet56")
    parser.add_argument("--small", action="store_true", help="one turn, ResNet-20 only")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    parser.add_argument("--child", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.turns, options.threads) < 1:
        parser.error("all counts must be at least 1")
    if options.weights and not Path(options.weights).is_file():
        parser.error(f"there is no file {options.weights}")
    if options.child is not None:
        found = measure(options.child, options.threads, options.weights)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    networks = ["resnet20"] if options.small else options.networks
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for turn in range(1 if options.small else options.turns):
        for name in networks:
            weights = "" if name in TORCHVISION else options.weights
            turns[name].append(one_process(name, options.threads, weights))
            print(f"turn {turn + 1}, {name}: {turns[name][-1]}", file=sys.stderr)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "seed": 0,
        "versions": versions(),
        "machine": machine() | {"threads": options.threads},
        "networks": summary(turns, options.threads),
    }
    print(table(result))
    write(options.out, result)


if __name__ == "__main__":
    main()
