"""The studies are scripts beside the package: found by their folder, run by `main` or `run`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SIMULATIONS = Path(__file__).resolve().parent.parent.parent / "simulations"


@pytest.fixture(autouse=True)
def _studies_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SIMULATIONS))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these only lose by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def study() -> Callable[[str], ModuleType]:
    """Find a study by the name of its script."""
    return importlib.import_module


@pytest.fixture
def run_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a study's command in its small setting, sizes replaced by smaller ones; its results."""

    def run(name: str, *options: str, **sizes: Any) -> dict[str, Any]:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "SMALL", replace(module.SMALL, **sizes))
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr("sys.argv", [str(SIMULATIONS / f"{name}.py"), "--small"])
        module.main(["--small", "--out", str(out), *options])
        picture = out.with_suffix(".png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        return dict(json.loads(out.read_text(encoding="utf-8")))

    return run
