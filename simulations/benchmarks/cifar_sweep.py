"""How long does a sweep of 10,000 clients over four epsilons and three keep fractions take?

ResNet-20 with public weights on CIFAR-10, five images a client, twelve cells of
`fedprune sweep configs/cifar10_resnet20.toml` with every baseline. The sweep's own account says how
long the cells took and what they spared by taking over what other cells had done.

    python simulations/benchmarks/cifar_sweep.py --root DATA --work WORK \
        --out simulations/results/cifar10_sweep.json

Table and picture are copied beside the JSON. If WORK holds the sweep already, it is continued, or
only read if it is finished.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from _measuring import machine, versions, write

CONFIG = Path(__file__).parents[2] / "configs" / "cifar10_resnet20.toml"
OVER = ("privacy.epsilon=1,2,4,8", "prune.keep_units=.3,.5,.7")


def main() -> None:
    """Run or continue the sweep, then tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CIFAR-10 and weights/")
    parser.add_argument("--work", type=Path, required=True, help="the sweep's folder")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="results JSON to write")
    options = parser.parse_args()
    done = subprocess.run(command(options), check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = result(options)
    write(options.out, found)
    if options.out is not None:
        for suffix in (".csv", ".svg"):
            shutil.copyfile(options.work / f"sweep{suffix}", options.out.with_suffix(suffix))
    print(f"{found['cells']} cells in {found['seconds']:,.0f} s, spared {found['spared_s']:,.0f} s")


def command(options: argparse.Namespace) -> list[str]:
    """The product's own command."""
    if (options.work / "sweep.json").exists():
        return [sys.executable, "-m", "fedprune", "resume", str(options.work)]
    settings = (
        f"data.root={options.root}",
        f"data.clients={options.clients}",
        f"evaluate.seeds={options.seeds}",
        f"train.fine_tune_rounds={options.rounds}",
    )
    asked = [sys.executable, "-m", "fedprune", "sweep", str(CONFIG), "--out", str(options.work)]
    for name, values in (("--set", settings), ("--over", OVER)):
        for value in values:
            asked += [name, value]
    return asked


def result(options: argparse.Namespace) -> dict[str, Any]:
    """What the finished sweep says of itself."""
    told = json.loads((options.work / "summary.json").read_text(encoding="utf-8"))
    config = told["config"]
    config["data"]["root"], config["out"] = "", ""
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/benchmarks/cifar_sweep.py --root DATA --work WORK "
        f"--clients {options.clients} --rounds {options.rounds} --seeds {options.seeds} "
        "--out simulations/results/cifar10_sweep.json",
        "date": date.today().isoformat(),
        "seed": config["seed"],
        "config": config | {"over": list(OVER)},
        "versions": versions(),
        "machine": machine(),
        "cells": len(told["cells"]["done"]),
        "seconds": told["seconds"]["wall"],
        "spared_s": told["seconds"]["spared"],
        "groups": told["groups"],
        "epsilons": told["epsilons"],
    }


if __name__ == "__main__":
    main()
