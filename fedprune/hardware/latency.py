"""Measured inference time, of several networks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from fedprune.hardware._modes import batch_of, evaluating, run
from fedprune.hardware.timing import Times, check_counts, time_in_turns


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one forward pass of a batch, over `repeats` passes."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    batch_size: int
    threads: int
    repeats: int


def latency(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    *,
    batch_size: int = 1,
    repeats: int = 50,
    warmup: int = 5,
    threads: int = 1,
    keep_memory: bool = True,
) -> dict[str, Latency]:
    """Time the forward passes of several networks in turns, leaving them as they are.

    The networks take turns, so that whatever else slows the machine slows all alike; in every turn
    an untimed pass comes first, since alone each would find its own weights in the caches.

    Args:
        models: the networks by name; each runs in evaluation mode.
        example_input: [rows, ...] on the models' device; rows are repeated to fill the batch.
        batch_size: examples a pass.
        repeats: timed passes of each network.
        warmup: passes of each network before the first that is timed.
        threads: processor threads that torch may use.
        keep_memory: keep freed memory in the process meanwhile; otherwise a pass with large tensors
            may have to pay for fresh pages, depending on what the process freed before.

    Raises:
        ConfigError: if a count is out of range.
        ModelError: if a network cannot process the batch.
    """
    check_counts(
        "a latency measurement",
        batch_size=batch_size,
        repeats=repeats,
        threads=threads,
        warmup=warmup,
    )
    batch = batch_of(example_input, batch_size)
    times = pass_times(
        models, batch, repeats=repeats, warmup=warmup, threads=threads, keep_memory=keep_memory
    )
    return {name: summary(mine, batch_size, threads) for name, mine in times.items()}


def pass_times(
    models: Mapping[str, nn.Module],
    batch: Tensor,
    *,
    repeats: int,
    warmup: int,
    threads: int,
    keep_memory: bool,
) -> dict[str, Times]:
    """Milliseconds of each network's passes, turn by turn, an untimed one before each.

    Args:
        models: the networks by name.
        batch: [rows, ...], what all of them read.
        repeats: timed passes of each network.
        warmup: turns before the first that is timed.
        threads: processor threads that torch may use.
        keep_memory: keep freed memory in the process meanwhile.

    Returns:
        For each name [repeats] milliseconds.

    Raises:
        ModelError: if a network cannot process the batch.
    """
    works = {name: partial(run, name, model, batch) for name, model in models.items()}
    with evaluating(models.values()):
        return time_in_turns(
            works,
            repeats=repeats,
            warmup=warmup,
            threads=threads,
            settle=1,
            keep_memory=keep_memory,
        )


def summary(times: Times, batch_size: int, threads: int) -> Latency:
    """Sum up measured times [repeats] in milliseconds."""
    p10, median, p90 = (float(value) for value in np.percentile(times, [10, 50, 90]))
    return Latency(median, p10, p90, batch_size, threads, len(times))
