"""Kill a simulation at random moments of its report round, resume it, and compare.

Question: does a crash ever make a client spend twice, or change the result? Claim: never; the
final mask and every report equal those of an undisturbed run with the same seed.

    python simulations/kill_resume.py --kills 20

Each kill is `kill -9` at a moment drawn uniformly from the report round of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedprune import __version__
from fedprune.privacy import Ledger
from fedprune.privacy.ledgers.chain import RESERVED, STORED

SETTINGS = (
    "data.clients=1400",  # three cohorts, so that a kill can fall between and inside them
    "model.name=mlp",
    "train.rounds=1",
    "train.fine_tune_rounds=1",
    "train.clients_per_round=20",
    "train.local_epochs=1",
    "evaluate.seeds=1",
    "evaluate.baselines=false",
    "evaluate.resamples=100",
)


def main() -> None:
    """Run undisturbed once, then kill and resume as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start(folder / "undisturbed").wait()
        expected = outcome(folder / "undisturbed")
        length = report_seconds(folder / "undisturbed")
        rows = [
            one_kill(folder / f"killed-{k}", generator.uniform(0, length), expected)
            for k in range(arguments.kills)
        ]
    for number, row in enumerate(rows, start=1):
        print(f"kill {number:2d}: {row}")
    good = sum(row["same_reports"] and row["same_mask"] and row["spent_once"] for row in rows)
    print(f"{good} of {len(rows)} resumed to the undisturbed result, no client spending twice")
    if arguments.out:
        result = {
            "question": __doc__.splitlines()[0],
            "command": f"python simulations/kill_resume.py --kills {arguments.kills}",
            "seed": arguments.seed,
            "settings": SETTINGS,
            "date": date.today().isoformat(),
            "versions": {"fedprune": __version__, "torch": torch.__version__},
            "kills": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if good == len(rows) else 1)


def start(out: Path, *, resume: bool = False) -> subprocess.Popen[bytes]:
    """Start or resume the simulation in a process of its own."""
    command = [sys.executable, "-m", "fedprune"]
    if resume:
        command += ["resume", str(out), "--json"]
    else:
        command += ["simulate", "--json", "--out", str(out)]
        command += [part for setting in SETTINGS for part in ("--set", setting)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def one_kill(
    out: Path, delay: float, expected: tuple[list[tuple[str, bytes]], torch.Tensor]
) -> dict:
    """Kill -9 `delay` seconds into the report round, resume, compare."""
    process = start(out)
    wait_for_report_round(out)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stored, reserved = rows_of(out, STORED), rows_of(out, RESERVED)
    code = start(out, resume=True).wait()
    reports, mask = outcome(out)
    clients = [client for client, _ in reports]
    return {
        "delay_s": round(delay, 3),
        "reserved_when_killed": reserved,
        "stored_when_killed": stored,
        "resume_exit": code,
        "same_reports": reports == expected[0],
        "same_mask": bool(torch.equal(mask, expected[1])),
        "spent_once": len(clients) == len(set(clients)) and sound(out),
    }


def wait_for_report_round(out: Path) -> None:
    """Wait until the phase before the report round is finished."""
    events = out / "events.jsonl"
    for _ in range(60_000):
        if events.is_file() and b'"evaluate-dense"' in events.read_bytes():
            return
        time.sleep(0.001)
    raise SystemExit("the simulation never reached its report round")


def rows_of(out: Path, stage: str) -> int:
    """Count a ledger's rows of one stage."""
    with Ledger.open(out / "ledger.sqlite") as ledger:
        return sum(entry.stage == stage for entry in ledger.entries())


def stored_reports(out: Path) -> list[tuple[str, bytes]]:
    """Every stored report, by client, in the ledger's order."""
    with Ledger.open(out / "ledger.sqlite") as ledger:
        return [(e.client, e.report) for e in ledger.entries() if e.stage == STORED]


def outcome(out: Path) -> tuple[list[tuple[str, bytes]], torch.Tensor]:
    """Reports and final mask of a finished run."""
    return stored_reports(out), load_file(out / "votes.safetensors")["step1.mask"]


def sound(out: Path) -> bool:
    """Whether the ledger verifies: chain, one report a client, nobody past the budget."""
    with Ledger.open(out / "ledger.sqlite") as ledger:
        return next(ledger.verify(), None) is None


def report_seconds(out: Path) -> float:
    """How long the undisturbed report round took."""
    lines = (out / "events.jsonl").read_text().splitlines()
    return float(next(e["seconds"] for e in map(json.loads, lines) if e["phase"] == "vote-1"))


if __name__ == "__main__":
    main()
