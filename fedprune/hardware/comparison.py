"""How much faster one network is than another: ratios of passes in turns, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.hardware._modes import batch_of
from fedprune.hardware.latency import Latency, pass_times, summary
from fedprune.hardware.timing import FEWEST_REPEATS, check_counts, median_interval


@dataclass(frozen=True)
class Speed:
    """One network's time and how many times faster it is than the baseline.

    Attributes:
        latency: Its time.
        speedup: Median over turns of the baseline's time over this one's in the same turn.
        speedup_low: Lower end of a 95 % interval of that median, from order statistics.
        speedup_high: Upper end.
    """

    latency: Latency
    speedup: float
    speedup_low: float
    speedup_high: float

    def brings_nothing(self) -> bool:
        """Whether the interval does not exclude that it is no faster."""
        return self.speedup_low <= 1.0


def compare(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    *,
    baseline: str | None = None,
    batch_size: int = 1,
    repeats: int = 50,
    warmup: int = 5,
    threads: int = 1,
    keep_memory: bool = True,
) -> dict[str, Speed]:
    """Time several networks in turns as `latency` does, and compare each turn's times.

    Args:
        models: The networks by name; each runs in evaluation mode and is left as it is.
        example_input: [rows, ...] on the models' device; rows are repeated to fill the batch.
        baseline: What the others are compared with; None for the first one.
        batch_size: Examples a pass.
        repeats: Timed passes of each network, at least 6: fewer give no interval.
        warmup: Passes of each network before the first that is timed.
        threads: Processor threads that torch may use.
        keep_memory: Keep freed memory in the process meanwhile; otherwise a pass with large tensors
            may have to pay for fresh pages, depending on what the process freed before.

    Raises:
        ConfigError: if a count is out of range, there is no model, or the baseline is none of them.
        ModelError: if a network cannot process the batch.
    """
    check_counts(
        "a comparison", batch_size=batch_size, repeats=repeats, warmup=warmup, threads=threads
    )
    if repeats < FEWEST_REPEATS:
        raise ConfigError(f"repeats of a comparison must be at least 6, got {repeats}")
    if not models:
        raise ConfigError("a comparison needs at least one network, got none")
    first = next(iter(models)) if baseline is None else baseline
    if first not in models:
        raise ConfigError(f"baseline must be one of {', '.join(models)}, got {first!r}")
    batch = batch_of(example_input, batch_size)
    times = pass_times(
        models, batch, repeats=repeats, warmup=warmup, threads=threads, keep_memory=keep_memory
    )
    found = {}
    for name, mine in times.items():
        ratios = times[first] / mine
        found[name] = Speed(
            summary(mine, batch_size, threads), float(np.median(ratios)), *median_interval(ratios)
        )
    return found
