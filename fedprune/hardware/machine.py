"""What a measurement ran on: a figure of time means nothing without it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    """A processor and the software that decides how fast it computes.

    Attributes:
        processor: Its name, as the system tells it.
        cores: Cores that this process may use.
        instructions: The vector instructions that torch uses.
        torch: Version of torch.
        python: Version of Python.
        system: Operating system and architecture.
    """

    processor: str
    cores: int
    instructions: str
    torch: str
    python: str
    system: str

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def machine() -> Machine:
    """Describe the machine that this process runs on."""
    return Machine(
        processor=_processor(),
        cores=_cores(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    allowed = getattr(os, "sched_getaffinity", None)  # not every system can tell
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1
