"""Gradients of the loss with respect to units' gates, for every example, in one backward pass.

A gate z multiplies what a unit puts out and has the value 1, so ∂L/∂z is the sum over positions of
y·∂L/∂y, where y is the output and ∂L/∂y is on its way through the backward pass anyway. No weight
needs a gradient, which saves a third of an ordinary backward pass. A unit coupled over several
layers has one gate, so its layers' sums are added up.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import ModelError
from fedprune.hardware.parallel import Spares
from fedprune.pruning.layout import UnitLayout
from fedprune.pruning.members import Site
from fedprune.pruning.prepared import (
    choose_format,
    move,
    prepare,
    reduce_precision,
    rows_a_pass,
    share_parameters,
    workers_on,
)

# A product of fewer rows than this takes another kernel, with other roundings; a pass is filled up
# to as many, so that an example has the same bits in whichever pass it is.
_LEAST_ROWS = 4
_FLOAT32_BYTES = 4


class GateGradients:
    """A prepared copy of a model that gives ∂L/∂z for every example and unit.

    The copy is in evaluation mode, so that examples do not mix, its batch norms are folded into
    the convolutions before them, and none of its parameters needs a gradient.

    Attributes:
        num_units: Columns of what it gives.
        device: Where it computes; what it gives lies there too.
    """

    def __init__(self, model: nn.Module, layout: UnitLayout, precision: str = "float32") -> None:
        """Copy and prepare a model; it is not changed itself.

        Args:
            model: The model.
            layout: Its units.
            precision: "float32", or "bfloat16": between the first and the last layer convolutions
                and linear layers get factors of 8 bits, and products and gates are summed in
                float32.

        Raises:
            LayoutMismatchError: if the model's layers are not the layout's.
            PruningError: if the precision is unknown.
        """
        self._name, self.num_units, self._layout = layout.model_name, len(layout), layout
        self._prepared = prepare(model, layout)
        first = next(self._prepared.parameters())
        self.device, self._dtype = first.device, first.dtype
        reduce_precision(self._prepared, layout, precision)
        self._format: torch.memory_format | None = None
        self._overwritten: list[bool] = []
        self._looking = threading.Lock()
        self._passes = Spares(self._new_pass)

    @property
    def workers(self) -> int:
        """Calls of `of` that may well run side by side, each in a thread of its own."""
        return workers_on(self.device)

    def batch_size(self, examples: int) -> int:
        """Examples that make a fast pass, where there are so many in all."""
        return rows_a_pass(self._layout, examples, self.workers)

    def of(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each example's cross-entropy with respect to every gate.

        Several threads may call this at once.

        Args:
            inputs: [batch, ...].
            labels: [batch] integers below the number of classes.

        Returns:
            [batch, num_units] float32. On an accelerator, where looking at a number means waiting
            for it, the row of an example without a finite loss is not a number.

        Raises:
            ModelError: if the model fails, a label is no class, or a loss or gradient is not
                finite.
        """
        rows = len(inputs)
        labels = _filled(labels) if labels.ndim == 1 and len(labels) == rows else labels
        inputs = _filled(inputs)
        inputs = move(inputs, self.device, self._dtype if inputs.is_floating_point() else None)
        self._look_at(inputs[:2])
        with self._passes.borrow() as held:
            collected, losses = held.collect(inputs, labels, self.num_units)
        return self._checked(collected, losses)[:rows]

    def _look_at(self, inputs: Tensor) -> None:
        """With the first examples see how the model wants to be laid out and what it overwrites."""
        with self._looking:
            if self._format is None:
                found = choose_format(self._prepared, inputs)
                self._overwritten = _overwritten(
                    share_parameters(self._prepared), self._layout, inputs
                )
                self._format = found

    def _new_pass(self) -> _Pass:
        model = share_parameters(self._prepared)
        memory_format = self._format or torch.contiguous_format
        return _Pass(model, self._layout, memory_format, self._overwritten)

    def _checked(self, collected: Tensor, losses: Tensor) -> Tensor:
        sound = losses.isfinite()
        if self.device.type != "cpu":
            return collected.where(sound.unsqueeze(1), torch.nan)
        if not bool(sound.all()):
            raise ModelError(
                f"the loss of {self._name} is {losses[~sound][0].item()} for an "
                f"example; weights and inputs must be finite"
            )
        if not bool(collected.isfinite().all()):
            raise ModelError(f"gate gradients of {self._name} are not finite")
        return collected


