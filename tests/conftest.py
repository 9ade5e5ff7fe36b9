"""How the suite runs (two files at a time) and what tests share (data, a finished run)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each would fight for cores
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # like torch it asks for the number of threads when it is imported
import torch
from helpers import run_small
from hypothesis import settings

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("untimed", deadline=None)  # a busy machine is not a wrong answer
settings.load_profile("untimed")
torch.manual_seed(0)  # for networks that a test file makes when it is imported

REPOSITORY = Path(__file__).resolve().parent.parent
WORKERS = 2
# Files that start clusters, SuperLinks or SuperNodes: one after another, in one worker.
ALONE = {"integration", "test_network.py", "test_processes.py", "test_flower_processes.py"}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use workers for folders; a single file or test is quicker, and can be debugged, without."""
    chosen = [argument.split("::")[0] for argument in config.args]
    return WORKERS if all(Path(path).is_dir() for path in chosen) else 0


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Keep a file's tests in one worker, where they share what it has set up."""
    for item in items:
        alone = not ALONE.isdisjoint(item.path.relative_to(REPOSITORY / "tests").parts)
        item.add_marker(pytest.mark.xdist_group("alone" if alone else str(item.path)))


@pytest.fixture(autouse=True)
def _same_draws_every_time() -> None:
    """Let what a test draws without a seed of its own be the same in every run of the suite."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - it is for whoever uses the old generator
    torch.default_generator.manual_seed(0)


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
