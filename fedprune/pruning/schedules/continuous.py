"""Pruning while training goes on: a few units at a time, by scores smoothed over minibatches.

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", section 4 and the
published code: on ImageNet 100 units a step, a step every 30 minibatches, scores averaged over
these minibatches and smoothed from step to step with a momentum of 0.9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import PruningError

_SLACK = 1e-9  # 0.7 * 10 units are 7 units, whatever binary fractions say


@dataclass(frozen=True)
class ContinuousPlan:
    """When units go, and how many are left then.

    Attributes:
        num_units: units of the dense model.
        final_units: units that stay in the end.
        units_per_step: units that one step removes; the last step may remove fewer.
        minibatches_per_step: training minibatches between two steps.
    """

    num_units: int
    final_units: int
    units_per_step: int = 100
    minibatches_per_step: int = 30

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            PruningError: naming the first that is out of range.
        """
        for name in ("num_units", "final_units", "units_per_step", "minibatches_per_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PruningError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.final_units > self.num_units:
            raise PruningError(
                f"final_units must be at most the {self.num_units} units that there are, got "
                f"{self.final_units}"
            )

    @classmethod
    def to_fraction(
        cls,
        num_units: int,
        keep_units: float,
        units_per_step: int = 100,
        minibatches_per_step: int = 30,
    ) -> ContinuousPlan:
        """Plan to keep a fraction of the units, rounded down as `select` does.

        Raises:
            PruningError: if a number is out of range.
        """
        if not 0 < keep_units <= 1:
            raise PruningError(f"keep_units must be in (0, 1], got {keep_units}")
        final = max(1, math.floor(keep_units * num_units + _SLACK))
        return cls(num_units, final, units_per_step, minibatches_per_step)

    @property
    def steps(self) -> int:
        """Number of pruning steps, 0 where nothing is to go."""
        return -(-(self.num_units - self.final_units) // self.units_per_step)

    @property
    def minibatches(self) -> int:
        """Training minibatches up to the last step."""
        return self.steps * self.minibatches_per_step

    def units_after(self, step: int) -> int:
        """Units that are left after step 0, 1, ..., `steps`; later ones change nothing.

        Raises:
            PruningError: if the step is negative.
        """
        if step < 0:
            raise PruningError(f"step must be at least 0, got {step}")
        return max(self.final_units, self.num_units - step * self.units_per_step)

    def step_at(self, minibatches: int) -> int | None:
        """The step that is due when so many minibatches are trained, or None."""
        step, rest = divmod(minibatches, self.minibatches_per_step)
        return step if rest == 0 and 1 <= step <= self.steps else None

    def keep_fractions(self) -> tuple[float, ...]:
        """Cumulative keep fraction after each step."""
        return tuple(self.units_after(step) / self.num_units for step in range(1, self.steps + 1))


class SmoothedScores:
    """Scores averaged over a step's minibatches and smoothed from step to step.

    After step t the scores are s_t = m s_{t-1} + (1 - m) mean(step t's minibatches); the first
    step's mean stands alone. Units that were removed in between must be scored too (0 is what a
    silent unit's gradient gives) and are left out by `select` through `removed_last`.
    """

    def __init__(self, num_units: int, momentum: float = 0.9) -> None:
        """Start without any score.

        Raises:
            PruningError: if an argument is out of range.
        """
        if num_units < 1:
            raise PruningError(f"num_units must be at least 1, got {num_units}")
        if not 0 <= momentum < 1:
            raise PruningError(f"momentum must be in [0, 1), got {momentum}")
        self.num_units, self.momentum = num_units, momentum
        self._sum = torch.zeros(num_units, dtype=torch.float64)
        self._count = 0
        self._smoothed: Tensor | None = None

    def add(self, scores: Tensor) -> None:
        """Take in one minibatch's scores [num_units].

        Raises:
            PruningError: if the length is another or a score is not finite.
        """
        if tuple(scores.shape) != (self.num_units,):
            raise PruningError(
                f"scores must be {self.num_units} numbers, got shape {list(scores.shape)}"
            )
        values = scores.detach().double().cpu()
        if not bool(values.isfinite().all()):
            raise PruningError(
                f"scores must be finite, got {values[~values.isfinite()][0].item()} for unit "
                f"{int((~values.isfinite()).nonzero()[0])}"
            )
        self._sum = self._sum + values
        self._count += 1

    def step(self) -> Tensor:
        """End a step: its smoothed scores, [num_units] float64.

        Raises:
            PruningError: if no minibatch came since the last step.
        """
        if self._count == 0:
            raise PruningError("a pruning step needs at least one minibatch's scores, got none")
        mean = self._sum / self._count
        before = self._smoothed
        smoothed = mean if before is None else self.momentum * before + (1 - self.momentum) * mean
        self._smoothed, self._sum, self._count = smoothed, torch.zeros_like(mean), 0
        return smoothed.clone()


def removed_last(scores: Tensor, mask: Tensor) -> Tensor:
    """Copy scores with those of removed units at -inf, so that `select` takes none of them back.

    Args:
        scores: [num_units].
        mask: [num_units] bool, True = still there.

    Raises:
        PruningError: if the shapes differ or the mask is not boolean.
    """
    if mask.dtype != torch.bool or mask.shape != scores.shape:
        raise PruningError(
            f"the mask must be one boolean for each of {len(scores)} scores, got "
            f"{str(mask.dtype).removeprefix('torch.')} of shape {list(mask.shape)}"
        )
    return scores.masked_fill(~mask.to(scores.device), -math.inf)
