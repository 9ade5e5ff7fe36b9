"""What does one more simulated client cost in a report round, and does the cost stay the same?

    python simulations/benchmarks/clients.py --out simulations/results/clients.json

Synthetic images of the digits' shape (or MNIST's), one training row a client, are divided over
1,000, 10,000 and 100,000 clients in turns. Every run is a process of its own, as a user's would
be: it loads the data, hears the introductions and does one report round through the server's own
code (score, select, reserve in the ledger, draw, store, check, estimate). Start-up is excluded from
the time a client: imports, data, introductions, rounds that warm the process up, and what a round
costs that asks one client only (preparing the network, opening the ledger), which is stated beside
it. The whole round over its clients is given too. End to end means everything, from the command to
the end of the process. Wanted: 100,000 clients end to end within 60 s and 4 GiB, and times a client
within 20 % of each other.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import machine, spread, versions, write

from fedprune import config as configuration
from fedprune import data

SIDES = {"digits": 8, "mnist": 28}
WARM_UP_CLIENTS = 1_000  # memory that a round of so many needs is new to the process only once
START_UP_ROUNDS = 5
PARTS = {  # functions of a round; none calls another one
    "gradients of the gates": "gates.py:measure",
    "the clients' randomness": "station.py:randomness",
    "masks from scores": "selection.py:select_many",
    "drawing": "mechanism.py:randomize_rows",
    "ledger": "ledger_writer.py:_transaction",
    "places of the clients' rows": "station.py:cohort_index",
}
SETTINGS = ("data.partition=iid", "model.name=lenet", "prune.keep_units=0.5", "privacy.epsilon=4.0")
WANTED = {"end_to_end_s": 60.0, "peak_gib": 4.0, "linearity": 0.2}


def rows(root: str, *, seed: int) -> data.Dataset:
    """Make one training and one test row a client: `root` says "CLIENTSxSIDE"."""
    clients, side = map(int, str(root).split("x"))
    generator = np.random.default_rng(seed)

    def part() -> tuple[Any, Any]:
        pixels = generator.integers(0, 256, (clients, 1, side, side), dtype=np.uint8)
        return pixels, generator.integers(0, 10, clients)

    scaling = data.Scaling(divisor=255.0)
    return data.from_arrays("synthetic", train=part(), test=part(), num_classes=10, scaling=scaling)


def main() -> None:
    """Run all counts in turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--shape", choices=SIDES, default="digits")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch's, in every run")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(*options.counts, options.repeats, options.threads) < 1:
        parser.error("all counts must be at least 1")
    if options.child is not None:
        print(json.dumps(one_process(options.child, SIDES[options.shape])))
        return
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in options.counts}
    for turn in range(options.repeats):
        for count in options.counts:
            found = run(count, options)
            measured[count].append(found)
            print(f"turn {turn + 1}, {count} clients: {found}", file=sys.stderr)
    result = summary(measured, options)
    print(table(result))
    write(options.out, result)


