"""Hard and soft thresholds of weights (study only), and iterative soft thresholding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning.weights.masks import prunable_weights


def hard_threshold(values: Tensor, cut: float) -> Tensor:
    """Zero where |v| is at most `cut`, else v: the minimiser of ½(x - v)² + ½ cut² [x ≠ 0].

    Raises:
        PruningError: if the cut is negative or not finite.
    """
    return torch.where(values.abs() > _checked_cut(cut), values, torch.zeros_like(values))


def soft_threshold(values: Tensor, cut: float) -> Tensor:
    """sign(v) · max(|v| - cut, 0): the minimiser of ½(x - v)² + cut |x|.

    Raises:
        PruningError: if the cut is negative or not finite.
    """
    return values.sign() * (values.abs() - _checked_cut(cut)).clamp_min(0)


def shrink_weights_(model: nn.Module, cut: float) -> None:
    """Soft-threshold every maskable weight in place: the proximal step of an L1 penalty.

    After a gradient step of learning rate η with `cut` = η · λ, this is one step of ISTA on
    loss + λ Σ|w| (Daubechies et al. 2004; with momentum only in the gradient's part).

    Raises:
        PruningError: if the cut is negative or not finite, or there is no maskable weight.
    """
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name in prunable_weights(model):
            named[name].copy_(soft_threshold(named[name], cut))


def ista(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    step_size: float,
    penalty: float,
    steps: int,
) -> Tensor:
    """Minimise f(x) + penalty · |x|₁ by iterative soft thresholding.

    With `step_size` at most 1/L, L the Lipschitz constant of the gradient, the objective never
    rises and is within L |x₀ - x*|² / (2 steps) of the least (Beck & Teboulle 2009, Theorem 3.1).

    Args:
        gradient: of the smooth part f.
        start: x₀; it is not changed.
        step_size: above 0.
        penalty: at least 0.
        steps: at least 0.

    Raises:
        PruningError: if a number is out of range or x stops being finite.
    """
    if not (math.isfinite(step_size) and step_size > 0):
        raise PruningError(f"step_size must be above 0 and finite, got {step_size}")
    values = start.detach().clone()
    for number in range(steps):
        values = soft_threshold(values - step_size * gradient(values), step_size * penalty)
        if not bool(values.isfinite().all()):
            raise PruningError(
                f"ista diverged at step {number}: step_size {step_size} is too large"
            )
    return values


def _checked_cut(cut: float) -> float:
    if not (math.isfinite(cut) and cut >= 0):
        raise PruningError(f"a threshold must be at least 0 and finite, got {cut}")
    return cut
