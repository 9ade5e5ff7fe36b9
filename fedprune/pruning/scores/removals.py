"""The loss of every example without each unit: passes that share what comes before a removal.

A removal changes nothing before the first layer that the unit belongs to. Where torch.fx can trace
a network, the values that are alive before that layer are kept and only what follows is computed
again; where it cannot, every unit costs a whole pass. Batches run side by side in threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import ModelError
from fedprune.hardware.parallel import Spares
from fedprune.pruning.scores.gates import check_labels
from fedprune.pruning.scores.prepared import (
    choose_format,
    move,
    prepare,
    rows_a_pass,
    run,
    share_parameters,
    workers_on,
)
from fedprune.pruning.scores.separate_gates import GateLayout
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.programs import Program, trace_program
from fedprune.pruning.structure.surgery import SILENCERS

_PASSES_AT_LEAST = 8  # batches that examples are divided into however many threads there are


class Removals:
    """A prepared copy of a model that gives each example's loss without each unit.

    A unit is removed as `mask_model` removes it. Of a `GateLayout` each gate is closed: its
    channel of its layer's output is zero.

    Attributes:
        device: Where it computes; what it gives lies there too.
    """

    def __init__(self, model: nn.Module, layout: UnitLayout) -> None:
        """Copy and prepare a model; it is not changed itself.

        Raises:
            LayoutMismatchError: if the model's layers are not the layout's.
        """
        self._layout, self._base = layout, prepare(model, layout)
        first = next(self._base.parameters())
        self.device, self._dtype = first.device, first.dtype
        self._members = _members(layout)
        self._laid_out: torch.memory_format | None = None
        self._program: Program | None = None
        self._modules = Spares(lambda: share_parameters(self._base))

    @property
    def workers(self) -> int:
        """Batches that may be worked on at once, each in a thread of its own."""
        return workers_on(self.device)

    def batch_size(self, examples: int) -> int:
        """Examples in a batch, the same on every machine and number of threads."""
        return rows_a_pass(self._layout, examples, _PASSES_AT_LEAST)

    def look_at(self, inputs: Tensor) -> None:
        """With the first examples see how the model is to be laid out, and trace it if it can be.

        It must be called once before the first losses.
        """
        sample = self._moved(inputs[:2])
        with torch.no_grad():
            run(self._base, sample.clone())  # refuses what cannot be scored
        self._laid_out = choose_format(self._base, sample)
        targets = {name for unit in self._members for name in unit}
        with torch.no_grad():
            laid_out = sample.contiguous(memory_format=self._laid_out)
            self._program = trace_program(self._base, targets, laid_out)

    def losses(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies of one batch, whole and without each unit.

        Several threads may call this at once.

        Returns:
            [batch] of the whole model and [num_units, batch], both float64.

        Raises:
            ModelError: if a label is no class or the whole model's loss is not finite.
        """
        with torch.inference_mode():
            ready = self._moved(inputs).contiguous(memory_format=self._laid_out or _CONTIGUOUS)
            loss = _Loss(labels, self.device)
            without = torch.empty(
                len(self._layout), len(inputs), dtype=torch.float64, device=self.device
            )
            passes = self._whole_passes if self._program is None else self._suffixes
            whole = passes(ready, loss, without)
        if self.device.type == "cpu" and not bool(whole.isfinite().all()):
            loss_found = whole[~whole.isfinite()][0].item()
            raise ModelError(
                f"the loss of {self._layout.model_name} is {loss_found} for an example; weights "
                f"and inputs must be finite"
            )
        return whole, without

    def _suffixes(self, inputs: Tensor, loss: _Loss, without: Tensor) -> Tensor:
        program = self._program
        assert program is not None  # the caller has looked
        running = program.start(inputs)
        first = [program.first_of(members) for members in self._members]
        for unit in np.argsort(first, kind="stable").tolist():
            running.advance(first[unit])
            without[unit] = loss.of(running.finish_with(self._replacements(unit)))
        return loss.of(running.finish_with({}))

    def _whole_passes(self, inputs: Tensor, loss: _Loss, without: Tensor) -> Tensor:
        for unit in range(len(self._layout)):
            with self._modules.borrow() as own:
                kept = {name: own.get_submodule(name) for name in self._members[unit]}
                for name, module in self._replacements(unit).items():
                    own.set_submodule(name, module)
                without[unit] = loss.of(own(inputs.clone()))
                for name, module in kept.items():
                    own.set_submodule(name, module)
        with self._modules.borrow() as own:
            return loss.of(own(inputs))

    def _replacements(self, unit: int) -> dict[str, nn.Module]:
        """The layers that a unit belongs to, without it."""
        return {
            name: without(self._base.get_submodule(name))
            for name, without in self._members[unit].items()
        }

    def _moved(self, inputs: Tensor) -> Tensor:
        return move(inputs, self.device, self._dtype if inputs.is_floating_point() else None)


_CONTIGUOUS = torch.contiguous_format

Without = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class _Loss:
    labels: Tensor
    device: torch.device

    def of(self, logits: Tensor) -> Tensor:
        """Each example's cross-entropy, [batch] float64."""
        check_labels(self.labels, len(logits), logits.shape[1])
        labels = move(self.labels, self.device).long()
        return functional.cross_entropy(logits.double(), labels, reduction="none")


class _Closed(nn.Module):
    """A layer whose gates are closed for some channels."""

    def __init__(self, layer: nn.Module, gone: Tensor) -> None:
        super().__init__()
        self.layer, self.gone = layer, gone
        self.channel_last = isinstance(layer, nn.Linear)

    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.layer(*inputs)
        shape = [1] * output.ndim
        shape[-1 if self.channel_last else 1] = -1
        return output.masked_fill(self.gone.to(output.device).view(shape), 0)


def _members(layout: UnitLayout) -> list[dict[str, Without]]:
    """For each unit the layers that it belongs to, and what makes of one the layer without it."""
    members: list[dict[str, Without]] = [{} for _ in range(len(layout))]
    if isinstance(layout, GateLayout):
        for site in layout.sites:
            for unit in site.units[site.units >= 0].tolist():
                gone = torch.from_numpy(site.units == unit)
                members[unit][site.name] = lambda layer, gone=gone: _Closed(layer, gone)
        return members
    for layer in layout.layers:
        of_layer = np.unique(np.concatenate([layer.in_units, layer.out_units]))
        for unit in of_layer[of_layer >= 0].tolist():
            members[unit][layer.name] = _silenced(layer, unit)
    return members


def _silenced(layer: Any, unit: int) -> Without:
    def without(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Identity):  # a norm that was folded into its convolution
            return module
        silent = copy.deepcopy(module)
        silence = SILENCERS[layer.kind]
        silence(silent, layer, layer.in_units == unit, layer.out_units == unit)
        return silent

    return without
