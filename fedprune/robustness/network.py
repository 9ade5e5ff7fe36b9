"""A lowered network: a directed acyclic graph of operations, run and bounded node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import RobustnessError
from fedprune.robustness.affine import Affine, Dense
from fedprune.robustness.arguments import as_floats
from fedprune.robustness.operations import Function, Operation, Rounding
from fedprune.robustness.rounding import EPSILON, Floats, add_up, multiply_up, up


@dataclass(frozen=True)
class Step:
    """One operation, the nodes it reads and the shape [1, ...] of what it gives."""

    operation: Operation
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """Outputs [n, ...] float64 and, per example, how far they can be from the real ones [n]."""

    outputs: Tensor
    errors: Floats


@dataclass(frozen=True)
class Network:
    """Operations in topological order; `steps` maps a node's name to its step."""

    input: str
    input_shape: tuple[int, ...]
    steps: Mapping[str, Step]
    output: str

    def readers(self) -> Counter[str]:
        """Count how often each node is read, the output once more."""
        counts: Counter[str] = Counter([self.output])
        for step in self.steps.values():
            counts.update(step.inputs)
        return counts

    def trimmed(self) -> Network:
        """Drop the steps that the output does not need."""
        needed = {self.output}
        for name, step in reversed(list(self.steps.items())):
            if name in needed:
                needed.update(step.inputs)
        steps = {name: step for name, step in self.steps.items() if name in needed}
        return replace(self, steps=steps)

    @property
    def head(self) -> str | None:
        """Name of the linear map that gives the output [1, classes], None if there is none."""
        name = self.output
        while name in self.steps:
            step = self.steps[name]
            if isinstance(step.operation, Dense):
                return name if len(step.shape) == 2 else None
            if not (isinstance(step.operation, Function) and step.operation.keeps_entries):
                return None
            name = step.inputs[0]
        return None

    def run(self, inputs: Tensor, after_each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Evaluate on a batch [n, ...] float64; `after_each` may change what a node gives."""
        return self._evaluate(inputs, bound_errors=False, after_each=after_each).outputs

    def evaluate(self, inputs: Tensor) -> Evaluation:
        """Run in float64 and carry an a-priori bound on the rounding error along.

        An error e at the input of an operation leaves at most L e, to which one evaluation adds
        what its `Rounding` says; both hold in l2 norm, example by example.

        Args:
            inputs: [n, ...] float64, taken as exact.
        """
        return self._evaluate(inputs, bound_errors=True, after_each=None)

    def _evaluate(
        self,
        inputs: Tensor,
        *,
        bound_errors: bool,
        after_each: Callable[[Tensor], Tensor] | None,
    ) -> Evaluation:
        values: dict[str, Tensor] = {self.input: inputs}
        sizes: dict[str, Floats] = {}
        errors: dict[str, Floats] = {self.input: np.zeros(len(inputs))}
        left = self.readers()
        for name, step in self.steps.items():
            result = step.operation.run(*(values[source] for source in step.inputs))
            values[name] = result if after_each is None else after_each(result)
            if bound_errors:
                for node in (*step.inputs, name):
                    if node not in sizes:
                        sizes[node] = _row_norms(values[node])
                errors[name] = _step_error(step, name, sizes, errors)
            for source in step.inputs:
                left[source] -= 1
                if left[source] == 0:
                    del values[source]
        outputs = values[self.output]
        return Evaluation(outputs, errors.get(self.output, np.zeros(len(inputs))))

    def bounds(self, input_bound: float = 1.0) -> dict[str, float]:
        """Bound every node's Lipschitz constant with respect to the network's input."""
        bounds = {self.input: input_bound}
        for name, step in self.steps.items():
            stacked = np.array([bounds[source] for source in step.inputs])
            bounds[name] = float(step.operation.compose(stacked))
        return bounds

    def scale_input(self, scale: Tensor, keep: str | None = None) -> tuple[Network, float]:
        """Take in an entrywise scaling [...] of the input, for bounds only.

        The scaling moves through reshapes into the first convolution or linear map if nothing
        else reads the input; otherwise its largest entry multiplies the bound of the input.

        Args:
            scale: [...] of the input's shape without the batch axis.
            keep: a step that must stay as it is, such as the head whose rows a certificate uses.

        Returns:
            The network whose first map has the scaling folded in, and the bound of its input.
        """
        source, readers = self.input, self.readers()
        while readers[source] == 1 and source != self.output:
            name, step = next((n, s) for n, s in self.steps.items() if source in s.inputs)
            operation = step.operation
            if name == keep:
                break
            if isinstance(operation, Affine):
                scaled = operation.scale_input(scale)
                if scaled is None:
                    break
                steps = {**self.steps, name: replace(step, operation=scaled)}
                return replace(self, steps=steps), 1.0
            if not (isinstance(operation, Function) and operation.keeps_entries):
                break
            scale = operation.run(scale[None])[0]
            source = name
        return self, up(float(scale.abs().max()) * (1 + 4 * EPSILON))


UNDERFLOW = 1e-150
"""Squares of smaller entries vanish in a norm; this much is added so that none is missed."""

Std = Sequence[float] | Tensor | NDArray[np.floating]
"""Standard deviations [channels] by which inputs were divided before the model sees them."""


def input_scale(input_std: Std | None, shape: tuple[int, ...]) -> Tensor | None:
    """Spread 1 / std over the input: [channels] -> [...] of the example's shape, float64.

    Raises:
        RobustnessError: if there is not one positive finite value a channel.
    """
    if input_std is None:
        return None
    std = as_floats(input_std)
    if std is None:
        raise RobustnessError(f"input_std must hold numbers, got {input_std!r:.60}")
    if std.ndim != 1 or len(std) not in (1, shape[1]):
        raise RobustnessError(
            f"input_std must hold one value for each of the {shape[1]} channels, "
            f"got shape {list(std.shape)}"
        )
    if not bool((torch.isfinite(std) & (std > 0)).all()):
        raise RobustnessError(f"input_std must be positive and finite, got {std.tolist()}")
    if not bool(torch.isfinite(1 / std).all()):
        raise RobustnessError(f"input_std is too small to divide by, got {std.tolist()}")
    return (1 / std).reshape(-1, *[1] * (len(shape) - 2)).expand(shape[1:]).clone()


def _row_norms(values: Tensor) -> Floats:
    """Norms of the rows [n], rounded up far past the rounding of the sum."""
    flat = values.reshape(len(values), -1)
    norms = torch.linalg.vector_norm(flat, dim=1).numpy()
    return np.asarray(norms * (1 + (flat.shape[1] + 8) * EPSILON) + UNDERFLOW)


def _step_error(
    step: Step, name: str, sizes: Mapping[str, Floats], errors: Mapping[str, Floats]
) -> Floats:
    rounding: Rounding = step.operation.rounding
    carried = step.operation.compose(np.stack([errors[source] for source in step.inputs]))
    inputs = np.zeros_like(carried)
    for source in step.inputs:
        inputs = add_up(inputs, sizes[source])
    local = add_up(
        multiply_up(rounding.per_input, inputs), multiply_up(rounding.per_output, sizes[name])
    )
    return add_up(carried, add_up(local, np.full_like(carried, rounding.constant)))
