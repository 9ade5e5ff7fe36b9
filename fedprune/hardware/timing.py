"""Timing several things in turns: whatever else slows the machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from fedprune.allocator import freed_memory_kept
from fedprune.errors import ConfigError
from fedprune.hardware._modes import threads_set_to

Times = NDArray[np.float64]

FEWEST_REPEATS = 6  # fewer have no distribution-free 95 % interval of the median


def check_counts(what: str, **counts: int) -> None:
    """Refuse what is no whole number or below 1 (a warm-up below 0) by its name.

    Raises:
        ConfigError: naming the count.
    """
    for name, count in counts.items():
        least = 0 if name == "warmup" else 1
        if not isinstance(count, Integral):
            raise ConfigError(f"{name} of {what} must be a whole number, got {count!r}")
        if count < least:
            raise ConfigError(f"{name} of {what} must be at least {least}, got {count}")


def time_in_turns(
    works: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int,
    threads: int,
    least_ms: float = 0.0,
    shuffled: bool = False,
    settle: int = 0,
    keep_memory: bool = True,
) -> dict[str, Times]:
    """Milliseconds that each work takes, once a turn, without gradients.

    Args:
        works: What to time, by name.
        repeats: Timed turns, at least 1.
        warmup: Turns before the first that is timed.
        threads: Processor threads that torch may use.
        least_ms: A work that is shorter is repeated within its turn, so that the clock's grain and
            the call do not show; the mean of the repetitions counts.
        shuffled: Draw another order for every turn: among many short works a machine that is busy
            from time to time would otherwise slow the same one in turn after turn.
        settle: Untimed calls before a work's timed ones, in every turn: meanwhile the others have
            filled the processor's caches with theirs.
        keep_memory: Keep freed memory in the process meanwhile. Otherwise large blocks may go back
            to the system at every call and come anew with the next; whether they do depends on what
            the process freed before (`fedprune.allocator`).

    Returns:
        For each name [repeats] milliseconds, in the order of the turns.
    """
    check_counts("a measurement of time", repeats=repeats, warmup=warmup, threads=threads)
    found: dict[str, list[float]] = {name: [] for name in works}
    memory = freed_memory_kept() if keep_memory else nullcontext()
    with memory, torch.inference_mode(), threads_set_to(threads):
        calls = {name: _calls(work, least_ms) for name, work in works.items()}
        order, names = np.random.default_rng(0), list(works)
        for turn in range(warmup + repeats):
            for name in order.permutation(names).tolist() if shuffled else names:
                for _ in range(settle):
                    works[name]()
                elapsed = _elapsed_ms(works[name], calls[name])
                if turn >= warmup:
                    found[name].append(elapsed)
    return {name: np.array(times) for name, times in found.items()}


def _calls(work: Callable[[], Any], least_ms: float) -> int:
    if least_ms <= 0:
        return 1
    _elapsed_ms(work, 1)
    return max(1, math.ceil(least_ms / max(_elapsed_ms(work, 1), 1e-6)))


def _elapsed_ms(work: Callable[[], Any], calls: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _wait()
    return 1e3 * (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # work on an accelerator is only queued when the call returns


def median_interval(values: Times, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median that holds for any distribution, from two order statistics.

    Between the k-th smallest and the k-th largest of n values the median lies with a probability
    of 1 - 2 P(Binomial(n, 1/2) < k); k is the largest that reaches the confidence.

    Args:
        values: [n] independent values, n at least 6 for a confidence of 0.95.
        confidence: In (0, 1).

    Raises:
        ConfigError: if there are too few values for the confidence.
    """
    rank = int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    if rank < 1:
        raise ConfigError(
            f"{len(values)} repeats are too few for an interval of the median at a confidence of "
            f"{confidence}"
        )
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])
