"""Regrowth: removed units come back where later votes say so beyond their noise.

The votes are about all units, the removed ones too, scored on the dense network. A removed unit r
takes the place of a kept unit k only if its vote is significantly higher:

    v_r - v_k > c · sqrt(s²_r + s²_k),    c = Φ⁻¹(1 - α / (n·(n - 1))),

of n units. Votes are means over many clients, hence normal, and independent noise makes
s²_r + s²_k the variance of the difference; where units' noise may depend in any way, (s_r + s_k)²
bounds it (Cauchy-Schwarz) and stands in its place. By the union bound over all ordered pairs
(Bonferroni), the probability that even one unit comes back for a unit that all clients together
want as much or more is at most α, whichever pairs are looked at: also where the present mask was
chosen by these very votes. So noise alone moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.pruning.structure.layout import UnitLayout

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Regrowth:
    """A proposal: as many units come back as go.

    Attributes:
        mask: the new mask, [num_units] bool on the CPU, with as many kept units as the old one.
        returned: units that come back, in the order of their votes.
        removed: the kept unit that goes for each of them.
        critical: c, the standard deviations by which a vote has to be higher.
    """

    mask: Tensor
    returned: tuple[int, ...]
    removed: tuple[int, ...]
    critical: float


def propose_regrowth(
    mask: Tensor,
    votes: Tensor,
    variances: Tensor,
    layout: UnitLayout,
    *,
    significance: float = 0.05,
    independent: bool = True,
    floor: int = 1,
    within_groups: bool = False,
) -> Regrowth:
    """Propose which removed units come back and which kept ones go for them.

    Removed units are taken from the highest vote down, ties to the lower unit; each replaces the
    kept unit with the lowest vote, ties to the higher unit, against which the difference is
    significant and whose group stays above its floor. Every unit moves at most once, and no number
    of kept units changes.

    Args:
        mask: the present mask, [num_units] bool, True = keep.
        votes: [num_units], the share of clients that keep each unit, of the dense network, as a
            mechanism estimates it; mean scores over clients do as well.
        variances: [num_units], of the votes, at least 0: noise and sampling of clients together.
        layout: the units of the dense model.
        significance: α, in (0, 1), for all exchanges together.
        independent: whether the votes' errors are independent from unit to unit, but for what
            masks that keep a fixed number out of many units imply; if not, the test allows for any
            dependence.
        floor: units that stay in every group, at least 1.
        within_groups: exchange only within a group, so that parameters and MACs stay exactly the
            same; else only the number of units does.

    Raises:
        PruningError: if an argument is out of range or does not fit the layout.
    """
    kept = layout.checked(mask).numpy().copy()
    values, spread = _vector("votes", votes, layout), _vector("variances", variances, layout)
    if (spread < 0).any():
        unit = int(np.argmax(spread < 0))
        raise PruningError(f"variances must be at least 0, got {spread[unit]} for unit {unit}")
    if not 0 < significance < 1:
        raise PruningError(f"significance must be in (0, 1), got {significance}")
    if floor < 1:
        raise PruningError(f"floor must be at least 1, got {floor}")
    critical = _critical(len(layout), significance)
    floors = _Floors(layout, kept, floor, within_groups)
    pairs = _exchange(kept, values, critical * np.sqrt(spread), independent, floors)
    for back, gone in pairs:
        kept[back], kept[gone] = True, False
    back_units, gone_units = tuple(back for back, _ in pairs), tuple(gone for _, gone in pairs)
    return Regrowth(torch.from_numpy(kept), back_units, gone_units, critical)


class _Floors:
    """How many units each group has, and which units a returning one may replace."""

    def __init__(
        self, layout: UnitLayout, kept: NDArray[np.bool_], floor: int, within_groups: bool
    ) -> None:
        self._group = layout.group_of.numpy()
        self._counts = np.bincount(self._group[kept], minlength=len(layout.groups))
        self._floor, self._within = floor, within_groups

    def replaceable(self, back: int, units: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the kept `units` may go for the removed unit `back`."""
        groups = self._group[units]
        same: NDArray[np.bool_] = groups == self._group[back]
        return same if self._within else same | (self._counts[groups] > self._floor)

    def move(self, back: int, gone: int) -> None:
        self._counts[self._group[back]] += 1
        self._counts[self._group[gone]] -= 1


def _critical(num_units: int, significance: float) -> float:
    pairs = max(1, num_units * (num_units - 1))
    return max(0.0, float(norm.isf(significance / pairs)))


def _exchange(
    kept: NDArray[np.bool_], votes: Vector, margins: Vector, independent: bool, floors: _Floors
) -> list[tuple[int, int]]:
    units = np.arange(len(kept))
    removed, staying = units[~kept], units[kept]
    removed = removed[np.lexsort((removed, -votes[removed]))]
    staying = staying[np.lexsort((-staying, votes[staying]))]
    pairs: list[tuple[int, int]] = []
    for back in removed.tolist():
        if not len(staying) or votes[back] <= votes[staying[0]]:
            break
        both = (margins[back], margins[staying])
        needed = np.hypot(*both) if independent else np.add(*both)
        significant = votes[back] - votes[staying] > needed
        places = np.flatnonzero(significant & floors.replaceable(back, staying))
        if len(places):
            gone = int(staying[places[0]])
            floors.move(back, gone)
            staying = np.delete(staying, places[0])
            pairs.append((back, gone))
    return pairs


def _vector(name: str, given: Tensor, layout: UnitLayout) -> Vector:
    values: Vector = given.detach().cpu().double().numpy()
    if values.shape != (len(layout),):
        raise PruningError(
            f"{name} must be {len(layout)} numbers for {layout.model_name}, got shape "
            f"{list(values.shape)}"
        )
    if not np.isfinite(values).all():
        unit = int(np.argmax(~np.isfinite(values)))
        raise PruningError(f"{name} must be finite, got {values[unit]} for unit {unit}")
    return values
