"""What does a client cost on each engine? The same app and work, local against Flower's (Ray).

    python simulations/benchmarks/engines.py --out simulations/results/engines.json

Every turn runs the same configuration once on each engine, in processes of their own, one after
the other, so that both meet the same machine. Reported are medians over the turns and their range:
milliseconds a client in a training round and in the report round, seconds from the command to the
first phase, and the largest memory of all processes that the engine runs in. That both gave the
same masks is checked, not assumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from _measuring import machine, spread, versions

from fedprune import config as configuration
from fedprune.runs import RunFolder

ENGINES = ("local", "flower")
MEASURES = ("train_ms_a_client", "report_ms_a_client", "start_up_s", "total_s", "memory_gib")
SETTINGS = (
    "train.rounds=5",
    "train.fine_tune_rounds=1",
    "train.local_epochs=1",
    "evaluate.seeds=1",
    "evaluate.baselines=false",
    "evaluate.resamples=100",
)


def main() -> None:
    """Run both engines in turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    settings = (
        *SETTINGS,
        f"data.clients={arguments.clients}",
        f"train.clients_per_round={arguments.clients}",
    )
    turns: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.turns):
        with tempfile.TemporaryDirectory() as scratch:
            folders = {engine: Path(scratch) / engine for engine in ENGINES}
            turn = {
                engine: one_run(engine, folder, settings, arguments.clients)
                for engine, folder in folders.items()
            }
            same = mask_of(folders["local"]) == mask_of(folders["flower"])
        if not same:
            sys.exit("the engines gave different masks")
        turns.append(turn)
        print(f"turn {number + 1}: {turn}", file=sys.stderr)
    result = summary_of(turns, settings, arguments)
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def one_run(engine: str, folder: Path, settings: tuple[str, ...], clients: int) -> dict[str, float]:
    """Run one engine; give its measures."""
    command = [sys.executable, "-m", "fedprune", "simulate", "--json", "--engine", engine]
    command += ["--out", str(folder)]
    command += [part for setting in settings for part in ("--set", setting)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = PeakMemory(process.pid)
    if process.wait() != 0:
        sys.exit(f"the {engine} engine failed")
    total, memory = time.perf_counter() - begun, peak.stop()
    seconds: dict[str, float] = {}
    for event in RunFolder.open(folder).events():
        seconds[event["phase"]] = float(event["seconds"])
    rounds = [value for phase, value in seconds.items() if phase.startswith("train-")]
    return {
        # The first round also loads the data in every process; it is part of starting up.
        "train_ms_a_client": 1000 * statistics.median(rounds[1:]) / clients,
        "report_ms_a_client": 1000 * seconds["vote-1"] / clients,
        "start_up_s": total - sum(seconds.values()) + rounds[0] - statistics.median(rounds[1:]),
        "total_s": total,
        "memory_gib": memory / 2**30,
    }


class PeakMemory:
    """Samples the memory of a process and all its descendants ten times a second."""

    def __init__(self, pid: int) -> None:
        """Begin to sample."""
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop; give the largest sum of proportional set sizes, in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            try:
                root = psutil.Process(self._pid)
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            self._peak = max(self._peak, sum(_bytes_of(process) for process in tree))


def _bytes_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)  # shared pages count once over all processes
    except psutil.Error:
        return 0


def mask_of(folder: Path) -> list[bool]:
    """The final mask of a run."""
    mask: list[bool] = (
        RunFolder.open(folder).read_tensors("votes.safetensors")["step1.mask"].tolist()
    )
    return mask


def summary_of(
    turns: list[dict[str, dict[str, float]]],
    settings: tuple[str, ...],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Medians and ranges over the turns, and the ratio of every turn."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        values = {engine: [turn[engine][name] for turn in turns] for engine in ENGINES}
        ratios = [b / a for a, b in zip(values["local"], values["flower"], strict=True)]
        found[name] = {
            **{engine: spread(values[engine]) for engine in ENGINES},
            "flower_over_local": spread(ratios),
        }
    config = configuration.load(None, settings)
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/benchmarks/engines.py "
        f"--turns {arguments.turns} --clients {arguments.clients} "
        "--out simulations/results/engines.json",
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": config.seed,
        "config": config.model_dump(),
        "versions": versions(),
        "same_masks": True,
        "measures": found,
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    lines = [f"{'':22}{'local':>24}{'flower':>24}{'flower / local':>24}"]
    for name, columns in result["measures"].items():
        cells = [
            f"{c['median']:.3g} ({c['min']:.3g} to {c['max']:.3g})"
            for c in (columns["local"], columns["flower"], columns["flower_over_local"])
        ]
        lines.append(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
