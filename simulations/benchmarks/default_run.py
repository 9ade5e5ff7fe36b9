"""How long does `fedprune simulate` take on the built-in default?

The first line must appear within 5 seconds, the whole run must end within 3 minutes on two cores.

    python simulations/benchmarks/default_run.py --out simulations/results/default_run.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from _measuring import machine

from fedprune import __version__

FIRST_LINE_LIMIT_S = 5.0
WHOLE_RUN_LIMIT_S = 180.0


def main() -> None:
    """Run it once, print both times, exit 1 past a limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first_line, whole = timed_run(Path(scratch) / "run")
    figures = {
        "first_line_s": round(first_line, 2),
        "whole_run_s": round(whole, 1),
        "limits_s": [FIRST_LINE_LIMIT_S, WHOLE_RUN_LIMIT_S],
        "cores": os.cpu_count(),
        "machine": machine(),
        "versions": {"fedprune": __version__, "torch": torch.__version__},
        "command": "python simulations/benchmarks/default_run.py",
        "date": date.today().isoformat(),
    }
    print(json.dumps(figures, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(first_line > FIRST_LINE_LIMIT_S or whole > WHOLE_RUN_LIMIT_S)


def timed_run(out: Path) -> tuple[float, float]:
    """Seconds until the first line on standard error, and until the end."""
    command = [sys.executable, "-m", "fedprune", "simulate", "--out", str(out)]
    begun = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.readline()
        first_line = time.perf_counter() - begun
        process.stderr.read()
        if process.wait():
            raise SystemExit("the run failed")
    return first_line, time.perf_counter() - begun


if __name__ == "__main__":
    main()
