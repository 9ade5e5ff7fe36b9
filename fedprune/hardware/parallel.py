"""Several single-threaded passes side by side, with results in the order of the tasks.

Two passes of one thread each use two cores better than one pass of two threads wherever
operations are small; and since no operation is split among threads, a result has the same bits
however many threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from fedprune.hardware._modes import threads_set_to

Task = TypeVar("Task")
Result = TypeVar("Result")
Kept = TypeVar("Kept")


def map_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Work on tasks in threads, each with one torch thread, and give the results in order.

    Tasks are made in the calling thread, as they are needed and at most one for each worker ahead:
    reading the next batch overlaps with the work on earlier ones, and memory stays bounded. With
    one worker everything happens in the calling thread. While results are still to come torch
    splits no operation among threads.

    Args:
        work: Called with one task, from several threads at once where there are several workers.
        tasks: What to work on.
        workers: Threads, at least 1.

    Yields:
        What `work` gives, for the first task first.

    Raises:
        Exception: what `work` raises first, in the order of the tasks; later tasks are dropped.
    """
    with threads_set_to(1):
        if workers == 1:
            yield from map(work, tasks)
        else:
            yield from _map_in_threads(work, tasks, workers)


def _map_in_threads(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    # The number of threads is a thread's own, so every worker sets it.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > 2 * workers - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Spares(Generic[Kept]):
    """Things that one thread at a time may use, made when none is free."""

    def __init__(self, make: Callable[[], Kept]) -> None:
        """Take what makes another one; it is called from the thread that needs it."""
        self._make = make
        self._free: list[Kept] = []  # taking from a list and giving back are atomic

    @contextmanager
    def borrow(self) -> Iterator[Kept]:
        """Have one to oneself inside the block."""
        try:
            held = self._free.pop()
        except IndexError:
            held = self._make()
        try:
            yield held
        finally:
            self._free.append(held)
