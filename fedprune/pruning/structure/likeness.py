"""Which groups of units are built alike: the same kinds of layers, wired the same way.

Fang et al. 2024, "Isomorphic Pruning for Vision Models": scores of structures that differ in
topology differ in scale, so only alike ones are ranked against each other.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from fedprune.pruning.structure.layout import UnitGroup, UnitLayout
from fedprune.pruning.structure.members import Layer

Part: TypeAlias = tuple[str, int, bool, int, bool, str]


def structure_of(layout: UnitLayout, group: UnitGroup) -> tuple[Part, ...]:
    """Describe a group by the layers that its units have channels in, whatever their widths.

    Returns:
        For each such layer, sorted: its kind, its weights a pair of channels, whether it is
        grouped, its further parameters a channel, whether it is a frozen selection, and whether it
        reads the units, makes them or both. Two groups are alike if these are equal.
    """
    parts = [(layer, _role(layer, group)) for layer in layout.layers]
    return tuple(sorted(_part(layer, role) for layer, role in parts if role))


def _part(layer: Layer, role: str) -> Part:
    return (
        layer.kind, layer.kernel, layer.groups > 1, layer.vectors, layer.is_selection, role
    )  # fmt: skip


def _role(layer: Layer, group: UnitGroup) -> str:
    reads, makes = (
        bool(np.any((units >= group.start) & (units < group.stop)))
        for units in (layer.in_units, layer.out_units)
    )
    return {(True, True): "both", (True, False): "reads", (False, True): "makes"}.get(
        (reads, makes), ""
    )
