"""A pruned network as plain data: the dense network's name and which of its units stayed.

Together with a safetensors state this rebuilds the network without pickle: the dense network is
made by name, its unit layout is found and compared with the stored fingerprint, and the units
that went are removed again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fedprune import models, pruning
from fedprune.copying import copy_model
from fedprune.errors import LayoutMismatchError, RunError


@dataclass(frozen=True)
class Architecture:
    """What is needed to build an untrained copy of a dense or pruned network.

    Attributes:
        model: name under which `models.load` knows the dense network.
        num_classes: outputs.
        input_shape: of one example, without the batch dimension.
        layout: fingerprint of the dense network's units.
        kept: "" for the dense network, else the mask over its units as "0" and "1".
    """

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    layout: str
    kept: str = ""

    @staticmethod
    def dense(model: str, num_classes: int, input_shape: tuple[int, ...]) -> Architecture:
        """Describe a dense network by name."""
        return Architecture(
            model, num_classes, input_shape, _dense(model, num_classes, input_shape)[1].fingerprint
        )

    @property
    def example_input(self) -> Tensor:
        """A batch of one, [1, *input_shape], of zeros."""
        return torch.zeros(1, *self.input_shape)

    @property
    def dense_layout(self) -> pruning.UnitLayout:
        """Layout of the dense network."""
        return _dense(self.model, self.num_classes, self.input_shape)[1]

    @property
    def own_layout(self) -> pruning.UnitLayout:
        """Layout of this network itself, which nothing has to be built for.

        Raises:
            LayoutMismatchError: if this installation finds other units than `layout` names.
        """
        return _template(self)[1]

    @property
    def mask(self) -> Tensor:
        """[units of the dense network] bool, True where the unit stayed."""
        if not self.kept:
            return torch.ones(len(self.dense_layout), dtype=torch.bool)
        return torch.tensor([bit == "1" for bit in self.kept])

    def with_mask(self, mask: Tensor) -> Architecture:
        """Describe the same network with only the masked units of the dense one left."""
        kept = "".join("1" if keep else "0" for keep in mask.tolist())
        return Architecture(self.model, self.num_classes, self.input_shape, self.layout, kept)

    def without_mask(self) -> Architecture:
        """Describe the dense network that this one was cut from."""
        return Architecture(self.model, self.num_classes, self.input_shape, self.layout)

    def build(self) -> tuple[nn.Module, pruning.UnitLayout]:
        """Build an untrained network (eval mode, the caller's own) and the layout of its units.

        Raises:
            LayoutMismatchError: if this installation finds other units than `layout` names.
        """
        return _build(self)

    def to_json(self) -> str:
        """Write as one line of JSON."""
        return json.dumps(
            {
                "model": self.model,
                "num_classes": self.num_classes,
                "input_shape": list(self.input_shape),
                "layout": self.layout,
                "kept": self.kept,
            }
        )

    @staticmethod
    def from_json(text: str) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            RunError: if a field is missing or of the wrong kind.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            found = Architecture(
                str(raw["model"]),
                int(raw["num_classes"]),
                tuple(int(size) for size in raw["input_shape"]),
                str(raw["layout"]),
                str(raw["kept"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"not an architecture description: {error!r}") from None
        if set(found.kept) - {"0", "1"}:
            raise RunError("an architecture's kept units must be written as 0 and 1")
        return found


@lru_cache(maxsize=8)
def _dense(
    model: str, num_classes: int, input_shape: tuple[int, ...]
) -> tuple[nn.Module, pruning.UnitLayout]:
    network = models.load(model, num_classes=num_classes, input_shape=input_shape, seed=0)
    return network, pruning.UnitLayout.of(network, torch.zeros(1, *input_shape))


@lru_cache(maxsize=16)
def _template(architecture: Architecture) -> tuple[nn.Module, pruning.UnitLayout]:
    network, layout = _dense(architecture.model, architecture.num_classes, architecture.input_shape)
    if layout.fingerprint != architecture.layout:
        raise LayoutMismatchError(
            f"{architecture.model} has layout {layout.fingerprint[:12]} here, but layout "
            f"{architecture.layout[:12]} is asked for"
        )
    if not architecture.kept:
        return network, layout
    if len(architecture.kept) != len(layout):
        raise LayoutMismatchError(
            f"{architecture.model} has {len(layout)} units, the mask names {len(architecture.kept)}"
        )
    small = pruning.shrink(network, layout, architecture.mask)
    return small, pruning.UnitLayout.of(small, architecture.example_input)


def _build(architecture: Architecture) -> tuple[nn.Module, pruning.UnitLayout]:
    network, layout = _template(architecture)
    return copy_model(network), layout
