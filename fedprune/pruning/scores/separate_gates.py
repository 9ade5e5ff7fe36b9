"""Gates by themselves: every channel of every gated layer a unit of its own, for scores only.

Molchanov et al. 2019 put a gate behind every batch norm of a network with shortcuts, though the
channels that a shortcut ties together can only be removed together. Scores of such gates can be
compared with theirs; surgery needs the units of a `UnitLayout`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.pruning.structure.layout import UnitGroup, UnitLayout
from fedprune.pruning.structure.members import Layer, Site

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class GateLayout(UnitLayout):
    """Every gate of a layout as a unit of its own; groups are the gated layers, by name.

    Its layers only say which gate's channel each output is; inputs are 0 where a unit owns them.

    Attributes:
        unit_of: The unit of the layout that each gate belongs to, [num_gates] int64.
    """

    has_costs: ClassVar[bool] = False

    unit_of: Tensor

    def checked(self, mask: Tensor) -> Tensor:  # noqa: ARG002
        """Refuse every mask: gates alone can be scored and closed, not removed.

        Raises:
            PruningError: always.
        """
        raise PruningError(
            f"the {len(self)} separate gates of {self.model_name} can be scored but not removed "
            f"one by one; masks, costs and surgery need its units (UnitLayout.of)"
        )


def separate_gates(layout: UnitLayout, *, selections: bool = False) -> GateLayout:
    """Make every gate of a layout a unit of its own, in the order of the gated layers.

    Channels that no unit owns have no gate. CIFAR ResNet-20 has 688: one for each channel of its
    batch norms, 672 of them within blocks and 16 behind the stem.

    Args:
        layout: The units.
        selections: Whether frozen shortcuts are gated as well, as they are for units.
    """
    if isinstance(layout, GateLayout):
        return layout
    frozen = {layer.name for layer in layout.layers if layer.is_selection}
    sites = [site for site in layout.sites if selections or site.name not in frozen]
    gated: list[Site] = []
    groups: list[UnitGroup] = []
    owners: list[Integers] = []
    for site in sites:
        first = groups[-1].stop if groups else 0
        owned = site.units >= 0
        numbers = np.full(len(owned), -1, dtype=np.int64)
        numbers[owned] = first + np.arange(owned.sum())
        gated.append(replace(site, units=numbers))
        groups.append(UnitGroup(site.name, first, first + int(owned.sum())))
        owners.append(site.units[owned])
    return GateLayout(
        model_name=layout.model_name,
        input_shape=layout.input_shape,
        layers=_numbered(layout.layers, gated),
        groups=tuple(groups),
        sites=tuple(gated),
        other_params=layout.other_params,
        other_macs=layout.other_macs,
        frozen=layout.frozen,
        unit_of=torch.from_numpy(np.concatenate(owners)),
    )


def _numbered(layers: tuple[Layer, ...], sites: list[Site]) -> tuple[Layer, ...]:
    """Give a layer's outputs the gates behind it: its own, or those of a norm folded into it."""
    gates = {site.folds_into: site.units for site in sites if site.folds_into}
    gates |= {site.name: site.units for site in sites}
    return tuple(
        replace(
            layer,
            in_units=np.where(layer.in_units >= 0, 0, -1),
            out_units=gates.get(layer.name, np.full(len(layer.out_units), -1, dtype=np.int64)),
        )
        for layer in layers
    )
