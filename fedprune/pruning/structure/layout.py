"""The ordered units of a model, what each consists of, and what any choice of them costs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedprune.errors import LayoutMismatchError, PruningError
from fedprune.pruning.structure.costs import Costs
from fedprune.pruning.structure.members import (
    Frozen,
    Layer,
    Site,
    has_channels,
    is_selection,
    kind_of,
)
from fedprune.pruning.structure.units import Units, find_units, without_groups
from fedprune.pruning.structure.verification import inexact_groups

_FORMAT = 1


@dataclass(frozen=True)
class UnitGroup:
    """Neighbouring units that the same layers produce.

    Attributes:
        name: The first of these layers.
        start: The first unit.
        stop: One past the last unit.
    """

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        """Number of units in the group."""
        return self.stop - self.start

    @property
    def units(self) -> slice:
        """The group's place in a score or mask."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class UnitLayout:
    """The ordered units of a model.

    A unit is what is removed together: one output channel of a convolution or one feature of a
    linear layer, with every channel tied to it, its batch-norm entries and the input channels of
    its readers. Units are ordered by the forward order of their group's first layer, then by
    channel. Channels of the model's input and output belong to no unit.

    Attributes:
        model_name: The model's class.
        input_shape: Shape of one example, without the batch.
        layers: Every layer with channels, in the order of `named_modules`.
        groups: Units with the same producing layers.
        sites: Where the units' gates stand.
        other_params: Parameters outside `layers`, which no mask changes.
        other_macs: Multiply-accumulates outside `layers`, which no mask changes.
        frozen: Channels that stay whatever the mask says, and why; those of the model's input and
            output are not named.
    """

    has_costs: ClassVar[bool] = True  # whether params, macs and time can be told of a mask

    model_name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    groups: tuple[UnitGroup, ...]
    sites: tuple[Site, ...]
    other_params: int
    other_macs: int = 0
    frozen: tuple[Frozen, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, example_input: Tensor) -> UnitLayout:
        """Find the units of a model and prove on random weights that they can be removed.

        The model is copied, never changed. Every unit is removed in one of two trials, once by
        zeroing and once physically; the two models must agree. Where they do not, the groups that
        are to blame are frozen, as are channels that a layer cannot do without, such as those that
        a layer norm averages over; `frozen` says why.

        Args:
            model: The model; it takes one tensor and returns one, [batch, classes].
            example_input: [batch, ...], as the model takes it; values do not matter.

        Raises:
            ModelError: if the model does not run on the example.
            PruningError: if the model cannot be traced or no unit of it can be removed exactly;
                the sentence names the layer or operation that stops it.
        """
        units = find_units(model, example_input)
        if units.group_names:
            found = cls._of_units(model, example_input, units)
            units = without_groups(units, inexact_groups(model, found, example_input))
        if not units.group_names:
            raise PruningError(_refusal(type(model).__name__, units.frozen))
        return cls._of_units(model, example_input, units)

    @classmethod
    def _of_units(cls, model: nn.Module, example_input: Tensor, units: Units) -> UnitLayout:
        selections = [module for module in model.modules() if is_selection(module)]
        free = {id(p) for module in selections for p in module.parameters()}
        total = sum(p.numel() for p in model.parameters() if id(p) not in free)
        return cls(
            model_name=type(model).__name__,
            input_shape=tuple(example_input.shape[1:]),
            layers=units.layers,
            groups=_groups(units.group_names, units.group_of),
            sites=units.sites,
            other_params=total - sum(Costs.own_params(layer) for layer in units.layers),
            other_macs=units.macs - sum(Costs.own_macs(layer) for layer in units.layers),
            frozen=units.frozen,
        )

    def __len__(self) -> int:
        """Number of units."""
        return self.groups[-1].stop

    @cached_property
    def group_of(self) -> Tensor:
        """Index of each unit's group, [num_units] int64."""
        sizes = torch.tensor([len(group) for group in self.groups])
        return torch.repeat_interleave(torch.arange(len(self.groups)), sizes)

    @cached_property
    def costs(self) -> Costs:
        """The exact cost of every choice of units."""
        return Costs(self.layers, len(self), self.other_params, self.other_macs)

    def params(self, mask: Tensor) -> int:
        """Parameters of the model shrunk to a mask [num_units] bool."""
        return self.costs.params(self.checked(mask).numpy())

    def macs(self, mask: Tensor) -> int:
        """Multiply-accumulates of conv and linear layers for one example, shrunk to a mask."""
        return self.costs.macs(self.checked(mask).numpy())

    @property
    def total_params(self) -> int:
        """Parameters of the model, frozen selections left out."""
        return self.costs.dense("params")

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of the model for one example."""
        return self.costs.dense("macs")

    @cached_property
    def unit_params(self) -> Tensor:
        """Parameters that the removal of each unit alone would save, [num_units] int64."""
        return torch.from_numpy(self.costs.unit_params())

    @cached_property
    def unit_macs(self) -> Tensor:
        """Multiply-accumulates that the removal of each unit alone would save, [num_units]."""
        return torch.from_numpy(self.costs.unit_macs())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the structure, never of weights: the same wherever the layout is the same."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The layout as plain JSON values, for a run folder's layout.json."""
        # Layouts without such operations keep the fingerprint they had before these were counted.
        others = {"other_macs": self.other_macs} if self.other_macs else {}
        return {
            "format": _FORMAT,
            "num_units": len(self),
            "input_shape": list(self.input_shape),
            "groups": [[group.name, group.start, group.stop] for group in self.groups],
            "layers": [_describe(layer) for layer in self.layers],
            "other_params": self.other_params,
            **others,
        }

    def checked(self, mask: Tensor) -> Tensor:
        """Return a mask that fits this layout, on the CPU.

        Raises:
            PruningError: if it is not one boolean for each unit.
        """
        if mask.dtype != torch.bool or tuple(mask.shape) != (len(self),):
            raise PruningError(
                f"a mask must be {len(self)} booleans for {self.model_name}, got "
                f"{str(mask.dtype).removeprefix('torch.')} of shape {list(mask.shape)}"
            )
        return mask.detach().cpu()

    def check_model(self, model: nn.Module) -> None:
        """Check that a model has the layers that this layout speaks of.

        Raises:
            LayoutMismatchError: naming the first layer that differs.
        """
        modules = {name: m for name, m in model.named_modules() if has_channels(m)}
        missing = [layer.name for layer in self.layers if layer.name not in modules]
        extra = sorted(modules.keys() - {layer.name for layer in self.layers})
        if missing or extra:
            raise LayoutMismatchError(
                f"the layout of {self.model_name} is of another model than this "
                f"{type(model).__name__}: layer {(missing + extra)[0]} is in only one of them"
            )
        for layer in self.layers:
            found = Layer.channels_of(modules[layer.name])
            wanted = (len(layer.in_units), len(layer.out_units))
            if found != wanted or kind_of(modules[layer.name]) != layer.kind:
                raise LayoutMismatchError(
                    f"the layout of {self.model_name} does not fit this {type(model).__name__}: "
                    f"{layer.name} has {found[0]} inputs and {found[1]} outputs where the layout "
                    f"has {wanted[0]} and {wanted[1]}"
                )


def _refusal(name: str, frozen: tuple[Frozen, ...]) -> str:
    if not frozen:
        return f"{name} has no unit to remove: every channel reaches its input or output"
    rest = f" ({len(frozen) - 1} further groups of channels too)" if len(frozen) > 1 else ""
    return f"{name} cannot be pruned exactly: {frozen[0].reason}{rest}"


def _groups(names: tuple[str, ...], group_of: tuple[int, ...]) -> tuple[UnitGroup, ...]:
    starts = [group_of.index(rank) for rank in range(len(names))] + [len(group_of)]
    return tuple(
        UnitGroup(name, start, stop)
        for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True)
    )


def _describe(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "in_units": layer.in_units.tolist(),
        "out_units": layer.out_units.tolist(),
        "kernel": layer.kernel,
        "groups": layer.groups,
        "vectors": layer.vectors,
        "positions": layer.positions,
        "is_selection": layer.is_selection,
    }
