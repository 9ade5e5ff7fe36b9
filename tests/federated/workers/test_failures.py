"""Who dies, hangs or raises takes one client along; nobody outlives the parent."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedprune.data import Rows
from fedprune.errors import FedpruneError, ModelError
from fedprune.federated.training import LocalTraining
from fedprune.federated.workers import (
    ClientFailedError,
    Pool,
    Trained,
    Work,
    WorkersUnavailableError,
)
from fedprune.runs import Architecture, weights_vector

CLIENTS = 8
MARKED = 5  # the client whose row is marked


def work_of(network: str, rate: float = 0.1) -> Work:
    random = np.random.default_rng(0)
    inputs = random.random((4 * CLIENTS, 6)).astype(np.float32)
    inputs[4 * MARKED + 2] = 99.0
    architecture = Architecture.dense(network, 3, (6,))
    model, _ = architecture.build()
    return Work(
        rows=Rows(inputs, random.integers(0, 3, 4 * CLIENTS)),
        architecture=architecture,
        weights=weights_vector(model),
        how=LocalTraining(1, 2, rate, 0.0, 0.0),
        seed=1,
        labels=("train", "train-1"),
        clients=range(100, 100 + CLIENTS),
        places=np.split(np.arange(4 * CLIENTS), CLIENTS),
    )


def outcomes(pool: Pool, work: Work, seconds: float = 300.0) -> list[np.ndarray | FedpruneError]:
    found: dict[int, np.ndarray | FedpruneError] = {}
    for position, outcome in pool.train(work, seconds):
        assert position not in found
        found[position] = outcome.weights.copy() if isinstance(outcome, Trained) else outcome
    assert sorted(found) == list(range(CLIENTS))
    return [found[position] for position in range(CLIENTS)]


@pytest.fixture(scope="module")
def sound(pool: Pool, bad_module: str) -> list[np.ndarray]:
    """What the clients' weights are where nobody misbehaves: the mark is no mark to an mlp."""
    del bad_module
    return [found for found in outcomes(pool, work_of("mlp")) if isinstance(found, np.ndarray)]


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("dying", r"worker process that trained client 105 was killed by SIGKILL.*memory"),
        ("leaving", r"worker process that trained client 105 ended with exit status 3"),
        ("complaining", r"client 105 could not be trained: ValueError: no good"),
        ("exhausted", r"client 105 could not be trained: MemoryError"),
    ],
)
def test_the_client_in_hand_is_named_and_all_others_are_trained(
    pool: Pool, sound: list[np.ndarray], bad_module: str, network: str, sentence: str
) -> None:
    work = work_of(f"{bad_module}:{network}")
    found = outcomes(pool, replace(work, weights=work_of("mlp").weights))
    failed = found.pop(MARKED)
    assert isinstance(failed, ClientFailedError)
    with pytest.raises(ClientFailedError, match=sentence):
        raise failed
    expected = sound[:MARKED] + sound[MARKED + 1 :]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_client_that_hangs_is_given_up_and_its_process_ended(pool: Pool, bad_module: str) -> None:
    work = work_of(f"{bad_module}:hanging")
    found = outcomes(pool, work, seconds=6.0)
    failed = found.pop(MARKED)
    assert isinstance(failed, ClientFailedError)
    assert str(failed) == "client 105's training took longer than 6 s"
    assert all(isinstance(other, np.ndarray) for other in found)
    module = importlib.import_module(bad_module)
    hung = int(Path(f"{module.__file__}.hanging").read_text())
    assert hung not in pool.pids()
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_a_diverged_client_is_told_as_it_is_in_one_process(pool: Pool) -> None:
    found = outcomes(pool, work_of("mlp", rate=1e30))
    assert {type(one) for one in found} == {ModelError}
    assert "training diverged" in str(found[0])


def test_a_worker_that_died_while_idle_is_replaced(pool: Pool, sound: list[np.ndarray]) -> None:
    outcomes(pool, work_of("mlp"))
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    again = outcomes(pool, work_of("mlp"))
    assert all(np.array_equal(a, b) for a, b in zip(again, sound, strict=True))


@pytest.mark.parametrize(
    ("network", "sentence"), [("choosy", "not here"), ("crashing", "exit status 7")]
)
def test_a_network_that_workers_cannot_build_is_left_to_the_parent(
    pool: Pool, bad_module: str, network: str, sentence: str
) -> None:
    with pytest.raises(WorkersUnavailableError, match=sentence):
        list(pool.train(work_of(f"{bad_module}:{network}"), 300.0))
    assert all(isinstance(one, np.ndarray) for one in outcomes(pool, work_of("mlp")))


def test_work_that_is_given_up_leaves_the_pool_usable(pool: Pool, sound: list[np.ndarray]) -> None:
    turn = pool.train(work_of("mlp"), 300.0)
    next(turn)
    turn.close()
    again = outcomes(pool, work_of("mlp"))
    assert all(np.array_equal(a, b) for a, b in zip(again, sound, strict=True))


def test_a_pool_whose_nursery_died_says_so() -> None:
    with Pool(2) as pool:
        assert pool.ready(120.0)
        outcomes(pool, work_of("mlp"))
        pids = pool.pids()
        pool._nursery.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkersUnavailableError):
            list(pool.train(work_of("mlp"), 300.0))


def test_closing_ends_every_process() -> None:
    with Pool(2) as pool:
        assert pool.ready(120.0)
        outcomes(pool, work_of("mlp"))
        pids = [*pool.pids(), pool._nursery.pid]
        assert all(alive(pid) for pid in pids)
    assert_gone(pids)


HANGING_PARENT = """
import os, sys, time
sys.path.insert(0, {folder!r})
os.environ["TEST_PARENT"] = str(os.getpid())
from test_failures import work_of
from fedprune.federated.workers import Pool
with Pool(2) as pool:
    assert pool.ready(120.0)
    for position, _ in pool.train(work_of("misbehaving:hanging"), 300.0):
        print(*pool.pids(), pool._nursery.pid, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent_not_even_one_that_hangs(
    bad_module: str, how: signal.Signals
) -> None:
    own = Path(importlib.import_module(bad_module).__file__ or "").parent
    script = HANGING_PARENT.format(folder=str(own))
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=variables, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        # One hangs by then, and one may wait behind it.
        lines = [parent.stdout.readline() for _ in range(CLIENTS - 2)]
        pids = [int(pid) for pid in lines[-1].split()]
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
        parent.send_signal(how)
        try:
            parent.communicate(timeout=60)
        finally:
            parent.kill()
    assert_gone(pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def assert_gone(pids: list[int], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]
