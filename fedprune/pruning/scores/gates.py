"""Derivatives with respect to units' gates, for every example, one backward pass a direction.

A gate z multiplies what a unit puts out and has the value 1, so ∂L/∂z is the sum over positions of
y·∂L/∂y, where y is the output and ∂L/∂y is on its way through the backward pass anyway. No weight
needs a gradient, which saves a third of an ordinary backward pass. A unit coupled over several
layers has one gate, so its layers' sums are added up.

The same holds for any function of the logits o, whose gradient is a direction d in their space:
the backward pass from d gives d·∂o/∂z. One forward pass serves several directions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.directions import step_along
from fedprune.errors import ModelError
from fedprune.hardware.parallel import Spares
from fedprune.pruning.scores.gate_hooks import FLOAT32_BYTES, attach_gates, find_overwritten
from fedprune.pruning.scores.prepared import (
    choose_format,
    move,
    prepare,
    reduce_precision,
    rows_a_pass,
    run,
    run_checked,
    share_parameters,
    workers_on,
)
from fedprune.pruning.scores.secants import find_secants, run_with_secants
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.programs import Program, trace_program

# A product of fewer rows than this takes another kernel, with other roundings; a pass is filled up
# to as many, so that an example has the same bits in whichever pass it is.
_LEAST_ROWS = 4

Draws: TypeAlias = Callable[[int], Tensor]
Steps: TypeAlias = Generator[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Probe:
    """What is asked of every example: directions in the space of the logits, and what they say.

    Attributes:
        steps: Called with the logits [batch, classes], the labels [batch], and what gives so many
            uniform numbers in [0, 1) for each example, [batch, count] float64. It yields
            directions [batch, classes], is sent d·∂o/∂z [batch, num_units] for each, and returns
            the values [batch, columns * num_units]. An example's values must rest on its own row
            alone.
        passes: How many directions it yields for so many classes.
        columns: Values for each unit.
    """

    steps: Callable[[Tensor, Tensor, Draws], Steps]
    passes: Callable[[int], int]
    columns: int = 1


def _one_pass(_classes: int) -> int:
    return 1


def loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each example's cross-entropy with respect to its logits, [batch, classes]."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        losses = functional.cross_entropy(leaf, labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient


def _loss_steps(logits: Tensor, labels: Tensor, _draws: Draws) -> Steps:
    return (yield loss_gradient(logits, labels))


LOSS_GRADIENT = Probe(_loss_steps, _one_pass)


class GateGradients:
    """A prepared copy of a model that gives ∂L/∂z for every example and unit.

    The copy is in evaluation mode, so that examples do not mix, its batch norms are folded into
    the convolutions before them, and none of its parameters needs a gradient.

    Attributes:
        num_units: Columns of what it gives.
        device: Where it computes; what it gives lies there too.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: UnitLayout,
        precision: str = "float32",
        *,
        secants: bool = False,
    ) -> None:
        """Copy and prepare a model; it is not changed itself.

        Args:
            model: The model.
            layout: Its units.
            precision: "float32", or "bfloat16": between the first and the last layer convolutions
                and linear layers get factors of 8 bits, and products and gates are summed in
                float32.
            secants: Take the change of an activation that alone reads a gate exactly, where the
                network can be traced (see the module `secants`).

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
        self._wants_secants = secants
        self._program: Program | None = None
        self._looking = threading.Lock()
        self._passes = Spares(self._new_pass)

    @property
    def num_values(self) -> int:
        """Columns of what `of` gives."""
        return self.num_units

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
        return self.measure(inputs, labels, LOSS_GRADIENT, _no_draws)

    def measure(self, inputs: Tensor, labels: Tensor, probe: Probe, draws: Draws) -> Tensor:
        """Ask a probe's question about every example; `of` with another question.

        Args:
            inputs: [batch, ...].
            labels: [batch] integers below the number of classes.
            probe: The question.
            draws: Gives so many uniform numbers for each example, [batch, count] float64.

        Returns:
            [batch, columns * num_units].

        Raises:
            ModelError: if the model fails, a label is no class, or a loss or value is not finite.
        """
        rows = len(inputs)
        labels = _filled(labels) if labels.ndim == 1 and len(labels) == rows else labels
        inputs = _filled(inputs)
        inputs = move(inputs, self.device, self._dtype if inputs.is_floating_point() else None)
        self._look_at(inputs[:2].clone())

        def moved(count: int) -> Tensor:
            return move(_filled(draws(count)), self.device)

        with self._passes.borrow() as held:
            values, losses = held.measure(inputs, labels, self.num_units, probe, moved)
        return self._checked(values, losses)[:rows]

    def _look_at(self, inputs: Tensor) -> None:
        """With the first examples see how the model wants to be laid out and what it overwrites."""
        with self._looking:
            if self._format is None:
                found = choose_format(self._prepared, inputs)
                self._overwritten = find_overwritten(
                    share_parameters(self._prepared), self._layout, inputs
                )
                if self._wants_secants:
                    names = {site.name for site in self._layout.sites}
                    laid_out = inputs.contiguous(memory_format=found)
                    with torch.no_grad():
                        self._program = trace_program(self._prepared, names, laid_out)
                self._format = found

    def _new_pass(self) -> _Pass:
        model = share_parameters(self._prepared)
        memory_format = self._format or torch.contiguous_format
        program = None if self._program is None else self._program.on(model)
        return _Pass(model, self._layout, memory_format, self._overwritten, program)

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
        program: Program | None,
    ) -> None:
        self._model, self._format, self._program = model, memory_format, program
        self._gates = attach_gates(model, layout)
        for gate, copies in zip(self._gates, overwritten, strict=True):
            gate.overwritten = copies
        self._by_name = {gate.name: gate for gate in self._gates}
        self._secants = () if program is None else find_secants(program, list(self._by_name))
        for secant in self._secants:
            self._by_name[secant.site].by_secant = True

    def _run(self, inputs: Tensor, anchor: Tensor) -> Tensor:
        program = self._program
        if program is None or not self._secants:
            return run(self._model, inputs)
        return run_checked(
            self._model,
            inputs,
            lambda rows: run_with_secants(program, self._secants, self._by_name, rows, anchor),
        )

    def measure(
        self, inputs: Tensor, labels: Tensor, num_units: int, probe: Probe, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """The probe's values [batch, columns * num_units] and the losses [batch]."""
        device = inputs.device
        anchor = torch.zeros((), requires_grad=True, device=device)
        for gate in self._gates:
            gate.start_at(anchor)
        with torch.enable_grad():
            logits = self._run(inputs.contiguous(memory_format=self._format), anchor)
            logits = logits.float() if logits.dtype.itemsize < FLOAT32_BYTES else logits
        check_labels(labels, len(inputs), logits.shape[1])
        labels = move(labels, device).long()
        with torch.no_grad():
            seen = logits.detach()
            losses = functional.cross_entropy(seen, labels, reduction="none")
            steps = probe.steps(seen, labels, draws)
            passes = probe.passes(seen.shape[1])
            return self._drive(steps, logits, passes, num_units), losses

    def _drive(self, steps: Steps, logits: Tensor, passes: int, num_units: int) -> Tensor:
        """Run a backward pass for every direction that the probe names."""
        direction = next(steps)
        for left in reversed(range(passes)):
            collected = torch.zeros(len(logits), num_units, device=logits.device)
            for gate in self._gates:
                gate.collect_into(collected)
            step = step_along(logits, direction.to(logits.dtype))
            step.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
            try:
                direction = steps.send(collected)
            except StopIteration as end:
                values: Tensor = end.value
                return values
        raise RuntimeError(f"a probe of {passes} passes asks for more")


def _no_draws(count: int) -> Tensor:
    raise RuntimeError(f"nothing draws here, got a wish for {count} numbers")


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
