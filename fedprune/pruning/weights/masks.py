"""Masks of single weights, for simulation and study only: no privacy claim is made about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import PruningError
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.members import CONVOLUTIONS, is_selection
from fedprune.pruning.structure.surgery import mask_model

_SLACK = 1e-9  # 0.7 * 10 weights are 7 weights, whatever binary fractions say
_REFUSAL = (
    "a mask of single weights is for simulation and study only and makes no privacy claim: it "
    "cannot become a report, an array or bytes"
)


@dataclass(frozen=True, eq=False)
class StudyMasks:
    """Which single weights stay, for study only: never a report, never private.

    Attributes:
        keep: parameter name to a boolean tensor of its shape, True = keep.
    """

    keep: Mapping[str, Tensor]

    @property
    def num_weights(self) -> int:
        """Weights that the masks speak about."""
        return sum(mask.numel() for mask in self.keep.values())

    @property
    def num_kept(self) -> int:
        """Weights that stay."""
        return sum(int(mask.sum()) for mask in self.keep.values())

    @property
    def keep_weights(self) -> float:
        """The fraction of the weights that stay."""
        return self.num_kept / self.num_weights

    def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
        """Refuse to become an array."""
        raise PruningError(_REFUSAL)

    def __bytes__(self) -> NoReturn:
        """Refuse to become bytes."""
        raise PruningError(_REFUSAL)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        raise PruningError(_REFUSAL)


def prunable_weights(model: nn.Module) -> tuple[str, ...]:
    """Name the weights that can be masked: those of convolutions and linear layers.

    Biases, norms and frozen selections are left out; a weight that several layers share comes once.

    Raises:
        PruningError: if there is none.
    """
    wanted = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and not is_selection(module)
    }
    names = tuple(name for name, parameter in model.named_parameters() if id(parameter) in wanted)
    if not names:
        raise PruningError(f"{type(model).__name__} has no convolution or linear layer")
    return names


def all_weights(model: nn.Module) -> StudyMasks:
    """Masks that keep every weight."""
    named = dict(model.named_parameters())
    return StudyMasks(
        {name: torch.ones_like(named[name], dtype=torch.bool) for name in prunable_weights(model)}
    )


def magnitude_masks(
    model: nn.Module,
    keep_weights: float,
    *,
    scope: str = "global",
    within: StudyMasks | None = None,
) -> StudyMasks:
    """Keep the largest weights, which is the best approximation with so many nonzero weights.

    Of all vectors with k nonzero entries, the one with the k largest of w is the closest to w in
    the Euclidean norm: the error is the norm of what is left out. The same holds for matrices and
    the Frobenius norm.

    Args:
        model: the model; it is not changed.
        keep_weights: fraction of all maskable weights that stays, in (0, 1], rounded down, at
            least one.
        scope: `global` ranks all weights together, `layerwise` each weight tensor by itself.
        within: masks of an earlier step: what they removed stays removed.

    Returns:
        The masks; equal magnitudes go to the earlier weight.

    Raises:
        PruningError: if an argument is out of range, or fewer weights are left than shall stay.
    """
    if scope not in SCOPES:
        raise PruningError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    if not 0 < keep_weights <= 1:
        raise PruningError(f"keep_weights must be in (0, 1], got {keep_weights}")
    allowed = all_weights(model) if within is None else within
    check_masks(model, allowed)
    named = dict(model.named_parameters())
    sizes = {
        name: named[name].detach().double().abs().masked_fill(~mask, -math.inf)
        for name, mask in allowed.keep.items()
    }
    return StudyMasks(SCOPES[scope](sizes, keep_weights))


def random_masks_like(masks: StudyMasks, generator: torch.Generator) -> StudyMasks:
    """Shuffle the masks within each tensor: as many weights stay in each layer, drawn at random."""

    def shuffled(mask: Tensor) -> Tensor:
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return mask.flatten()[order].reshape(mask.shape)

    return StudyMasks({name: shuffled(mask) for name, mask in masks.keep.items()})


def masks_of_units(model: nn.Module, layout: UnitLayout, mask: Tensor) -> StudyMasks:
    """Every parameter's entries that a mask of units silences, as masks of single entries.

    They let a training loop hold removed units at zero; biases and norms are among them.

    Args:
        model: the model that the layout was made of; it is not changed.
        layout: its units.
        mask: [num_units] bool, True = keep.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the mask does not fit.
    """
    marked = copy_model(model)
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.fill_(1)
    silent = mask_model(marked, layout, mask)
    return StudyMasks({name: entry.detach() != 0 for name, entry in silent.named_parameters()})


def apply_masks(model: nn.Module, masks: StudyMasks) -> nn.Module:
    """Copy a model with the removed weights at zero.

    Raises:
        PruningError: if the masks are not of this model.
    """
    duplicate = copy_model(model)
    hold_at_zero_(duplicate, masks)
    return duplicate


def hold_at_zero_(model: nn.Module, masks: StudyMasks) -> None:
    """Set the removed weights to zero in place: for a training loop, after each step.

    Raises:
        PruningError: if the masks are not of this model.
    """
    check_masks(model, masks)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.keep.items():
            named[name].mul_(mask)


def check_masks(model: nn.Module, masks: StudyMasks) -> None:
    """Check that masks are of this model.

    Raises:
        PruningError: naming the first that does not fit.
    """
    named = dict(model.named_parameters())
    for name, mask in masks.keep.items():
        shape = list(named[name].shape) if name in named else None
        if mask.dtype != torch.bool or list(mask.shape) != shape:
            raise PruningError(
                f"masks must be of {type(model).__name__}: {name} has shape {shape} there, the "
                f"mask is {str(mask.dtype).removeprefix('torch.')} of shape {list(mask.shape)}"
            )


def _largest(values: Tensor, count: int) -> Tensor:
    allowed = int((values > -math.inf).sum())
    if count > allowed:
        raise PruningError(
            f"{count} weights cannot stay where an earlier step left {allowed}; fractions must fall"
        )
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[values.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask


def _count(fraction: float, total: int) -> int:
    return max(1, math.floor(fraction * total + _SLACK))


def _global(sizes: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    flat = torch.cat([size.flatten() for size in sizes.values()])
    mask = _largest(flat, _count(fraction, len(flat)))
    parts = torch.split(mask, [size.numel() for size in sizes.values()])
    return {
        name: part.reshape(size.shape)
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


def _layerwise(sizes: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    return {
        name: _largest(size, _count(fraction, size.numel())).reshape(size.shape)
        for name, size in sizes.items()
    }


SCOPES: dict[str, Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]] = {
    "global": _global,
    "layerwise": _layerwise,
}
