"""What helps groups that pruning would hurt: scores and losses that know of groups.

Scores: a unit that matters to one small group looks unimportant on average. `worst_group` ranks it
by the group it matters to most; `importance_share` first divides each group's importances by their
sum, so that a group whose gradients are small counts as much as any other (FairGRAPE, Lin, Kim &
Joo 2022, keep the groups' shares of importance in a like way).

Fine-tuning: "no group's excess loss above the tolerance" as constraints with a dual variable a
group (Tran, Fioretto, Kim & Naidu 2022; Balancing Act, Hashemizadeh et al. 2023):
lambda_g <- [lambda_g + step (psi_g - tolerance)]_+, and the weights that those variables give to
the groups' examples. psi_g may come from noisy tables: it is unbiased in the counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.counting import MOST_ROWS, as_floats

Floats = NDArray[np.float64]

# Of all dual variables together: beside a larger sum, rounding would hide the 1 in the weights.
MOST_DUALS = 2.0**40


def worst_group(importance: ArrayLike) -> Floats:
    """Score each unit by the group that it matters to most: s_j = max_g I_gj.

    Args:
        importance: [num_groups, num_units] at least 0, higher = more important.

    Returns:
        [num_units] float64.

    Raises:
        FairnessError: if there is no group or unit, or an importance is negative or not finite.
    """
    return np.asarray(_checked(importance).max(axis=0))


def importance_share(
    importance: ArrayLike, *, combine: str = "max", weights: ArrayLike | None = None
) -> Floats:
    """Score each unit by its share of each group's importance.

    s_j = max_g I_gj / sum_k I_gk, or sum_g w_g I_gj / sum_k I_gk. Multiplying one group's
    importances by any factor changes nothing. A group without any importance has no shares and is
    left out.

    Args:
        importance: [num_groups, num_units] at least 0, higher = more important.
        combine: a key of `COMBINE`: "max" or "mean".
        weights: [num_groups] at least 0, not all 0, for "mean"; equal where not given.

    Returns:
        [num_units] float64.

    Raises:
        FairnessError: if there is no group or unit, an importance is negative or not finite, no
            group has any importance, or the weights or their use do not fit.
    """
    values = _checked(importance)
    if combine not in COMBINE:
        raise FairnessError(f"combine must be one of {', '.join(COMBINE)}, got {combine!r}")
    if weights is not None and combine != "mean":
        raise FairnessError(f"weights are for combine = 'mean', got combine = {combine!r}")
    given = np.ones(len(values)) if weights is None else _weights(weights, len(values))
    values = _scaled(values)
    totals = values.sum(axis=1)
    counted = (totals > 0) & (given > 0)
    if not counted.any():
        raise FairnessError("no group that counts has any importance: there are no shares")
    return COMBINE[combine](values[counted] / totals[counted, None], given[counted])


def _largest(shares: Floats, weights: Floats) -> Floats:  # noqa: ARG001 - all ways alike
    return np.asarray(shares.max(axis=0))


def _weighted_mean(shares: Floats, weights: Floats) -> Floats:
    counted = _scaled(weights)
    return np.asarray(counted / counted.sum() @ shares)


COMBINE: dict[str, Callable[[Floats, Floats], Floats]] = {"max": _largest, "mean": _weighted_mean}


def dual_step(
    duals: ArrayLike,
    excess_losses: ArrayLike,
    *,
    tolerance: float,
    step: float,
    largest: float = float("inf"),
) -> Floats:
    """Move every dual variable along its constraint: [lambda_g + step (psi_g - tolerance)]_+.

    Args:
        duals: [num_groups] at least 0; start from zeros.
        excess_losses: [num_groups] psi_g; NaN where a group is too small to have one, whose
            variable then stays.
        tolerance: psi_g allowed to every group.
        step: of the ascent, above 0.
        largest: no variable exceeds it.

    Returns:
        [num_groups] float64, at least 0.

    Raises:
        FairnessError: if lengths differ, a dual variable is negative or not finite, a psi_g is
            infinite, an option is out of range or a variable grows beyond every number.
    """
    now, excess = as_floats(duals, "duals"), as_floats(excess_losses, "excess losses")
    if now.ndim != 1 or now.shape != excess.shape or now.size == 0:
        raise FairnessError(
            f"duals and excess losses must be one for each group, got the shapes "
            f"{list(now.shape)} and {list(excess.shape)}"
        )
    if not np.all(np.isfinite(now) & (now >= 0)) or np.isinf(excess).any():
        raise FairnessError("duals must be finite and at least 0, and excess losses finite")
    if not (np.isfinite(tolerance) and 0 < step < float("inf") and largest > 0):
        raise FairnessError(
            f"tolerance must be finite, step and largest above 0, got {tolerance}, {step} "
            f"and {largest}"
        )
    known = np.isfinite(excess)
    half = np.where(known, excess, tolerance) / 2 - tolerance / 2  # halved, no difference overflows
    with np.errstate(over="ignore"):
        moved = np.clip(now + step * half * 2, 0.0, largest)
    if not np.isfinite(moved).all():
        raise FairnessError(
            f"dual variables must stay finite, got a step of {step:g} along excess losses of up "
            f"to {excess[known].max():g}: give a smaller step or a largest"
        )
    return moved


def group_weights(duals: ArrayLike, rows: ArrayLike) -> Floats:
    """Give the weight of a group's examples in the loss: the Lagrangian's, mean 1 over all rows.

    With mean losses l_g and shares pi_g of the rows, the Lagrangian
    sum_g pi_g l_g + sum_g lambda_g (l_g - sum_h pi_h l_h) weighs an example of group g by
    w_g = 1 - sum_h lambda_h + lambda_g / pi_g. Where that is negative (large duals would have the
    network unlearn the other groups) it is cut at 0 and the rest scaled back to mean 1.

    Args:
        duals: [num_groups] at least 0.
        rows: [num_groups] training rows of each group; they may be noisy counts, and what is
            below 0 counts as 0.

    Returns:
        [num_groups] float64 at least 0, sum_g pi_g w_g = 1; weight 1 where a group has no rows.

    Raises:
        FairnessError: if lengths differ, a dual variable is negative or not finite, their sum or
            the groups' rows are beyond what can be reckoned with, or there are no rows.
    """
    now, counts = as_floats(duals, "duals"), as_floats(rows, "rows")
    if now.ndim != 1 or now.shape != counts.shape:
        raise FairnessError(
            f"duals and rows must be one for each group, got the shapes {list(now.shape)} "
            f"and {list(counts.shape)}"
        )
    if not np.all(np.isfinite(now) & (now >= 0)) or not np.isfinite(counts).all():
        raise FairnessError("duals must be finite and at least 0, and rows finite")
    held = np.maximum(counts, 0.0)
    if held.max(initial=0.0) == 0:
        raise FairnessError("group weights need at least one row, got zero examples")
    shares = _scaled(held) / _scaled(held).sum()
    used = np.where(held > 0, now, 0.0)
    _check_weighable(used, shares[held > 0])
    weights = 1 - used.sum() + used / np.where(held > 0, shares, 1.0)
    weights = np.where(held > 0, np.maximum(weights, 0.0), 1.0)
    return np.where(held > 0, weights / float(shares @ weights), 1.0)


def _check_weighable(duals: Floats, shares: Floats) -> None:
    if (duals > MOST_DUALS / len(duals)).any():
        raise FairnessError(
            f"duals must be at most {MOST_DUALS / len(duals):g} for each of {len(duals)} groups, "
            f"got {duals.max():g}"
        )
    if shares.min() < 1 / MOST_ROWS:
        raise FairnessError(
            f"a group with rows must have at least 1 in 2^53 of them, got a share of "
            f"{shares.min():g}"
        )


def _scaled(values: Floats) -> Floats:
    """Divide [..., n] numbers of at least 0 by powers of two: sums over n do not overflow.

    Their shares stay what they are.
    """
    exponents = np.frexp(values.max(axis=-1, keepdims=True))[1]
    return np.asarray(np.ldexp(values, -exponents))


def _checked(importance: ArrayLike) -> Floats:
    values = as_floats(importance, "importance")
    if values.ndim != 2 or 0 in values.shape:
        raise FairnessError(
            f"importance must be [num_groups, num_units] with at least one of each, got the shape "
            f"{list(values.shape)}"
        )
    if not np.isfinite(values).all() or values.min() < 0:
        raise FairnessError("importances must be finite and at least 0")
    return values


def _weights(weights: ArrayLike, groups: int) -> Floats:
    given = as_floats(weights, "weights")
    if given.shape != (groups,) or not np.isfinite(given).all() or given.min() < 0:
        raise FairnessError(f"weights must be {groups} finite numbers of at least 0")
    if given.max() == 0:
        raise FairnessError("weights must not all be 0")
    return given
