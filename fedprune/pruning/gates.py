"""Gradients of the loss with respect to units' gates, for every example, in one backward pass.

A gate z multiplies what a unit puts out and has the value 1, so ∂L/∂z is the sum over positions of
y·∂L/∂y, where y is the output and ∂L/∂y is on its way through the backward pass anyway. No weight
needs a gradient, which saves a third of an ordinary backward pass. A unit coupled over several
layers has one gate, so its layers' sums are added up.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fedprune.errors import ModelError
from fedprune.pruning.layout import UnitLayout
from fedprune.pruning.members import Site


class GateGradients:
    """A prepared copy of a model that gives ∂L/∂z for every example and unit.

    The copy is in evaluation mode, so that examples do not mix, its batch norms are folded into
    the convolutions before them, and none of its parameters needs a gradient.
    """

    def __init__(self, model: nn.Module, layout: UnitLayout) -> None:
        """Copy and prepare a model; it is not changed itself.

        Raises:
            LayoutMismatchError: if the model's layers are not the layout's.
        """
        layout.check_model(model)
        self._name, self.num_units = layout.model_name, len(layout)
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        modules = dict(self._model.named_modules())
        for module in modules.values():
            if getattr(module, "inplace", False):
                module.inplace = False  # the gate before it still needs its output
        self._gates: list[_Gate] = []
        for site in layout.sites:
            if site.folds_into:
                modules[site.name] = self._fold(modules, site)
            gate = _Gate(site, modules[site.name])
            modules[site.name].register_forward_hook(gate)
            self._gates.append(gate)
        first = next(self._model.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._probed = False

    def of(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each example's cross-entropy with respect to every gate.

        Args:
            inputs: [batch, ...].
            labels: [batch] integers below the number of classes.

        Returns:
            [batch, num_units].

        Raises:
            ModelError: if the model fails, a label is no class, or a loss or gradient is not
                finite.
        """
        inputs = inputs.to(self._device, self._dtype if inputs.is_floating_point() else None)
        labels = labels.to(self._device)
        if not self._probed:
            self._probe(inputs[:1])
        collected = torch.zeros(len(inputs), self.num_units, device=self._device)
        anchor = torch.zeros((), requires_grad=True, device=self._device)
        for gate in self._gates:
            gate.collect_into(collected, anchor)
        with torch.enable_grad():
            losses = self._losses(inputs, labels)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        if not bool(collected.isfinite().all()):
            raise ModelError(f"gate gradients of {self._name} are not finite")
        return collected

    def _losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = self._model(inputs)
        check_labels(labels, len(inputs), logits.shape[1])
        losses = functional.cross_entropy(logits, labels.long(), reduction="none")
        if not bool(losses.isfinite().all()):
            raise ModelError(
                f"the loss of {self._name} is {losses[~losses.isfinite()][0].item()} for an "
                f"example; weights and inputs must be finite"
            )
        return losses

    def _fold(self, modules: dict[str, nn.Module], site: Site) -> nn.Module:
        conv: Any = modules[site.folds_into]
        norm: Any = modules[site.name]
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.requires_grad_(False)
        parent, _, child = site.name.rpartition(".")
        place = nn.Identity()
        setattr(modules[parent], child, place)
        return place

    def _probe(self, inputs: Tensor) -> None:
        """See which gated outputs the model overwrites; those must be copied before use."""
        for gate in self._gates:
            gate.watch()
        with torch.no_grad():
            self._model(inputs)
        for gate in self._gates:
            gate.conclude()
        self._probed = True


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
        ctx.gate.collect(gradients[0] * output)
        return (gradients[0] if ctx.needs_input_grad[0] else None), None, None
