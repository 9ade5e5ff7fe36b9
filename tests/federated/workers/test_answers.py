"""Clients of a simulation in workers: the same answers, an honest ledger, a run that goes on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import run_small
from safetensors.torch import load_file

from fedprune import config as configuration
from fedprune.federated.opening import close_stations
from fedprune.federated.simulate import resume, simulate
from fedprune.federated.workers import Workers, WorkerSettings, open_workers, worker_processes
from fedprune.federated.workers.lending import _OPEN
from fedprune.privacy import Ledger
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

OWN = (
    "data.clients=12",
    "train.rounds=2",
    "train.fine_tune_rounds=0",
    "train.clients_per_round=12",
    "train.local_epochs=1",
    "federation.quorum=0.8",
    "evaluate.seeds=1",
    "evaluate.baselines=false",
    "evaluate.resamples=100",
    "prune.criterion=magnitude_l2",
)


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    yield
    close_stations()


@pytest.fixture(scope="module")
def own_workers(bad_module: str) -> Iterator[Workers]:
    del bad_module
    found = Workers(WorkerSettings(2))
    assert found.start(120.0)
    yield found
    found.close()


@pytest.fixture
def workers(own_workers: Workers) -> Iterator[Workers]:
    """Workers that are open for this test only."""
    _OPEN.append(own_workers)
    yield own_workers
    _OPEN.remove(own_workers)


def same_files(a: Path, b: Path) -> bool:
    names = ("dense.safetensors", "model.safetensors", "votes.safetensors")
    pairs = [(load_file(a / name), load_file(b / name)) for name in names]
    return all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in pairs
    )


def test_a_run_in_workers_is_the_run_in_one_process(
    workers: Workers, finished_run: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "run")
    assert workers.lend("anything").pids()  # they were at work
    assert same_files(tmp_path / "run", finished_run)
    with (
        Ledger.open(tmp_path / "run/ledger.sqlite") as ledger,
        Ledger.open(finished_run / "ledger.sqlite") as other,
    ):
        assert ledger.head == other.head


def test_a_client_whose_worker_dies_is_named_and_has_no_row_of_an_update(
    workers: Workers, bad_module: str, tmp_path: Path
) -> None:
    del workers
    own = (f"data.dataset={bad_module}:rows", f"model.name={bad_module}:dying")
    config = configuration.load(None, [*OWN, *own])
    simulate(config, tmp_path / "run", Quiet())
    events = {event["phase"]: event for event in RunFolder.open(tmp_path / "run").events()}
    missing = events["train-1"]["missing"]["train-1"]
    assert len(missing) == 1
    assert events["train-2"]["missing"] == {"train-2": missing}
    assert events["train-1"]["result"]["clients"] == 11
    with Ledger.open(tmp_path / "run/ledger.sqlite") as ledger:
        assert list(ledger.verify()) == []
        sent = [int(e.client) for e in ledger.entries() if e.kind == "model-update"]
    assert sorted(sent) == sorted([c for c in range(12) if c not in missing] * 2)


@pytest.mark.parametrize("network", ["choosy", "crashing"])
def test_what_workers_cannot_build_is_trained_here_and_that_is_said_once(
    workers: Workers,
    bad_module: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    network: str,
) -> None:
    own = (f"data.dataset={bad_module}:rows", f"model.name={bad_module}:{network}")
    with caplog.at_level(logging.WARNING, logger="fedprune"):
        simulate(configuration.load(None, [*OWN, *own]), tmp_path / "run", Quiet())
    said = [r.message for r in caplog.records if "not in workers" in r.message]
    assert len(said) == 1
    assert workers.lend("another network") is not None


def test_a_bug_of_a_network_fails_its_client_alike_in_one_process(
    bad_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PARENT", "none")  # misbehaves here too
    own = (f"data.dataset={bad_module}:rows", f"model.name={bad_module}:complaining")
    simulate(configuration.load(None, [*OWN, *own]), tmp_path / "run", Quiet())
    events = {event["phase"]: event for event in RunFolder.open(tmp_path / "run").events()}
    assert len(events["train-1"]["missing"]["train-1"]) == 1


def test_workers_start_only_after_enough_training_here() -> None:
    with worker_processes(WorkerSettings(2, after_seconds=5.0)) as workers:
        assert workers.lend("mlp") is None
        workers.trained_here(4.9)
        assert workers.lend("mlp") is None
        assert workers._pool is None
        workers.trained_here(0.2)
        workers.lend("mlp")
        assert workers._pool is not None


def test_one_worker_means_none_and_blocks_share_theirs() -> None:
    assert open_workers() is None
    with worker_processes(WorkerSettings(1, after_seconds=0.0)) as outer:
        assert outer.lend("mlp") is None
        with worker_processes(WorkerSettings(2, after_seconds=0.0)) as inner:
            assert inner is outer
        assert open_workers() is outer
    assert open_workers() is None


INTERRUPTED = """
import sys
from helpers import small_config
from fedprune.federated.simulate import simulate
from fedprune.federated.workers import WorkerSettings, worker_processes
from fedprune.progress import Quiet
if __name__ == "__main__":
    with worker_processes(WorkerSettings(2)) as workers:
        assert workers.start(120.0)
        simulate(small_config(), sys.argv[1], Quiet())
"""


def test_an_interrupted_run_ends_its_workers_and_can_be_resumed(
    finished_run: Path, tmp_path: Path
) -> None:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(out)], env=variables, stderr=subprocess.PIPE
    ) as process:
        try:
            while not (out / "events.jsonl").is_file() or b"train-1" not in _events(out):
                assert process.poll() is None
                time.sleep(0.02)
            children = _children(process.pid)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert len(children) == 3, said.decode()
    end = time.monotonic() + 30
    while any(map(_lives, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_lives, children))
    assert not (out / "summary.json").is_file()
    resume(out, Quiet())
    assert same_files(out, finished_run)


def _events(out: Path) -> bytes:
    return (out / "events.jsonl").read_bytes()


def _children(pid: int) -> list[int]:
    """The nursery, and the workers that it forked."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], stdout=subprocess.PIPE, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    own = [child for child, parent in pairs if parent == pid]
    return own + [child for child, parent in pairs if parent in own]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
