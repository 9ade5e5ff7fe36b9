"""The roofline of this machine: what bandwidth and arithmetic allow, measured, not looked up.

Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model": work of
I operations a byte runs at no more than min(peak, I * bandwidth).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fedprune.hardware.timing import check_counts, time_in_turns

_FLOAT32_BYTES = 4
_LARGE = 32 * 2**20  # numbers in each array of the triad: 128 MiB, far beyond any cache
_SIDES = (256, 512, 1024)
_CHANNELS, _PIXELS, _IMAGES = 128, 28, 4  # of a convolution that fills a processor
_LEAST_MS = 2.0


@dataclass(frozen=True)
class Roofline:
    """Measured limits of a processor, float32.

    Attributes:
        gigabytes_per_second: Memory bandwidth of a triad a = b + s c, three arrays moved.
        gigaflops: The rate of the best matrix product or convolution; a multiply-accumulate is two
            operations.
        threads: Threads that torch used.
    """

    gigabytes_per_second: float
    gigaflops: float
    threads: int

    @property
    def ridge(self) -> float:
        """Operations a byte at which bandwidth stops being the limit."""
        return self.gigaflops / self.gigabytes_per_second

    def attainable(self, intensity: float) -> float:
        """The most gigaflops that work of `intensity` operations a byte can reach."""
        return min(self.gigaflops, intensity * self.gigabytes_per_second)


def roofline(*, threads: int = 1, repeats: int = 10, numbers: int = _LARGE) -> Roofline:
    """Measure bandwidth and peak of this machine.

    A limit is what was reached at best: the fastest pass counts, of the best size of product. Work
    whose data stay in the caches may stand above the bandwidth's slope.

    Args:
        threads: Processor threads that torch may use.
        repeats: Timed passes, in turns.
        numbers: Length of each of the triad's three arrays; it must not fit a cache.

    Raises:
        ConfigError: if a count is out of range.
    """
    check_counts("a roofline", threads=threads, repeats=repeats, numbers=numbers)
    total, left, right = (torch.ones(numbers) for _ in range(3))
    works = {"triad": lambda: torch.add(left, right, alpha=0.5, out=total)}
    flops = {}
    for name, (work, operations) in _products().items():
        works[name], flops[name] = work, operations
    times = time_in_turns(works, repeats=repeats, warmup=2, threads=threads, least_ms=_LEAST_MS)
    best = {name: float(mine.min()) for name, mine in times.items()}
    return Roofline(
        gigabytes_per_second=3 * _FLOAT32_BYTES * numbers / best["triad"] / 1e6,
        gigaflops=max(flops[name] / best[name] / 1e6 for name in flops),
        threads=threads,
    )


def _products() -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Work that only arithmetic limits, with its operations."""
    found: dict[str, tuple[Callable[[], Tensor], int]] = {}
    for side in _SIDES:
        first, second = torch.ones(side, side), torch.ones(side, side)
        found[str(side)] = partial(torch.matmul, first, second), 2 * side**3
    images = torch.ones(_IMAGES, _CHANNELS, _PIXELS, _PIXELS)
    kernel = torch.ones(_CHANNELS, _CHANNELS, 3, 3)
    operations = 2 * images.numel() * kernel[0].numel()
    found["convolution"] = partial(functional.conv2d, images, kernel, padding=1), operations
    return found
