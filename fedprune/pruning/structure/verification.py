"""Prove a layout on random weights: zeroing units and removing them must give the same outputs.

torch-pruning takes every operation that it does not know for an elementwise one. Where that is
wrong (a mean over channels, a shuffle with fixed sizes), the trial fails and the channels are
frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import ModelError
from fedprune.pruning.structure.members import CONVOLUTIONS, is_selection
from fedprune.pruning.structure.surgery import mask_model, shrink
from fedprune.pruning.structure.tracing import moving_operations, one_line

if TYPE_CHECKING:
    from fedprune.pruning.structure.layout import UnitLayout

_LARGE = 20_000_000  # parameters above which a copy in double precision costs too much memory
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def inexact_groups(model: nn.Module, layout: UnitLayout, example_input: Tensor) -> dict[int, str]:
    """Remove units in several trials, compare, and find the groups that are to blame.

    Returns:
        From the number of each group that cannot be removed exactly to the reason. Without these
        groups the trials succeed.

    Raises:
        ModelError: if the model gives no finite output on the example, or another one each time.
    """
    trials = _Trials(model, layout, example_input)
    everything = list(range(len(layout.groups)))
    if trials.failure(everything) is None:
        return {}
    if not trials.are_steady():
        raise ModelError(
            f"{layout.model_name} gives other outputs each time it runs in evaluation mode, so "
            f"that nothing can be proved about its units"
        )
    reasons = {}
    for number in everything:
        reason = trials.failure([number])
        if reason is not None:
            reasons[number] = reason
    return reasons | _inexact_together(trials, [n for n in everything if n not in reasons])


def _inexact_together(trials: _Trials, groups: list[int]) -> dict[int, str]:
    """Take groups away that fail only together with those before them, until no trial fails."""
    reasons: dict[int, str] = {}
    while groups and (reason := trials.failure(groups)) is not None:
        good, bad = 0, len(groups)  # so many of the first groups pass, so many fail
        while bad - good > 1:
            middle = (good + bad) // 2
            found = trials.failure(groups[:middle])
            good, bad, reason = (middle, bad, reason) if found is None else (good, middle, found)
        reasons[groups[bad - 1]] = f"{reason} together with channels of other layers"
        groups = groups[: bad - 1] + groups[bad:]
    return reasons


class _Trials:
    """A model with random weights whose groups can be thinned in several ways."""

    def __init__(self, model: nn.Module, layout: UnitLayout, example_input: Tensor) -> None:
        self._model, self._example = _trial_model(model, example_input)
        self._layout, self._masks = layout, _trial_masks(layout)

    def are_steady(self) -> bool:
        """Whether the model says the same twice when nothing is removed."""
        everything = torch.ones(len(self._layout), dtype=torch.bool)
        return _difference(self._model, self._layout, self._example, everything) is None

    def failure(self, groups: list[int]) -> str | None:
        """Say what happens when units of some groups are removed; None if all is well."""
        for which, trial in self._masks:
            mask = torch.ones(len(self._layout), dtype=torch.bool)
            for number in groups:
                units = self._layout.groups[number].units
                mask[units] = trial[units]
            found = _difference(self._model, self._layout, self._example, mask)
            if found is not None:
                moving = moving_operations(self._model, self._example)
                name = self._layout.groups[groups[-1]].name
                return f"removing {which} of {name} {found}{moving}"
        return None


def _trial_masks(layout: UnitLayout) -> list[tuple[str, Tensor]]:
    """Masks that leave each group half, the other half, its end, and one unit; and what goes.

    Each catches what others let pass: halves every unit; the end a slice at a fixed place, of which
    halves may take alike on both sides; a single unit what depends on having several.
    """
    random = torch.Generator().manual_seed(0)
    first = torch.rand(len(layout), generator=random) < 0.5
    second, end, one = ~first, torch.ones_like(first), torch.zeros_like(first)
    for group in layout.groups:
        if len(group) == 1:
            first[group.units] = second[group.units] = True
        elif first[group.units].all() or not first[group.units].any():
            first[group.start] = not first[group.start]
            second[group.start] = not second[group.start]
        end[group.start : group.start + len(group) // 2] = False
        one[group.start + int(torch.randint(len(group), (), generator=random))] = True
    return [
        ("channels", first), ("channels", second), ("the first channels", end),
        ("all channels but one", one),
    ]  # fmt: skip


def _trial_model(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy with random weights, in double precision where the model can be run in it.

    Weights of its own are a last resort, for models that give no finite output with others:
    fresh biases of zero, say, would hide what random ones show.
    """
    own = copy_model(model).eval()
    drawn = copy_model(own)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in drawn.modules():
            if not is_selection(module):
                _randomise(module, generator)
    for trial in (drawn, own):
        for example in _inputs_like(example_input):
            if example.is_floating_point() and _size(model) <= _LARGE:
                precise = copy_model(trial).double()
                if _runs(precise, example.double()):
                    return precise, example.double()
            if _runs(trial, example):
                return trial, example
    raise ModelError(f"{type(model).__name__} gives no finite output on the example input")


def _inputs_like(example: Tensor) -> list[Tensor]:
    """Random numbers, of which none is like another, and the example where a model wants those.

    In an example of zeros, say, a network without biases would show nothing.
    """
    if not example.is_floating_point():
        return [example]
    drawn = torch.randn(example.shape, generator=torch.Generator().manual_seed(1))
    return [drawn.to(example.device, example.dtype), example]


def _runs(model: nn.Module, example: Tensor) -> bool:
    try:
        with torch.no_grad():
            return bool(model(example.clone()).isfinite().all())
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
        try:
            # Copies, since some models write into their inputs.
            masked: Tensor = mask_model(model, layout, mask)(example.clone())
            small: Tensor = shrink(model, layout, mask)(example.clone())
        except Exception as error:
            return f"fails ({one_line(error)})"
    if small.shape != masked.shape:
        return f"turns outputs of shape {list(masked.shape)} into {list(small.shape)}"
    scale = float(masked.abs().max())
    gap = float((small - masked).abs().max())
    tolerance = _TOLERANCE.get(masked.dtype, 1e-2)
    return None if gap <= tolerance * scale else f"changes its outputs by {gap:.2g}"
