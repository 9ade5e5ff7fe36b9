"""Learning rates as plain functions of the step, for healing after pruning.

A smooth decay heals better than abrupt drops, and a rate that starts high again after each pruning
step gives the remaining weights room to move (Loshchilov & Hutter 2017, "SGDR"; Renda et al. 2020,
"Comparing Rewinding and Fine-tuning", learning-rate rewinding).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence

from fedprune.errors import PruningError

DROPS = (0.5, 0.75)  # where the abrupt shape divides the rate by ten, as CIFAR recipes do


def learning_rate(
    shape: str,
    step: int,
    steps: int,
    rate: float,
    *,
    restarts: Sequence[int] = (),
    warmup: int = 0,
) -> float:
    """The learning rate of one step.

    Without restarts the shape runs once, from `rate` at step 0 down over all `steps`. With them it
    runs anew from each restart to the next one: the warm restarts of a pruning schedule, whose
    pruning steps come just before the steps in `restarts`.

    Args:
        shape: `constant`; `cosine`: rate · ½(1 + cos πt), t the share of steps that are over;
            `linear`: rate · (1 - t); `step`: divided by 10 at half and by 100 at three quarters.
        step: 0, ..., steps - 1; a step is an epoch, a round or a minibatch.
        steps: number of steps.
        rate: the largest rate, above 0.
        restarts: rising steps inside (0, steps) where the shape begins again.
        warmup: steps at the beginning of each run of the shape that climb linearly to `rate`, at
            most as many as the run has.

    Returns:
        A number in (0, rate], or [0, rate] for a cosine or line that ends within its last step.

    Raises:
        PruningError: if an argument is out of range.
    """
    if shape not in LEARNING_RATES:
        raise PruningError(
            f"the learning rate's shape must be one of {', '.join(LEARNING_RATES)}, got {shape!r}"
        )
    if not (math.isfinite(rate) and rate > 0):
        raise PruningError(f"the learning rate must be above 0 and finite, got {rate}")
    if not 0 <= step < steps:
        raise PruningError(f"step must be in 0 to steps - 1 = {steps - 1}, got {step}")
    begin, end = _run(step, steps, restarts)
    climb = _checked_warmup(warmup, end - begin)
    if step - begin < climb:
        return rate * (step - begin + 1) / (climb + 1)
    time = (step - begin - climb) / (end - begin - climb)
    return rate * LEARNING_RATES[shape](time)


def _run(step: int, steps: int, restarts: Sequence[int]) -> tuple[int, int]:
    """The run of the shape that a step belongs to: its first step and one past its last."""
    bounds = [0, *restarts, steps]
    if any(later <= earlier for earlier, later in itertools.pairwise(bounds)):
        raise PruningError(f"restarts must rise strictly inside (0, {steps}), got {list(restarts)}")
    place = bisect.bisect_right(bounds, step)
    return bounds[place - 1], bounds[place]


def _checked_warmup(warmup: int, length: int) -> int:
    if warmup < 0:
        raise PruningError(f"warmup must be at least 0, got {warmup}")
    return min(warmup, length)


def _constant(time: float) -> float:  # noqa: ARG001
    return 1.0


def _cosine(time: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * time))


def _linear(time: float) -> float:
    return 1 - time


def _step(time: float) -> float:
    return float(0.1 ** sum(time >= drop for drop in DROPS))


LEARNING_RATES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
}
