"""Every node of a network as a linear function of groups of variables, with its error.

The variables are the network's input and the outputs of its activations; what lies between is
multiplied out column by column. The result is the `SlopeSystem` that LipSDP bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprune.robustness.linear_parts import apply_absolute, apply_linear, is_linear, rounding
from fedprune.robustness.network import Network, Step
from fedprune.robustness.region_activations import Races, Switches
from fedprune.robustness.regions import Regions
from fedprune.robustness.rounding import EPSILON, Floats
from fedprune.robustness.slope_systems import SlopeSystem


@dataclass(frozen=True)
class Form:
    """A node's linear dependence on one group of variables: [columns, *shape], and its error."""

    value: Tensor
    error: Tensor


Forms = Mapping[int, Form]
"""Group 0 is the input, the others are activations in order; a missing group has no influence."""


class _System:
    """Groups of variables and what they read, as they are met."""

    def __init__(self, inputs: int) -> None:
        self.sizes = [inputs]
        self._rows: list[Forms] = []

    def activate(self, read: Forms, size: int) -> int:
        """Add a group of `size` activations that read so many entries; give its number."""
        self._rows.append(read)
        self.sizes.append(size)
        return len(self.sizes) - 1

    def finished(self, output: Forms) -> SlopeSystem:
        """Lay everything out as matrices."""
        inner = [
            _matrix(form, self.sizes, size)
            for form, size in zip(self._rows, self.sizes[1:], strict=True)
        ]
        entries = next((form.value[0].numel() for form in output.values()), 1)
        outer, outer_error = _matrix(output, self.sizes, entries)
        none = np.zeros((0, sum(self.sizes)))
        return SlopeSystem(
            np.concatenate([none, *(value for value, _ in inner)]),
            np.concatenate([none, *(error for _, error in inner)]),
            outer,
            outer_error,
            tuple(self.sizes[1:]),
        )


def slope_system(part: Network) -> SlopeSystem:
    """Write a network of linear operations and activations as a `SlopeSystem`.

    Activations with slopes in [0, c] are rescaled to [0, 1], which multiplies what reads them.
    """
    system = _System(math.prod(part.input_shape))
    forms: dict[str, Forms] = {part.input: {0: _units(part.input_shape[1:], 1.0)}}
    for name, step in part.steps.items():
        read = [forms[source] for source in step.inputs]
        if is_linear(step.operation):
            forms[name] = _pushed(step, read)
            continue
        group = system.activate(read[0], math.prod(step.shape))
        forms[name] = {group: _units(step.shape[1:], step.operation.norm.value)}
    return system.finished(forms[part.output])


def local_system(network: Network, regions: Regions, row: int, scale: Tensor) -> SlopeSystem:
    """Write what a ball leaves undecided of a network as a `SlopeSystem`, for one example.

    Dead ReLUs vanish, active ones are part of the linear maps. A maximum of rivals is a chain of
    ReLUs: max(a, b) = a + relu(b - a).

    Args:
        network: of linear operations, ReLUs and maxima.
        regions: as `follow` found them.
        row: of the example among those followed.
        scale: [...], from the unnormalised to the network's input.
    """
    system = _System(scale.numel())
    forms: dict[str, Forms] = {network.input: {0: _units(tuple(scale.shape), scale)}}
    left = network.readers()
    for name, step in network.steps.items():
        read = [forms[source] for source in step.inputs]
        pattern = regions.patterns.get(name)
        if pattern is None:
            forms[name] = _pushed(step, read)
        elif isinstance(pattern, Switches):
            forms[name] = _switched(pattern, row, read[0], system)
        else:
            forms[name] = _raced(pattern, row, read[0], system, step.shape[1:])
        for source in step.inputs:
            left[source] -= 1
            if left[source] == 0:
                del forms[source]
    return system.finished(forms[network.output])


def _switched(pattern: Switches, row: int, read: Forms, system: _System) -> Forms:
    active, undecided = pattern.active[row], pattern.undecided[row]
    result = {group: Form(form.value * active, form.error * active) for group, form in read.items()}
    count = int(undecided.sum())
    if count:
        group = system.activate(_picked(read, undecided.flatten().nonzero()[:, 0]), count)
        result[group] = _placed(undecided)
    return result


