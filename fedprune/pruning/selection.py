"""From scores to a mask under a budget of units, multiply-accumulates or parameters."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.pruning.layout import UnitLayout

Values = NDArray[np.floating]

_SLACK = 1e-9  # 0.7 * 10 units are 7 units, whatever binary fractions say


def select(
    scores: Tensor,
    layout: UnitLayout,
    *,
    keep_units: float | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    floor: int = 1,
) -> Tensor:
    """Keep the best-scored units that a budget allows; equal scores go to the lower unit.

    Every group first gets its `floor` best units (all of them if it has fewer). Then
    `keep_units` fills up to that fraction of the units, rounded down, in order of score. Under
    `keep_macs` or `keep_params` the ranking is walked from the top and every unit is kept whose
    exact cost still fits the budget.

    Args:
        scores: [num_units], higher = more important.
        layout: The units.
        keep_units: Fraction of the units, in (0, 1]. Exactly one `keep_*` is given.
        keep_macs: Fraction of the model's multiply-accumulates, in (0, 1].
        keep_params: Fraction of the model's parameters, in (0, 1].
        floor: Units that stay in every group, at least 1.

    Returns:
        The mask, [num_units] bool, True = keep.

    Raises:
        PruningError: if an argument is out of range, a score is NaN, or the floors alone cost
            more than the budget.
    """
    budgets = {"keep_units": keep_units, "keep_macs": keep_macs, "keep_params": keep_params}
    name, fraction = _only(budgets)
    if name == "keep_units":
        return select_many(scores.unsqueeze(0), layout, fraction, floor)[0]
    ranking, floors = _ranked(scores.unsqueeze(0), layout, floor)
    mask = floors[0].clone()
    cost = name.removeprefix("keep_")
    running = layout.costs.running(mask.numpy(), cost)
    budget = math.floor(fraction * _total(layout, cost) * (1 + _SLACK))
    if running.total > budget:
        raise PruningError(
            f"{name} = {fraction} allows {budget} {cost}, but a floor of {floor} units in each of "
            f"the {len(layout.groups)} groups alone costs {running.total}"
        )
    for unit in ranking[0].tolist():
        if not mask[unit] and running.total + running.price(unit) <= budget:
            running.add(unit)
            mask[unit] = True
    return mask.to(scores.device)


def select_many(scores: Tensor, layout: UnitLayout, keep_units: float, floor: int = 1) -> Tensor:
    """Select for many clients at once: each row as `select` with `keep_units` would.

    Args:
        scores: [num_clients, num_units].
        layout: The units.
        keep_units: Fraction of the units, in (0, 1].
        floor: Units that stay in every group, at least 1.

    Returns:
        The masks, [num_clients, num_units] bool.

    Raises:
        PruningError: if an argument is out of range or a score is NaN.
    """
    _, fraction = _only({"keep_units": keep_units})
    checked = _checked(scores, layout, floor)
    exact = checked.dtype in (torch.float32, torch.float64)
    values = (checked if exact else checked.double()).numpy()
    masks = np.zeros(values.shape, dtype=np.bool_)
    for group in layout.groups:
        masks[:, group.units] = _largest(values[:, group.units], min(floor, len(group)))
    forced = sum(min(floor, len(group)) for group in layout.groups)
    wanted = math.floor(fraction * len(layout) + _SLACK) - forced
    if wanted > 0:
        masks |= _largest(np.where(masks, -np.inf, values), wanted, among=~masks)
    return torch.from_numpy(masks).to(scores.device)


def expected_keep_units(
    layout: UnitLayout, *, keep_macs: float | None = None, keep_params: float | None = None
) -> float:
    """The fraction of units at which every layer thinned alike would meet the budget.

    Clients vote at this fraction while the server meets the budget of MACs or parameters itself.

    Args:
        layout: The units.
        keep_macs: Fraction of the multiply-accumulates, in (0, 1]. Exactly one is given.
        keep_params: Fraction of the parameters, in (0, 1].

    Raises:
        PruningError: if not exactly one budget is given, it is out of range, or what no mask can
            remove already costs more.
    """
    name, fraction = _only({"keep_macs": keep_macs, "keep_params": keep_params})
    cost = name.removeprefix("keep_")
    budget = fraction * _total(layout, cost)
    low, high = 0.0, 1.0
    if layout.costs.thinned(low, cost) >= budget:
        raise PruningError(
            f"{name} = {fraction} cannot be met: what no unit owns alone costs "
            f"{layout.costs.thinned(low, cost):.0f} {cost} of {_total(layout, cost)}"
        )
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if layout.costs.thinned(middle, cost) <= budget else (low, middle)
        )
    return high


def _total(layout: UnitLayout, cost: str) -> int:
    return layout.total_macs if cost == "macs" else layout.total_params


def _only(budgets: dict[str, float | None]) -> tuple[str, float]:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise PruningError(f"exactly one of {', '.join(budgets)} must be given, got {found}")
    name, fraction = next(iter(given.items()))
    if not 0 < fraction <= 1:
        raise PruningError(f"{name} must be in (0, 1], got {fraction}")
    return name, float(fraction)


def _ranked(scores: Tensor, layout: UnitLayout, floor: int) -> tuple[Tensor, Tensor]:
    """Units by falling score, and which of them their group's floor keeps: two [n, num_units]."""
    values = _checked(scores, layout, floor)
    floors = torch.zeros(values.shape, dtype=torch.bool)
    for group in layout.groups:
        best = _falling(values[:, group.units])[:, : min(floor, len(group))]
        floors[:, group.units].scatter_(1, best, True)
    return _falling(values), floors


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


def _checked(scores: Tensor, layout: UnitLayout, floor: int) -> Tensor:
    if floor < 1:
        raise PruningError(f"floor must be at least 1, got {floor}")
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


def _falling(scores: Tensor) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)