def run(clients: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one count in a process of its own; give its times and its peak memory."""
    command = [sys.executable, __file__, "--child", str(clients), "--shape", options.shape]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **threads})
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"the run of {clients} clients failed")
    found: dict[str, float] = json.loads(text)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    found["end_to_end_s"] = time.perf_counter() - begun
    found["peak_gib"] = usage.ru_maxrss / unit
    return found


def one_process(clients: int, side: int) -> dict[str, float]:
    """Do one report round after some small ones; give the seconds of its parts."""
    report_round(WARM_UP_CLIENTS, side)
    alone = [report_round(1, side)["report_round_s"] for _ in range(START_UP_ROUNDS)]
    found = report_round(clients, side)
    start_up = statistics.median(alone)
    seconds = found["report_round_s"]
    return found | {
        "round_start_up_s": start_up,
        "us_a_client": 1e6 * max(0.0, seconds - start_up) / clients,
        "round_us_a_client": 1e6 * seconds / clients,
    }


def where_time_goes(clients: int, side: int) -> dict[str, float]:
    """Share of each part in a report round on one thread, under a profiler."""
    torch.set_num_threads(1)
    report_round(WARM_UP_CLIENTS, side)
    profiler = cProfile.Profile()
    found = profiler.runcall(report_round, clients, side)
    spent: dict[str, float] = {}
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items():
        key = f"{Path(file).name}:{name}"  # of methods of one name the outer one takes longest
        spent[key] = max(cumulative, spent.get(key, 0.0))
    shares = {part: spent.get(name, 0.0) / found["report_round_s"] for part, name in PARTS.items()}
    shares["the rest"] = 1 - sum(shares.values())
    return {part: round(share, 3) for part, share in shares.items()}


def report_round(clients: int, side: int) -> dict[str, float]:
    """Start a run of so many clients and do its first voting round."""
    from fedprune import study
    from fedprune.federated.conversation import Conversation
    from fedprune.federated.experiment import Experiment, Held
    from fedprune.federated.local_grid import LocalGrid
    from fedprune.federated.local_votes import local_votes
    from fedprune.federated.opening import close_stations
    from fedprune.federated.steps import schedule
    from fedprune.progress import Quiet
    from fedprune.runs import Architecture, RunFolder, weights_vector

    with tempfile.TemporaryDirectory() as scratch:
        own = (
            f"data.clients={clients}",
            "data.dataset=clients:rows",
            f'data.root="{clients}x{side}"',
        )
        config = configuration.load(None, [*SETTINGS, *own, f"out={scratch}/run"])
        folder = RunFolder.create(Path(scratch) / "run", config)
        begun = time.perf_counter()
        study.load_dataset(config)
        loaded = time.perf_counter()
        grid = LocalGrid(clients, configuration.to_flat(config))
        conversation = Conversation(grid, clients, config.federation, Quiet())
        introduced = time.perf_counter()
        experiment = Experiment(config, folder, conversation, Quiet())
        experiment.phase("plan", lambda: {"run": experiment.run_id})
        architecture = Architecture.dense(config.model.name, 10, (1, side, side))
        weights = weights_vector(study.initial_model(config, experiment.schema))
        held = Held.save(folder, "dense", architecture, weights)
        step = replace(schedule(experiment)[0][0], keep_units=0.5)
        asked = time.perf_counter()
        found = local_votes(experiment, held, step)
        ended = time.perf_counter()
        close_stations()
    if found.estimate.num_reports != clients:
        sys.exit(f"{found.estimate.num_reports} of {clients} clients reported")
    return {
        "data_s": loaded - begun,
        "introduction_s": introduced - loaded,
        "report_round_s": ended - asked,
    }


def summary(
    measured: dict[int, list[dict[str, float]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Spreads, and how far the times a client are apart."""
    found = {
        str(count): {name: spread([turn[name] for turn in turns]) for name in turns[0]}
        for count, turns in measured.items()
    }
    each = [columns["us_a_client"]["median"] for columns in found.values()]
    largest = found[str(max(options.counts))]
    reached = {
        "end_to_end_s": largest["end_to_end_s"]["median"],
        "peak_gib": largest["peak_gib"]["max"],
        "linearity": max(each) / min(each) - 1.0,
    }
    counts = " ".join(map(str, options.counts))
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/benchmarks/clients.py --counts {counts} --shape "
        f"{options.shape} --repeats {options.repeats} --threads {options.threads}",
        "date": date.today().isoformat(),
        "seed": configuration.load().seed,
        "config": list(SETTINGS),
        "versions": versions(),
        "machine": machine() | {"threads": options.threads},
        "start_up_excluded": "imports, data, introductions, a round of "
        f"{WARM_UP_CLIENTS} clients to warm up, and a round of one client (round_start_up_s)",
        "measures": found,
        "where_time_goes": where_time_goes(max(options.counts) // 10, SIDES[options.shape]),
        "wanted": WANTED,
        "reached": reached,
        "met": {name: bool(reached[name] <= limit) for name, limit in WANTED.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for people: median (smallest to largest)."""
    names = list(next(iter(result["measures"].values())))
    lines = [f"{'clients':>9}" + "".join(f"{name:>26}" for name in names)]
    for count, columns in result["measures"].items():
        cells = [
            f"{columns[name]['median']:.3g} ({columns[name]['min']:.3g} to "
            f"{columns[name]['max']:.3g})"
            for name in names
        ]
        lines.append(f"{count:>9}" + "".join(f"{cell:>26}" for cell in cells))
    for name, limit in result["wanted"].items():
        lines.append(f"{name}: {result['reached'][name]:.3g}, wanted at most {limit:g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
