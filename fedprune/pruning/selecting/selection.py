"""From scores to a mask under budgets of units, multiply-accumulates, parameters or time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.pruning.selecting.budgets import Budget, budgets_of
from fedprune.pruning.selecting.knapsack import best_widths, finite
from fedprune.pruning.selecting.widths import (
    SCOPES,
    GroupWidths,
    floor_of,
    group_widths,
    steps_in_turn,
)
from fedprune.pruning.structure.costs import Integers, Running
from fedprune.pruning.structure.layout import UnitLayout

if TYPE_CHECKING:
    from fedprune.pruning.selecting.latency_table import LatencyTable

Values = NDArray[np.floating]
Mask = NDArray[np.bool_]

FILLS = ("ranking", "value")

_SLACK = 1e-9  # 0.7 * 10 units are 7 units, whatever binary fractions say


def select(
    scores: Tensor,
    layout: UnitLayout,
    *,
    keep_units: float | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    latency: LatencyTable | None = None,
    floor: float = 1,
    scope: str = "global",
    round_to: int = 1,
    fill: str | None = None,
) -> Tensor:
    """Keep the best-scored units that every budget allows; equal scores go to the lower unit.

    Every group first gets its `floor` best units (all of them if it has fewer). Then the budgets
    are spent, in one of two ways. `fill="ranking"` walks the ranking from the top and keeps every
    unit whose exact cost still fits; a budget of units alone is filled up to the fraction, rounded
    down. `fill="value"` looks for the widths that keep the largest sum of scores: a unit of a
    cheap layer may stay in place of a better one of a dear layer; units with negative scores only
    stay for the floor.

    Args:
        scores: [num_units], higher = more important.
        layout: The units.
        keep_units: Fraction of the units, in (0, 1]. At least one `keep_*` is given; all hold.
        keep_macs: Fraction of the model's multiply-accumulates, in (0, 1].
        keep_params: Fraction of the model's parameters, in (0, 1].
        keep_latency: Fraction of the time that `latency` predicts for the model, in (0, 1].
        latency: A table of measured times of the model's layers.
        floor: Units that stay in every group: an integer of at least 1, or a fraction of the
            group's units in (0, 1), rounded up.
        scope: Who competes with whom: all units ("global"), nobody outside the group ("layer":
            every group keeps the same fraction), or groups built alike ("isomorphic": the same
            fraction of every kind of group; Fang et al. 2024).
        round_to: Every group keeps a multiple of this many channels, or stays whole; floors are
            rounded up, budgets are not overshot.
        fill: "ranking" or "value"; None means "value" under `keep_latency`, else "ranking".

    Returns:
        The mask, [num_units] bool, True = keep.

    Raises:
        PruningError: if an argument is out of range, a score is NaN, or the floors alone cost
            more than a budget allows.
    """
    budgets = budgets_of(
        layout,
        {
            "keep_units": keep_units,
            "keep_macs": keep_macs,
            "keep_params": keep_params,
            "keep_latency": keep_latency,
        },
        latency,
    )
    fill = _checked_way(scope, fill, keep_latency is not None)
    only_units = [budget.name for budget in budgets] == ["keep_units"]
    if only_units and scope == "global" and round_to == 1 and fill == "ranking":
        return select_many(scores.unsqueeze(0), layout, budgets[0].fraction, floor)[0]
    values = _checked(scores.unsqueeze(0), layout)[0].double().numpy()
    groups = group_widths(values, layout, floor, round_to)
    running = _start(layout, groups, budgets, f"a floor of {floor}", round_to)
    classes = SCOPES[scope](layout)
    mask = _walk(groups, steps_in_turn(groups, values, classes), running, budgets, max(classes) > 0)
    if fill == "value":
        mask = _richer(layout, groups, values, budgets, mask)
    return torch.from_numpy(mask).to(scores.device)


def _walk(
    groups: Sequence[GroupWidths],
    steps: Sequence[tuple[int, Integers]],
    running: Running,
    budgets: Sequence[Budget],
    in_turns: bool,
) -> Mask:
    """Take every step that still fits; where classes take turns none gets far ahead at the end.

    Once a step of several units has not fitted, the group has its width. In turns, every group
    takes at most one step more after the first that did not fit.
    """
    mask = _least(groups, sum(len(group.order) for group in groups))
    closed, refused = set(), False
    limits = [budget.limit for budget in budgets]
    for number, units in steps:
        if number in closed:
            continue
        totals = running.after(units)
        fits = all(total <= limit for total, limit in zip(totals, limits, strict=True))
        if fits:
            running.add(units)
            mask[units] = True
        refused = refused or not fits
        if (in_turns and refused) or (not fits and _is_wide(groups[number])):
            closed.add(number)
    return mask


def _start(
    layout: UnitLayout,
    groups: Sequence[GroupWidths],
    budgets: Sequence[Budget],
    floor: str,
    round_to: int,
) -> Running:
    """Count the floors; a budget of units alone, without rounding, may be less than they are."""
    least = _least(groups, len(layout))
    running = Running(layout.costs, least, [budget.measure for budget in budgets])
    widths = f" and widths in multiples of {round_to}" if round_to > 1 else ""
    for budget, total in zip(budgets, running.totals, strict=True):
        if total > budget.limit and not (budget.cost == "units" and round_to == 1):
            digits = 4 if budget.unit == "ms" else 12  # times are measured, costs are counted
            raise PruningError(
                f"{budget.name} = {budget.fraction} allows {budget.limit:.{digits}g} "
                f"{budget.unit}, but {floor} units in each of the {len(groups)} groups{widths} "
                f"alone costs {total:.{digits}g}"
            )
    return running


def _least(groups: Sequence[GroupWidths], num_units: int) -> Mask:
    mask = np.zeros(num_units, dtype=np.bool_)
    for group in groups:
        mask[group.kept(0)] = True
    return mask


def _is_wide(group: GroupWidths) -> bool:
    return bool((np.diff(group.widths) > 1).any())


def _richer(
    layout: UnitLayout,
    groups: Sequence[GroupWidths],
    values: NDArray[np.float64],
    budgets: Sequence[Budget],
    mask: Mask,
) -> Mask:
    """The knapsack's mask, or the given one if that keeps more score."""
    start = [
        int(np.searchsorted(group.widths, mask[group.order].sum(), side="right")) - 1
        for group in groups
    ]
    found = np.zeros_like(mask)
    choice = best_widths(layout.costs, groups, values, budgets, start)
    for group, place in zip(groups, choice, strict=True):
        found[group.kept(place)] = True
    measures = [budget.measure for budget in budgets]
    totals = [layout.costs.total(measure, found) for measure in measures]
    held = all(total <= budget.limit for total, budget in zip(totals, budgets, strict=True))
    shares = finite(values)
    return found if held and shares[found].sum() > shares[mask].sum() else mask


