"""How wide each group of units may be, and who competes with whom for the next step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PruningError
from fedprune.pruning.structure.costs import Integers
from fedprune.pruning.structure.layout import UnitGroup, UnitLayout
from fedprune.pruning.structure.likeness import structure_of

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupWidths:
    """One group's units by falling score and the numbers of them that may stay.

    Attributes:
        order: The units, the best one first, equal ones by number.
        widths: Allowed numbers of units, rising; the last one is the whole group.
    """

    order: Integers
    widths: Integers

    def kept(self, choice: int) -> Integers:
        """The units that stay at one of the widths."""
        return self.order[: self.widths[choice]]


def group_widths(
    scores: Scores, layout: UnitLayout, floor: float, round_to: int
) -> tuple[GroupWidths, ...]:
    """Order every group's units by score and list the widths that it may have.

    A group keeps a multiple of `round_to` channels, or all that it has: one that is narrower than
    `round_to`, or whose floor lies above its last multiple, stays whole. Where a unit owns several
    channels of the layer that produces it, channels are counted, not units.

    Args:
        scores: [num_units].
        layout: The units.
        floor: Units, or a fraction of the units, that stay in every group.
        round_to: Channels that a width must be a multiple of.

    Raises:
        PruningError: if the floor or `round_to` is out of range.
    """
    if not isinstance(round_to, Integral) or round_to < 1:
        raise PruningError(f"round_to must be a whole number of at least 1, got {round_to!r}")
    return tuple(
        GroupWidths(
            group.start + np.argsort(-scores[group.units], kind="stable"),
            _allowed(
                len(group), floor_of(floor, len(group)), _units_a_step(layout, group, round_to)
            ),
        )
        for group in layout.groups
    )


def floor_of(floor: float, units: int) -> int:
    """How many of so many units a floor keeps: an integer is a number, a float a fraction.

    Raises:
        PruningError: if the floor is neither.
    """
    if isinstance(floor, Integral):
        if floor < 1:
            raise PruningError(f"floor must be at least 1, got {floor}")
        return min(int(floor), units)
    if not 0 < floor < 1:
        raise PruningError(
            f"floor must be at least 1 unit or a fraction of each group in (0, 1), got {floor}"
        )
    return max(1, math.ceil(floor * units - 1e-9))


def _allowed(units: int, least: int, step: int) -> Integers:
    first = -(-least // step) * step
    widths = np.arange(first, units + 1, step, dtype=np.int64)
    return widths if len(widths) and widths[-1] == units else np.append(widths, units)


def _units_a_step(layout: UnitLayout, group: UnitGroup, round_to: int) -> int:
    """Units that together own a multiple of `round_to` channels of the layer that makes them."""
    if round_to == 1:
        return 1
    by_name = {layer.name: layer for layer in layout.layers}
    layer = by_name.get(group.name) or by_name[group.name.rpartition("#")[0]]
    owned = np.bincount(layer.out_units[layer.out_units >= 0], minlength=group.stop)[group.units]
    channels = int(owned[0]) if (owned == owned[0]).all() else 1
    return round_to // math.gcd(round_to, channels)


def by_layer(layout: UnitLayout) -> list[int]:
    """Every group competes with itself only."""
    return list(range(len(layout.groups)))


def globally(layout: UnitLayout) -> list[int]:
    """All groups compete with each other."""
    return [0] * len(layout.groups)


def by_structure(layout: UnitLayout) -> list[int]:
    """Groups compete with groups that are built alike (Fang et al. 2024, Isomorphic Pruning)."""
    numbers: dict[object, int] = {}
    return [
        numbers.setdefault(structure_of(layout, group), len(numbers)) for group in layout.groups
    ]


SCOPES = {"global": globally, "layer": by_layer, "isomorphic": by_structure}


def steps_in_turn(
    groups: Sequence[GroupWidths], scores: Scores, classes: Sequence[int]
) -> list[tuple[int, Integers]]:
    """Every group's next steps, in the order in which a budget is to be spent on them.

    Within a class steps come by falling mean score, equal ones by group. Classes take turns so
    that at any time all of them keep the same fraction of their units, as nearly as steps allow.

    Returns:
        Pairs of a group's number and the units of the step; a group's steps come in their order.
    """
    steps: list[tuple[int, Integers]] = []
    worth: list[float] = []
    for number, one in enumerate(groups):
        pairs = zip(one.widths[:-1], one.widths[1:], strict=True)
        own_steps = [one.order[start:stop] for start, stop in pairs]
        steps += [(number, units) for units in own_steps]
        # Rounding must not put a later step of equal units before an earlier one.
        worth += accumulate((_mean(scores[units]) for units in own_steps), min)
    level = np.zeros(len(steps))
    for name in sorted(set(classes)):
        own = [place for place, (number, _) in enumerate(steps) if classes[number] == name]
        own.sort(key=lambda place: -worth[place])
        members = [group for number, group in enumerate(groups) if classes[number] == name]
        kept = sum(int(group.widths[0]) for group in members)
        units = sum(len(group.order) for group in members)
        for place in own:
            kept += len(steps[place][1])
            level[place] = kept / units
    if len(set(classes)) == 1:
        return [steps[place] for place in own]
    return [steps[place] for place in np.argsort(level, kind="stable").tolist()]


def _mean(scores: Scores) -> float:
    """A step's score; a single unit's is its own, also where it is infinite."""
    return float(scores[0] if len(scores) == 1 else np.clip(scores, -1e300, 1e300).mean())
