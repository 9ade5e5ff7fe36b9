"""What the benchmarks have in common: spreads, the machine, and results on disk."""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune.federated.summary import versions

__all__ = ["cell", "command", "machine", "spread", "versions", "write"]

PLACES = {"--root": "DATA", "--work": "WORK", "--folder": "FOLDER"}


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def cell(found: dict[str, float] | None) -> str:
    """A spread as people read it: median (smallest to largest)."""
    if found is None:
        return ""
    return f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g})"


def command(argv: Sequence[str]) -> str:
    """The command line as others would give it: places on this machine get names."""
    shown = ["python", f"simulations/benchmarks/{Path(argv[0]).name}"]
    for before, word in itertools.pairwise(argv):
        if before == "--weights":
            shown.append(f"DATA/weights/{Path(word).name}")
        elif before == "--out":
            shown.append(f"simulations/results/{Path(word).name}")
        else:
            shown.append(PLACES.get(before, word))
    return " ".join(shown)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result as JSON, if a path is given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
