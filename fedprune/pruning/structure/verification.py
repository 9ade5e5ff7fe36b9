"""Prove a layout on random weights: zeroing units and removing them must give the same outputs.

torch-pruning takes every operation that it does not know for an elementwise one. Where that is
wrong (a mean over channels, a shuffle with fixed sizes), the trial fails and the channels are
frozen.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.pruning.structure.members import CONVOLUTIONS, is_selection
from fedprune.pruning.structure.surgery import mask_model, shrink
from fedprune.pruning.structure.tracing import moving_operations, one_line

if TYPE_CHECKING:
    from fedprune.pruning.structure.layout import UnitLayout

_LARGE = 20_000_000  # parameters above which a copy in double precision costs too much memory
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def inexact_groups(model: nn.Module, layout: UnitLayout, example_input: Tensor) -> dict[int, str]:
    """Remove every unit in one of two trials, compare, and find the groups that are to blame.

    Returns:
        From the number of each group that cannot be removed exactly to the reason. Without these
        groups the trials succeed.

    Raises:
        ModelError: if the model gives no finite output on the example.
    """
    trials = _Trials(model, layout, example_input)
    everything = list(range(len(layout.groups)))
    if trials.failure(everything) is None:
        return {}
    reasons = {}
    for number in everything:
        reason = trials.failure([number])
        if reason is not None:
            reasons[number] = reason
    return reasons | _inexact_together(trials, [n for n in everything if n not in reasons])


def _inexact_together(trials: _Trials, groups: list[int]) -> dict[int, str]:
    """Take groups away that fail only together with those before them, until no trial fails."""
    reasons: dict[int, str] = {}
    while (reason := trials.failure(groups)) is not None:
        good, bad = 0, len(groups)  # so many of the first groups pass, so many fail
        while bad - good > 1:
            middle = (good + bad) // 2
            found = trials.failure(groups[:middle])
            good, bad, reason = (middle, bad, reason) if found is None else (good, middle, found)
        reasons[groups[bad - 1]] = f"{reason} together with channels of other layers"
        groups = groups[: bad - 1] + groups[bad:]
    return reasons


class _Trials:
    """A model with random weights whose groups can be removed in two halves."""

    def __init__(self, model: nn.Module, layout: UnitLayout, example_input: Tensor) -> None:
        self._model, self._example = _trial_model(model, example_input)
        self._layout, self._halves = layout, _halves(layout)

    def failure(self, groups: list[int]) -> str | None:
        """Say what happens when units of some groups are removed; None if all is well."""
        for half in self._halves:
            mask = torch.ones(len(self._layout), dtype=torch.bool)
            for number in groups:
                units = self._layout.groups[number].units
                mask[units] = half[units]
            found = _difference(self._model, self._layout, self._example, mask)
            if found is not None:
                moving = moving_operations(self._model, self._example)
                name = self._layout.groups[groups[-1]].name
                return f"removing channels of {name} {found}{moving}"
        return None


def _halves(layout: UnitLayout) -> list[Tensor]:
    """Two masks that between them remove every unit whose group has more than one."""
    first = torch.rand(len(layout), generator=torch.Generator().manual_seed(0)) < 0.5
    halves = [first, ~first]
    for group in layout.groups:
        if len(group) == 1:
            halves[0][group.units] = halves[1][group.units] = True
        elif first[group.units].all() or not first[group.units].any():
            halves[0][group.start] = not halves[0][group.start]
            halves[1][group.start] = not halves[1][group.start]
    return halves


def _trial_model(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy with random weights, in double precision where the model can be run in it.

    Weights of its own are a last resort, for models that give no finite output with others:
    fresh biases of zero, say, would hide what random ones show.
    """
    own = copy.deepcopy(model).eval()
    drawn = copy.deepcopy(own)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in drawn.modules():
            if not is_selection(module):
                _randomise(module, generator)
    for trial in (drawn, own):
        if example_input.is_floating_point() and _size(model) <= _LARGE:
            precise = copy.deepcopy(trial).double()
            if _runs(precise, example_input.double()):
                return precise, example_input.double()
        if _runs(trial, example_input):
            return trial, example_input
    raise ModelError(f"{type(model).__name__} gives no finite output on the example input")


def _runs(model: nn.Module, example: Tensor) -> bool:
    try:
        with torch.no_grad():
            return bool(model(example).isfinite().all())
    except Exception:  # a model may insist on its own dtype; then it is tried in that
        return False


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw values of order 1, also where training starts at zero or next to it."""
    matrix = isinstance(module, (*CONVOLUTIONS, nn.Linear))
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.is_floating_point():
            continue
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 or (name == "weight" and matrix):
            values *= (2 / max(values[0].numel(), 1)) ** 0.5
        elif name == "weight":
            values = 0.5 + torch.rand(parameter.shape, generator=generator)
        else:
            values *= 0.3
        parameter.copy_(values)
    for name, buffer in module.named_buffers(recurse=False):
        if name in ("running_mean", "running_var"):
            values = torch.rand(buffer.shape, generator=generator)
            buffer.copy_(values + 0.5 if name == "running_var" else values - 0.5)


def _difference(model: nn.Module, layout: UnitLayout, example: Tensor, mask: Tensor) -> str | None:
    """Say how the zeroed and the shrunk model differ; None if they do not."""
    with torch.no_grad():
        masked: Tensor = mask_model(model, layout, mask)(example)
        try:
            small: Tensor = shrink(model, layout, mask)(example)
        except Exception as error:
            return f"fails ({one_line(error)})"
    if small.shape != masked.shape:
        return f"turns outputs of shape {list(masked.shape)} into {list(small.shape)}"
    scale = float(masked.abs().max())
    gap = float((small - masked).abs().max())
    tolerance = _TOLERANCE.get(masked.dtype, 1e-2)
    return None if gap <= tolerance * scale else f"changes its outputs by {gap:.2g}"
