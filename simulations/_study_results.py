"""How the small studies tell their results; `_study` hands these names on."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from scipy.stats import t as student

from fedprune import __version__


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Mean of repetitions with a 95 % interval (Student's t); a single one has no interval."""
    found = np.asarray(values, dtype=np.float64)
    mean, count = float(found.mean()), len(found)
    if count < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "repeats": count}
    half = float(student.isf(0.025, count - 1) * found.std(ddof=1) / math.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "repeats": count}


def machine() -> dict[str, Any]:
    """What the study ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """What the study ran with."""
    return {
        "fedprune": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
        "scipy": scipy.__version__, "python": platform.python_version(),
    }  # fmt: skip


def finish(
    doc: str | None,
    arguments: argparse.Namespace,
    setting: Any,
    begun: float,
    found: dict[str, Any],
    draw: Callable[[dict[str, Any], Path], None],
) -> dict[str, Any]:
    """Complete the results, write them as JSON, and draw the picture beside.

    Args:
        doc: the study's docstring; its first line is the question.
        arguments: of the command line.
        setting: the frozen dataclass of sizes.
        begun: `time.perf_counter()` at the beginning.
        found: what the study found; its keys are kept as they are.
        draw: writes the picture.
    """
    config = _named(arguments) | asdict(setting)
    timed = found | {"seconds": round(time.perf_counter() - begun, 1)}
    return tell(doc, arguments, config, timed, draw)


def tell(
    doc: str | None,
    arguments: argparse.Namespace,
    config: dict[str, Any],
    found: dict[str, Any],
    draw: Callable[[dict[str, Any], Path], None],
) -> dict[str, Any]:
    """Write what was found with all that it takes to find it again, and draw it.

    Args:
        doc: the study's docstring; its first line is the question.
        arguments: of the command line, with `seed` and `out`.
        config: sizes and choices.
        found: what the study found; its keys are kept as they are.
        draw: writes the picture.
    """
    result = {
        "question": (doc or "").strip().splitlines()[0],
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "seed": arguments.seed,
        "config": config,
        "versions": versions(),
        "machine": machine(),
        **found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(_plain(result), indent=1) + "\n", encoding="utf-8")
    draw(result, arguments.out.with_suffix(".png"))
    return result


PLACES = {"--root": "DATA", "--work": "WORK", "--out": "OUT.json"}


def command(argv: Sequence[str]) -> str:
    """The command line as others would give it: places on this machine get names."""
    shown = ["python", _shown(argv[0])]
    for before, word in itertools.pairwise(argv):
        if before == "--weights":
            shown.append(f"DATA/weights/{Path(word).name}")
        else:
            shown.append(PLACES.get(before, word))
    return " ".join(shown)


def _shown(script: str) -> str:
    path = Path(script)
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def _named(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every option that says what is studied: not the places, not what is left to the setting."""
    places = ("root", "work", "out", "seed")
    shown = {k: v for k, v in vars(arguments).items() if k not in places and v is not None}
    if "weights" in shown:
        shown["weights"] = Path(shown["weights"]).name
    return shown


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what cannot be told is null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def interval(row: dict[str, Any], digits: int = 3) -> str:
    """A mean and its interval as text."""
    if math.isnan(row["low"]):
        return f"{row['mean']:.{digits}f}"
    return f"{row['mean']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
