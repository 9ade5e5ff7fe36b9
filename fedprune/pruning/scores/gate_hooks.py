"""Gates in a network: hooks at the units' sites that collect y·∂/∂y on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.members import Site

FLOAT32_BYTES = 4


def attach_gates(model: nn.Module, layout: UnitLayout) -> list[Gate]:
    """Put a gate at every site of a model's own copy."""
    gates = []
    for site in layout.sites:
        module = model.get_submodule(site.name)
        gates.append(Gate(site, module))
        module.register_forward_hook(gates[-1])
    return gates


def find_overwritten(model: nn.Module, layout: UnitLayout, inputs: Tensor) -> list[bool]:
    """See at which sites the model overwrites what the gate saw; it must be copied before."""
    gates = attach_gates(model, layout)
    for gate in gates:
        gate.watch()
    with torch.no_grad():
        model(inputs)
    for gate in gates:
        gate.conclude()
    return [gate.overwritten for gate in gates]


class Gate:
    """Forward hook at one site: the identity, which collects y·∂/∂y on the way back."""

    def __init__(self, site: Site, module: nn.Module) -> None:
        """Make the gate of one site, which `module` puts out."""
        owned = site.units >= 0
        self.name = site.name
        self.units = torch.from_numpy(site.units[owned])
        self.channels = None if owned.all() else torch.from_numpy(owned)
        self.channel_last = isinstance(module, nn.Linear)
        self.overwritten = False
        self.by_secant = False  # whether somebody else collects, of what was seen
        self.seen = torch.zeros(0)
        self._watched: list[Tensor] | None = None
        self._collected = torch.zeros(0)
        self._anchor = torch.zeros(0)

    def watch(self) -> None:
        """From now on keep copies of what comes by, to see whether the model overwrites them."""
        self._watched = []

    def conclude(self) -> None:
        """Say whether the model has overwritten what it was given, and stop watching."""
        self.overwritten = any(output._version > 0 for output in self._watched or [])
        self._watched = None

    def start_at(self, anchor: Tensor) -> None:
        """Give the tensor with a gradient that the next forward pass's graph starts at."""
        self._anchor = anchor

    def collect_into(self, collected: Tensor) -> None:
        """Name the table [batch, num_units] that the next backward pass adds to."""
        self._collected = collected

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """Let an output pass."""
        if self._watched is not None:
            self._watched.append(output.clone())
            return self._watched[-1]
        if self.by_secant:
            self.seen = output.detach().clone() if self.overwritten else output.detach()
            return output
        gated: Tensor = _Collect.apply(output, self._anchor, self)
        return gated

    def collect(self, products: Tensor) -> None:
        """Add Σ over positions of y·∂L/∂y, [batch, channels, ...], to the units' columns."""
        if len(products) != len(self._collected):
            raise ModelError(
                f"{self.name} does not keep examples apart: it puts out {len(products)} rows for "
                f"{len(self._collected)} examples"
            )
        if self.channel_last:
            sums = products.flatten(1, -2).sum(1) if products.ndim > 2 else products
        else:
            sums = products.flatten(2).sum(2) if products.ndim > 2 else products
        owned = sums if self.channels is None else sums[:, self.channels]
        self._collected.index_add_(1, self.units.to(sums.device), owned.to(self._collected.dtype))


class _Collect(torch.autograd.Function):
    """The identity, with a look at the gradient that passes."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, gate: Gate) -> Tensor:  # noqa: ARG004
        # The anchor needs a gradient, so that the first gate starts the graph.
        ctx.save_for_backward(output)
        ctx.gate = gate
        return output.clone() if gate.overwritten else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (output,) = ctx.saved_tensors
        gradient = gradients[0]
        reduced = gradient.dtype.itemsize < FLOAT32_BYTES
        ctx.gate.collect(gradient.float().mul_(output) if reduced else gradient * output)
        return (gradient if ctx.needs_input_grad[0] else None), None, None
