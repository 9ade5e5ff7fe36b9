"""Measured inference time, of several networks side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.hardware._modes import evaluating, threads_set_to


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
) -> dict[str, Latency]:
    """Time the forward passes of several networks in turns, leaving them as they are.

    The networks take turns pass by pass, so that whatever else slows the machine slows all alike.

    Args:
        models: the networks by name; each runs in evaluation mode.
        example_input: [rows, ...] on the models' device; rows are repeated to fill the batch.
        batch_size: examples a pass.
        repeats: timed passes of each network.
        warmup: passes of each network before the first that is timed.
        threads: processor threads that torch may use.

    Raises:
        ConfigError: if a count is out of range.
    """
    counts = {"batch_size": batch_size, "repeats": repeats, "threads": threads}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} of a latency measurement must be at least 1, got {count}")
    if warmup < 0:
        raise ConfigError(f"warmup of a latency measurement must be at least 0, got {warmup}")
    batch = example_input[torch.arange(batch_size) % len(example_input)]
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    with evaluating(models.values()), threads_set_to(threads):
        for turn in range(warmup + repeats):
            for name, model in models.items():
                elapsed = _time_pass(model, batch)
                if turn >= warmup:
                    milliseconds[name].append(elapsed)
    return {
        name: _summary(times, batch_size, threads, repeats) for name, times in milliseconds.items()
    }


def _time_pass(model: nn.Module, batch: Tensor) -> float:
    _wait_for(batch)
    start = time.perf_counter()
    model(batch)
    _wait_for(batch)
    return 1e3 * (time.perf_counter() - start)


def _wait_for(batch: Tensor) -> None:
    if batch.is_cuda:  # work on an accelerator is only queued when the call returns
        torch.cuda.synchronize(batch.device)


def _summary(times: list[float], batch_size: int, threads: int, repeats: int) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(times, [10, 50, 90]))
    return Latency(median, p10, p90, batch_size, threads, repeats)