def _placed(where: Tensor) -> Form:
    """New variables at the places of a mask, in its flattened order."""
    places = where.flatten().nonzero()[:, 0]
    value = torch.zeros(len(places), where.numel(), dtype=torch.float64)
    value[torch.arange(len(places)), places] = 1.0
    value = value.reshape(-1, *where.shape)
    return Form(value, torch.zeros_like(value))


def _picked(read: Forms, places: Tensor) -> Forms:
    """Entries of a node, by their places in its flattened order."""
    return {
        group: Form(form.value.flatten(1)[:, places], form.error.flatten(1)[:, places])
        for group, form in read.items()
    }


def _raced(pattern: Races, row: int, read: Forms, system: _System, shape: tuple[int, ...]) -> Forms:
    rival, chosen = pattern.rival[row], pattern.chosen[row]  # [channels, outputs(, members)]
    channels, map_size = rival.shape[0], next(iter(read.values())).value[0, 0].numel()
    first = torch.arange(channels)[:, None] * map_size
    members = pattern.windows.clamp_min(0)  # [outputs, members]
    leading = torch.gather(members.expand(channels, -1, -1), -1, chosen[..., None])[..., 0]
    best = _picked(read, (first + leading).flatten())
    for member in range(members.shape[1]):
        running = rival[..., member]
        if not bool(running.any()):
            continue
        where = running.flatten().nonzero()[:, 0]
        other = _picked(read, (first + members[:, member]).flatten()[where])
        behind = _picked(best, where)
        group = system.activate(_difference(other, behind), len(where))
        best = {**best, group: _placed(running.flatten())}
    return {
        group: Form(form.value.reshape(-1, *shape), form.error.reshape(-1, *shape))
        for group, form in best.items()
    }


def _difference(left: Forms, right: Forms) -> Forms:
    result: dict[int, Form] = {}
    for group in sorted({*left, *right}):
        known = (left.get(group) or right[group]).value
        none = Form(torch.zeros_like(known), torch.zeros_like(known))
        one, other = left.get(group, none), right.get(group, none)
        value = one.value - other.value
        error = (one.error + other.error + 2 * EPSILON * value.abs()) * (1 + 1e-9)
        result[group] = Form(value, error)
    return result


def _units(shape: tuple[int, ...], factor: float | Tensor) -> Form:
    size = math.prod(shape)
    value = torch.eye(size, dtype=torch.float64).reshape(size, *shape) * factor
    return Form(value, 4 * EPSILON * value.abs())


def _pushed(step: Step, read: list[Forms]) -> Forms:
    """Push the columns of every group through a linear operation, with their errors."""
    operation, relative = step.operation, rounding(step.operation)
    shapes = [tuple(next(iter(forms.values())).value.shape[1:]) for forms in read]
    result: dict[int, Form] = {}
    for group in sorted({group for forms in read for group in forms}):
        count = next(len(forms[group].value) for forms in read if group in forms)
        parts = [
            forms[group] if group in forms else _nothing(count, shape)
            for forms, shape in zip(read, shapes, strict=True)
        ]
        values, errors = [part.value for part in parts], [part.error for part in parts]
        value = apply_linear(operation, *values)
        size = apply_absolute(operation, *(one.abs() for one in values))
        carried = apply_absolute(operation, *errors)
        result[group] = Form(value, (carried + relative * size) * (1 + 1e-9))
    return result


def _nothing(count: int, shape: tuple[int, ...]) -> Form:
    zeros = torch.zeros(count, *shape, dtype=torch.float64)
    return Form(zeros, zeros)


def _matrix(forms: Forms, sizes: list[int], entries: int) -> tuple[Floats, Floats]:
    """Lay a node's form out as [entries, all variables]; later groups stay zero."""
    starts = np.cumsum([0, *sizes])
    value, error = np.zeros((entries, starts[-1])), np.zeros((entries, starts[-1]))
    for group, form in forms.items():
        place = slice(starts[group], starts[group + 1])
        value[:, place] = form.value.flatten(1).numpy().T
        error[:, place] = form.error.flatten(1).numpy().T + 4 * EPSILON * np.abs(value[:, place])
    return value, error
