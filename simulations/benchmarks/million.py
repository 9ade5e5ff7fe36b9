"""How long do a million clients take from their scores to the votes, and how much memory?

    python simulations/benchmarks/million.py --out simulations/results/million.json

Synthetic scores of 448 units (ResNet-20's layout) stand for the clients' data: a unit's common
importance and each client's own deviation. Then everything is done as a simulation does it, cohort
after cohort: masks, reservations in the ledger, reports, storing them, adding them up; at the end
the votes. Reports are drawn from the operating system's CSPRNG, as deployed clients draw them, and
from seeded streams, one a client. Every repeat is a process of its own. That the votes are as far
from the clients' true shares as their stated variance says is checked, not assumed. Wanted: under
five minutes and 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import machine, spread, write
from numpy.typing import NDArray

from fedprune import privacy, pruning
from fedprune.privacy.budgets.events import REPLACEMENT, PureEvent
from fedprune.randomness import Randomness, SecureRandomness, SimulationRandomness
from fedprune.runs import Architecture

SOURCES = ("secure", "seeded")
STAGES = ("scores", "masks", "reserve", "draw", "store", "sum", "estimate")
SEED, KEEP_UNITS = 1, 0.5
LABEL = "a million clients"
WANTED = {"total_s": 300.0, "peak_gib": 4.0}


class Stopwatch:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        """Begin with none."""
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        begun = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begun


def main() -> None:
    """Run both sources in turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=4096, help="clients answered at once")
    parser.add_argument("--epsilon", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--folder", type=Path, help="for the ledgers; a temporary one else")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    parser.add_argument("--child", choices=SOURCES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.clients, options.cohort, options.repeats, options.threads) < 1:
        parser.error("all counts must be at least 1")
    if options.child is not None:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(vote(options, Path(folder) / "ledger.sqlite")))
        return
    turns: dict[str, list[dict[str, float]]] = {source: [] for source in SOURCES}
    for turn in range(options.repeats):
        for source in SOURCES:
            turns[source].append(run(source, options))
            print(f"turn {turn + 1}, {source}: {turns[source][-1]}", file=sys.stderr)
    result = summary(turns, options)
    print(table(result))
    write(options.out, result)


def run(source: str, options: argparse.Namespace) -> dict[str, float]:
    """One turn in a process of its own; seconds of its stages and its peak memory."""
    command = [sys.executable, __file__, "--child", source]
    for name in ("clients", "cohort", "epsilon", "threads", "folder"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"the turn with {source} draws failed")
    found: dict[str, float] = json.loads(text)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    found["peak_gib"] = usage.ru_maxrss / unit
    return found


def vote(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Let all clients vote; give the seconds of every stage."""
    torch.set_num_threads(options.threads)
    layout = Architecture.dense("resnet20", 10, (3, 32, 32)).dense_layout
    mechanism = privacy.ThresholdResponse(options.epsilon, len(layout))
    importance = np.random.default_rng(SEED).normal(size=len(layout)).astype(np.float32)
    watch, kept = Stopwatch(), np.zeros(len(layout), dtype=np.int64)
    begun = time.perf_counter()
    with watch.of("draw"):
        ranks = privacy.public_ranks(options.clients, LABEL)
        blocks = privacy.assigned_blocks(ranks, mechanism.num_blocks)
    sums = mechanism.new_sums()
    with privacy.Ledger.open(path, budget=privacy.Budget(options.epsilon)) as ledger:
        for start in range(0, options.clients, options.cohort):
            clients = np.arange(start, min(start + options.cohort, options.clients))
            with watch.of("scores"):
                scores = torch.from_numpy(_scores(importance, clients))
            with watch.of("masks"):
                masks = pruning.select_many(scores, layout, KEEP_UNITS).numpy()
            with watch.of("reserve"):
                answer = ledger.reserve_cohort(entry(options.epsilon), clients)
            if len(answer.granted) != len(clients):
                sys.exit("the ledger refused a client that has all of its budget")
            with watch.of("draw"):
                sources = _sources(options.child, clients.tolist())
                reports = mechanism.randomize_rows(masks, sources, blocks[clients])
            with watch.of("store"):
                ledger.store_cohort(entry(options.epsilon), clients, reports)
            with watch.of("sum"):
                sums = mechanism.add(sums, reports, blocks[clients])
            kept += masks.sum(axis=0)
    with watch.of("estimate"):
        votes = mechanism.estimate_sums(sums, counts="assigned")
    total = time.perf_counter() - begun
    errors = (votes.mean - kept / options.clients) / np.sqrt(votes.variance)
    return {
        **{f"{stage}_s": seconds for stage, seconds in watch.seconds.items()},
        "total_s": total,
        "ledger_mib": path.stat().st_size / 2**20,
        "mean_squared_error_over_variance": float(np.mean(errors**2)),
    }


def _scores(importance: NDArray[np.float32], clients: NDArray[np.int64]) -> NDArray[np.float32]:
    """Synthetic scores: [clients, num_units] float32."""
    generator = np.random.default_rng([SEED, int(clients[0])])
    own = generator.standard_normal((len(clients), len(importance)), dtype=np.float32)
    return importance + own


def _sources(kind: str, clients: Sequence[int]) -> list[Randomness]:
    """Where each client's draws come from."""
    if kind == "secure":
        return [SecureRandomness()] * len(clients)
    return [SimulationRandomness(SEED, "report", "report-1", client) for client in clients]


def entry(epsilon: float) -> privacy.Entry:
    """A mask report's reservation."""
    return privacy.Entry.charged(
        client="everybody",
        run="benchmark",
        round="report-1",
        kind="mask-report",
        question="0" * 64,
        relation=REPLACEMENT,
        event=PureEvent(epsilon),
    )


def summary(
    turns: dict[str, list[dict[str, float]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Spreads of every stage."""
    from fedprune.federated.summary import versions

    measures = {
        source: {name: spread([turn[name] for turn in found]) for name in found[0]}
        for source, found in turns.items()
    }
    reached = {
        "total_s": max(columns["total_s"]["median"] for columns in measures.values()),
        "peak_gib": max(columns["peak_gib"]["max"] for columns in measures.values()),
    }
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/benchmarks/million.py --clients {options.clients} "
        f"--cohort {options.cohort} --epsilon {options.epsilon:g} --repeats {options.repeats} "
        f"--threads {options.threads}",
        "date": date.today().isoformat(),
        "seed": SEED,
        "config": {
            "layout": "resnet20",
            "keep_units": KEEP_UNITS,
            "mechanism": repr(privacy.ThresholdResponse(options.epsilon, 448)),
        },
        "versions": versions(),
        "machine": machine() | {"threads": options.threads},
        "measures": measures,
        "wanted": WANTED,
        "reached": reached,
        "met": {name: bool(reached[name] <= limit) for name, limit in WANTED.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for people: median (smallest to largest)."""
    names = list(next(iter(result["measures"].values())))
    lines = [f"{'':34}" + "".join(f"{source:>28}" for source in result["measures"])]
    for name in names:
        cells = [
            f"{c[name]['median']:.3g} ({c[name]['min']:.3g} to {c[name]['max']:.3g})"
            for c in result["measures"].values()
        ]
        lines.append(f"{name:34}" + "".join(f"{cell:>28}" for cell in cells))
    for name, limit in result["wanted"].items():
        lines.append(f"{name}: {result['reached'][name]:.3g}, wanted at most {limit:g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
