from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from fedprune.hardware.parallel import Spares, map_in_order


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    released = threading.Event()

    def work(task: int) -> int:
        if workers > 1 and task == 0:
            assert released.wait(30)  # the first one ends after the second one
        released.set()
        return task * task

    assert list(map_in_order(work, range(20), workers)) == [k * k for k in range(20)]


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_are_made_in_the_calling_thread_and_few_ahead(workers: int) -> None:
    made: list[int] = []
    makers: set[int] = set()

    def tasks() -> Iterator[int]:
        for k in range(40):
            made.append(k)
            makers.add(threading.get_ident())
            yield k

    for taken, _ in enumerate(map_in_order(lambda task: task, tasks(), workers)):
        assert len(made) <= taken + 2 * workers
    assert makers == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_has_one_torch_thread_and_the_caller_gets_its_own_back(workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = list(map_in_order(lambda _: torch.get_num_threads(), range(12), workers))
        assert seen == [1] * 12
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_failure_in_order_is_raised_and_ends_the_work(workers: int) -> None:
    begun: list[int] = []

    def work(task: int) -> int:
        begun.append(task)
        if task in (5, 6):
            raise ValueError(f"task {task}")
        return task

    results = map_in_order(work, range(1000), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="task 5"):
        next(results)
    assert len(begun) < 20


def test_no_two_threads_have_the_same_thing_and_few_are_made() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    spares, in_use = Spares(make), set()
    lock, meet = threading.Lock(), threading.Barrier(3)

    def work(task: int) -> int:
        with spares.borrow() as own:
            with lock:
                assert own not in in_use
                in_use.add(own)
            if task < 3:
                meet.wait(30)  # three of them at once
            with lock:
                in_use.remove(own)
        return task

    assert list(map_in_order(work, range(30), 3)) == list(range(30))
    assert len(made) == 3