def _checked_way(scope: str, fill: str | None, by_time: bool) -> str:
    if scope not in SCOPES:
        raise PruningError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    chosen = fill or ("value" if by_time and scope == "global" else "ranking")
    if chosen not in FILLS:
        raise PruningError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
    if chosen == "value" and scope != "global":
        raise PruningError(
            f"fill = 'value' weighs all groups, so scope must be global, got {scope!r}"
        )
    return chosen


def select_many(scores: Tensor, layout: UnitLayout, keep_units: float, floor: float = 1) -> Tensor:
    """Select for many clients at once: each row as `select` with `keep_units` would.

    Args:
        scores: [num_clients, num_units].
        layout: The units.
        keep_units: Fraction of the units, in (0, 1].
        floor: Units that stay in every group: an integer of at least 1, or a fraction in (0, 1).

    Returns:
        The masks, [num_clients, num_units] bool.

    Raises:
        PruningError: if an argument is out of range or a score is NaN.
    """
    if not 0 < keep_units <= 1:
        raise PruningError(f"keep_units must be in (0, 1], got {keep_units}")
    floors = [floor_of(floor, len(group)) for group in layout.groups]
    checked = _checked(scores, layout)
    exact = checked.dtype in (torch.float32, torch.float64)
    values = (checked if exact else checked.double()).numpy()
    masks = np.zeros(values.shape, dtype=np.bool_)
    for group, forced in zip(layout.groups, floors, strict=True):
        masks[:, group.units] = _largest(values[:, group.units], forced)
    wanted = math.floor(keep_units * len(layout) + _SLACK) - sum(floors)
    if wanted > 0:
        masks |= _largest(np.where(masks, -np.inf, values), wanted, among=~masks)
    return torch.from_numpy(masks).to(scores.device)


def expected_keep_units(
    layout: UnitLayout,
    *,
    keep_units: float | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    latency: LatencyTable | None = None,
) -> float:
    """The fraction of units at which every layer thinned alike would meet the budgets.

    Clients vote at this fraction while the server meets budgets of MACs, parameters or time
    itself.

    Args:
        layout: The units.
        keep_units: Fraction of the units, in (0, 1]. At least one `keep_*` is given; all hold.
        keep_macs: Fraction of the multiply-accumulates, in (0, 1].
        keep_params: Fraction of the parameters, in (0, 1].
        keep_latency: Fraction of the time that `latency` predicts, in (0, 1].
        latency: A table of measured times of the model's layers.

    Raises:
        PruningError: if no budget is given, one is out of range, or what no mask can remove
            already costs more.
    """
    given = {
        "keep_units": keep_units,
        "keep_macs": keep_macs,
        "keep_params": keep_params,
        "keep_latency": keep_latency,
    }
    return min(_expected(layout, budget) for budget in budgets_of(layout, given, latency))


def _expected(layout: UnitLayout, budget: Budget) -> float:
    """Bisect the fraction; measured times need not rise with it, so it is a crossing from below."""
    allowed, costs = budget.fraction * budget.dense, layout.costs
    least = costs.thinned_total(budget.measure, 0.0)
    if least >= allowed:
        raise PruningError(
            f"{budget.name} = {budget.fraction} cannot be met: what no unit owns alone costs "
            f"{least:.6g} {budget.unit} of {budget.dense:.6g}"
        )
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        fits = costs.thinned_total(budget.measure, middle) <= allowed
        low, high = (middle, high) if fits else (low, middle)
    return high


def _largest(
    values: Values, count: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Mark the `count` largest of every row, ties to the lower index; only those `among`, if given.

    Nothing is sorted: what lies above the row's cut is in, and of what lies on it the first ones.
    Values that are not among those to choose from must be -inf.
    """
    cut = np.partition(values, -count, axis=1)[:, -count, None]
    above, tied = values > cut, values == cut
    if among is not None:
        tied &= among
    missing = count - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (tied & (tied.cumsum(axis=1) <= missing)))


def _checked(scores: Tensor, layout: UnitLayout) -> Tensor:
    if scores.ndim != 2 or scores.shape[1] != len(layout):
        raise PruningError(
            f"scores must be {len(layout)} numbers for {layout.model_name}, got shape "
            f"{list(scores.shape)}"
        )
    values = scores.detach().cpu()
    if bool(values.isnan().any()):
        row, unit = np.argwhere(values.isnan().numpy())[0]
        raise PruningError(f"scores must be numbers, got NaN for unit {unit} in row {row}")
    return values
