"""Shared fixtures: where the optional real data sets are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers import run_small

REPOSITORY = Path(__file__).resolve().parent.parent


def _unpack_if_present(target: Path) -> Path | None:
    """Lay out the development data that may stand beside a checkout; None where there is none."""
    unpack = REPOSITORY.parent / "shared" / "data" / "unpack"
    if not unpack.is_file():
        return None
    subprocess.run([str(unpack), str(target)], check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with cifar-10-batches-py, adult, heart and weights; skips where there is none."""
    named = os.environ.get("FEDPRUNE_TEST_DATA")
    root = Path(named) if named else _unpack_if_present(tmp_path_factory.mktemp("data"))
    if root is None:
        pytest.skip("real data sets are not here: set FEDPRUNE_TEST_DATA to a folder that has them")
    return root


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run; tests must not change it (copy it first)."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    run_small(out)
    return out
