from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fedprune import hardware
from fedprune.allocator import _glibc, freed_memory_kept

pytestmark = pytest.mark.skipif(_glibc() is None, reason="the C library is not GNU's")

MIB = 2**20
BLOCKS = (4, 40, 150)  # MiB: on the heap, beyond every threshold, beyond a thread's whole heap
PAGE = resource.getpagesize()


def fresh_pages(megabytes: int, times: int = 10) -> float:
    """Pages that the system hands out for one tensor that is made, filled and dropped again."""
    for _ in range(20):  # until every free place of this size has been used once
        torch.ones(megabytes * MIB, dtype=torch.int8)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(times):
        torch.ones(megabytes * MIB, dtype=torch.int8)
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / times


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


@pytest.mark.parametrize("megabytes", BLOCKS)
def test_freed_memory_is_used_again_without_asking_the_system(megabytes: int) -> None:
    with freed_memory_kept() as kept:
        assert kept
        assert fresh_pages(megabytes) < 0.02 * megabytes * MIB / PAGE


def test_memory_goes_back_when_the_last_user_is_done() -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            torch.ones(300 * MIB, dtype=torch.int8)
        held = resident()  # another still keeps it
        assert fresh_pages(300) < 100
    assert resident() < held - 250 * MIB


def test_a_thread_that_is_done_leaves_the_others_theirs() -> None:
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with freed_memory_kept():
            inside.set()
            done.wait(60)

    other = threading.Thread(target=work)
    other.start()
    assert inside.wait(60)
    with freed_memory_kept():
        done.set()
        other.join()
        assert fresh_pages(40) < 100


FRESH_PROCESS = """
import resource, sys
import numpy as np, torch
from fedprune.hardware.timing import time_in_turns
found = []
def work():
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    torch.ones(150 * 2**20, dtype=torch.int8)
for keep in (False, True):
    found.clear()
    time_in_turns({"fill": work}, repeats=8, warmup=6, threads=1, keep_memory=keep)
    print(np.median(np.diff(found)[6:]))
"""


def test_a_measurement_keeps_memory_unless_told_otherwise() -> None:
    made = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, check=True
    )
    returned, kept = map(float, made.stdout.split())
    assert kept < 5 < 50 < returned  # 150 MiB have 75 of the largest pages that there may be


@pytest.mark.parametrize("keep", [True, False])
def test_comparisons_and_latencies_pass_the_wish_on(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[bool] = []

    @contextmanager
    def watched() -> Iterator[bool]:
        entered.append(True)
        yield True

    monkeypatch.setattr("fedprune.hardware.timing.freed_memory_kept", watched)
    model, example = {"a": torch.nn.Identity()}, torch.zeros(1, 1)
    hardware.latency(model, example, repeats=2, keep_memory=keep)
    hardware.compare(model, example, repeats=6, keep_memory=keep)
    assert len(entered) == (2 if keep else 0)


def test_with_another_c_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedprune.allocator._glibc", lambda: None)
    with freed_memory_kept() as kept:
        assert not kept


FOR_LIFE = """
import gc, resource
import numpy as np, torch
from fedprune.allocator import freed_memory_kept, keep_freed_memory
print(int(keep_freed_memory()))
gc.collect()
with freed_memory_kept():
    pass
found = []
for _ in range(20):
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    torch.ones(150 * 2**20, dtype=torch.int8)
print(np.median(np.diff(found)[8:]))
"""


def test_a_process_can_keep_memory_for_life() -> None:
    made = subprocess.run(
        [sys.executable, "-c", FOR_LIFE], capture_output=True, text=True, check=True
    )
    kept, fresh = map(float, made.stdout.split())
    assert kept == 1
    assert fresh < 100