class _Pass:
    """One thread's own modules, with a gate at every site."""

    def __init__(
        self,
        model: nn.Module,
        layout: UnitLayout,
        memory_format: torch.memory_format,
        overwritten: list[bool],
    ) -> None:
        self._model, self._format = model, memory_format
        self._gates = _attach_gates(model, layout)
        for gate, copies in zip(self._gates, overwritten, strict=True):
            gate.overwritten = copies

    def collect(self, inputs: Tensor, labels: Tensor, num_units: int) -> tuple[Tensor, Tensor]:
        """Gate gradients [batch, num_units] and losses [batch], both float32."""
        device = inputs.device
        collected = torch.zeros(len(inputs), num_units, device=device)
        anchor = torch.zeros((), requires_grad=True, device=device)
        for gate in self._gates:
            gate.collect_into(collected, anchor)
        with torch.enable_grad():
            logits = self._model(inputs.contiguous(memory_format=self._format))
            logits = logits.float() if logits.dtype.itemsize < _FLOAT32_BYTES else logits
            check_labels(labels, len(inputs), logits.shape[1])
            labels = move(labels, device).long()
            losses = functional.cross_entropy(logits, labels, reduction="none")
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return collected, losses.detach()


def _attach_gates(model: nn.Module, layout: UnitLayout) -> list[_Gate]:
    gates = []
    for site in layout.sites:
        module = model.get_submodule(site.name)
        gates.append(_Gate(site, module))
        module.register_forward_hook(gates[-1])
    return gates


def _overwritten(model: nn.Module, layout: UnitLayout, inputs: Tensor) -> list[bool]:
    """See at which sites the model overwrites what the gate saw; it must be copied before."""
    gates = _attach_gates(model, layout)
    for gate in gates:
        gate.watch()
    with torch.no_grad():
        model(inputs)
    for gate in gates:
        gate.conclude()
    return [gate.overwritten for gate in gates]


def _filled(rows: Tensor) -> Tensor:
    """Repeat the last row until there are enough for a pass."""
    missing = _LEAST_ROWS - len(rows)
    if missing <= 0 or len(rows) == 0:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def check_labels(labels: Tensor, examples: int, classes: int) -> None:
    """Check that there is one label for each example and that all of them are classes.

    Raises:
        ModelError: naming the first label that is not.
    """
    if labels.ndim != 1 or len(labels) != examples or labels.is_floating_point():
        raise ModelError(
            f"labels must be {examples} integers, one for each example, got "
            f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        )
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        raise ModelError(
            f"labels must be in [0, {classes}), the classes of the model, got "
            f"{int(labels[outside][0])}"
        )


class _Gate:
    """Forward hook at one site: the identity, which collects y·∂L/∂y on the way back."""

    def __init__(self, site: Site, module: nn.Module) -> None:
        owned = site.units >= 0
        self.name = site.name
        self.units = torch.from_numpy(site.units[owned])
        self.channels = None if owned.all() else torch.from_numpy(owned)
        self.channel_last = isinstance(module, nn.Linear)
        self.overwritten = False
        self._watched: list[Tensor] | None = None
        self._collected = torch.zeros(0)
        self._anchor = torch.zeros(0)

    def watch(self) -> None:
        self._watched = []

    def conclude(self) -> None:
        self.overwritten = any(output._version > 0 for output in self._watched or [])
        self._watched = None

    def collect_into(self, collected: Tensor, anchor: Tensor) -> None:
        self._collected, self._anchor = collected, anchor

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if self._watched is not None:
            self._watched.append(output.clone())
            return self._watched[-1]
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
    def forward(ctx: Any, output: Tensor, anchor: Tensor, gate: _Gate) -> Tensor:  # noqa: ARG004
        # The anchor needs a gradient, so that the first gate starts the graph.
        ctx.save_for_backward(output)
        ctx.gate = gate
        return output.clone() if gate.overwritten else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (output,) = ctx.saved_tensors
        gradient = gradients[0]
        reduced = gradient.dtype.itemsize < _FLOAT32_BYTES
        ctx.gate.collect(gradient.float().mul_(output) if reduced else gradient * output)
        return (gradient if ctx.needs_input_grad[0] else None), None, None
