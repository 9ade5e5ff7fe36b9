"""How much is still kept after each step of a pruning schedule."""

from __future__ import annotations

from collections.abc import Callable

from fedprune.errors import PruningError


def keep_fractions(schedule: str, steps: int, final: float) -> tuple[float, ...]:
    """Cumulative keep fraction after each step; the last is exactly `final`.

    Args:
        schedule: `one-shot`; `geometric`: each step keeps the same share of what is left
            (Molchanov et al. 2019; iterative magnitude pruning); `cubic`: sparsity grows as
            1 - (1 - t/n)³, fast at first (Zhu & Gupta 2017, equation 1); `continuous`: every one
            of many small steps removes the same number of units (Molchanov et al. 2019's
            published code; `ContinuousPlan` says at which minibatch).
        steps: Number of steps, 1 for `one-shot`.
        final: Keep fraction after the last step, in (0, 1].

    Raises:
        PruningError: if an argument is out of range.
    """
    if schedule not in SCHEDULES:
        raise PruningError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not isinstance(steps, int) or steps < 1 or (schedule == "one-shot" and steps != 1):
        allowed = "1 for a one-shot schedule" if schedule == "one-shot" else "at least 1"
        raise PruningError(f"steps must be {allowed}, got {steps}")
    if not 0 < final <= 1:
        raise PruningError(f"the final keep fraction must be in (0, 1], got {final}")
    keep = SCHEDULES[schedule]
    return (*(keep(step / steps, final) for step in range(1, steps)), float(final))


def _geometric(time: float, final: float) -> float:
    return float(final**time)


def _cubic(time: float, final: float) -> float:
    return 1 - (1 - final) * (1 - (1 - time) ** 3)


def _continuous(time: float, final: float) -> float:
    return 1 - (1 - final) * time


def _one_shot(time: float, final: float) -> float:  # noqa: ARG001
    return final


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "one-shot": _one_shot,
    "geometric": _geometric,
    "cubic": _cubic,
    "continuous": _continuous,
}
