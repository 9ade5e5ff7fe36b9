"""Silence units (`mask_model`) or remove them for good (`shrink`): the outputs are the same.

The slicing of each layer is torch-pruning's; which channels go is the layout's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import PruningError
from fedprune.pruning.structure.members import DEPTHWISE_MARK, Layer

if TYPE_CHECKING:
    from fedprune.pruning.structure.layout import UnitLayout

Kept = NDArray[np.bool_]


def mask_model(model: nn.Module, layout: UnitLayout, mask: Tensor) -> nn.Module:
    """Copy a model with every removed unit silent; all shapes stay.

    What a removed unit's layers put out is zero, and its readers no longer read it, so that the
    copy equals the shrunk model also where an activation does not map zero to zero.

    Args:
        model: The model that the layout was made of; it is not changed.
        layout: Its units.
        mask: [num_units] bool, True = keep.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the mask has the wrong length or leaves a layer without channels.
    """
    masked, modules = _copied(model, layout, mask)
    keep = layout.checked(mask).numpy()
    with torch.no_grad():
        for layer in layout.layers:
            silence = SILENCERS[layer.kind]
            silence(
                modules[layer.name],
                layer,
                ~_kept(layer.in_units, keep),
                ~_kept(layer.out_units, keep),
            )
    return masked


def shrink(model: nn.Module, layout: UnitLayout, mask: Tensor) -> nn.Module:
    """Copy a model without its removed units: smaller layers, the same outputs as `mask_model`.

    The remaining channels keep their order; mode, dtype and `requires_grad` are kept.

    Args:
        model: The model that the layout was made of; it is not changed.
        layout: Its units.
        mask: [num_units] bool, True = keep.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the mask has the wrong length or leaves a layer without channels.
    """
    small, modules = _copied(model, layout, mask)
    keep = layout.checked(mask).numpy()
    trained = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    for layer in layout.layers:
        module = modules[layer.name]
        _remove(module, layer, ~_kept(layer.in_units, keep), ~_kept(layer.out_units, keep))
        if layer.kind == "depthwise" or layer.groups > 1:
            # Down to one channel a group, depthwise and grouped layers look alike: remember.
            setattr(module, DEPTHWISE_MARK, layer.kind == "depthwise")
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(trained[name])
    return small


def compose_masks(outer: Tensor, inner: Tensor) -> Tensor:
    """Write a mask over the units that `outer` kept back over all of them.

    Args:
        outer: [num_units] bool.
        inner: [outer.sum()] bool, over the units of the model that `outer` shrank.

    Raises:
        PruningError: if the lengths do not fit.
    """
    kept = int(outer.sum())
    if outer.dtype != torch.bool or inner.dtype != torch.bool or tuple(inner.shape) != (kept,):
        raise PruningError(
            f"the inner mask must be one boolean for each of the {kept} units that the outer mask "
            f"keeps, got {str(inner.dtype).removeprefix('torch.')} of shape {list(inner.shape)}"
        )
    composed = outer.clone()
    composed[outer] = inner.to(outer.device)
    return composed


def _copied(
    model: nn.Module, layout: UnitLayout, mask: Tensor
) -> tuple[nn.Module, dict[str, nn.Module]]:
    layout.check_model(model)
    _check_alive(layout, layout.checked(mask).numpy())
    duplicate = copy_model(model)
    return duplicate, dict(duplicate.named_modules())


def _check_alive(layout: UnitLayout, keep: Kept) -> None:
    for group in layout.groups:
        if not keep[group.units].any():
            raise PruningError(
                f"the mask removes all {len(group)} units of group {group.name}; at least one "
                f"must stay"
            )
    for layer in layout.layers:
        for side, units in (("input", layer.in_units), ("output", layer.out_units)):
            if not _kept(units, keep).any():
                raise PruningError(
                    f"the mask removes all {len(units)} {side} channels of {layer.name}; at least "
                    f"one must stay"
                )


def _kept(units: NDArray[np.int64], keep: Kept) -> Kept:
    """Which channels stay: those of kept units and those that no unit owns."""
    return np.where(units >= 0, keep[units], True)


def _silence_matrix(module: Any, layer: Layer, gone_in: Kept, gone_out: Kept) -> None:
    if not (gone_in.any() or gone_out.any()):
        return
    weight = module.weight
    transposed = bool(getattr(module, "transposed", False))
    by_output = weight.transpose(0, 1) if transposed else weight
    by_output[torch.from_numpy(gone_out)] = 0
    if layer.kind != "depthwise":
        width = len(gone_in) // layer.groups  # the groups are alike
        by_output[:, torch.from_numpy(gone_in[:width])] = 0
    if module.bias is not None:
        module.bias[torch.from_numpy(gone_out)] = 0


def _silence_norm(module: Any, layer: Layer, gone_in: Kept, gone_out: Kept) -> None:  # noqa: ARG001
    for parameter in (module.weight, module.bias):
        if parameter is not None:
            parameter[torch.from_numpy(gone_out)] = 0


def _remove_from_norm(module: Any, gone: list[int]) -> None:
    """Remove channels of a norm; of a group norm only whole groups ever go together."""
    if not isinstance(module, nn.GroupNorm):
        tp.prune_batchnorm_out_channels(module, gone)
        return
    width = module.num_channels // module.num_groups
    kept = torch.ones(module.num_channels, dtype=torch.bool)
    kept[gone] = False
    module.num_channels -= len(gone)
    module.num_groups = module.num_channels // width
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach()[kept]))


def _leave(module: Any, layer: Layer, gone_in: Kept, gone_out: Kept) -> None:
    """A slope has nothing to silence: zero stays zero."""


SILENCERS: dict[str, Callable[[Any, Layer, Kept, Kept], None]] = {
    "conv": _silence_matrix,
    "depthwise": _silence_matrix,
    "linear": _silence_matrix,
    "norm": _silence_norm,
    "prelu": _leave,
}

_REMOVERS: dict[tuple[str, str], Callable[[Any, list[int]], Any]] = {
    ("conv", "in"): tp.prune_conv_in_channels,
    ("conv", "out"): tp.prune_conv_out_channels,
    ("depthwise", "out"): tp.prune_depthwise_conv_out_channels,
    ("linear", "in"): tp.prune_linear_in_channels,
    ("linear", "out"): tp.prune_linear_out_channels,
    ("norm", "out"): _remove_from_norm,
    ("prelu", "out"): tp.prune_prelu_out_channels,
}


def _remove(module: Any, layer: Layer, gone_in: Kept, gone_out: Kept) -> None:
    for side, gone in (("in", gone_in), ("out", gone_out)):
        remover = _REMOVERS.get((layer.kind, side))
        if remover is not None and gone.any():
            remover(module, np.flatnonzero(gone).tolist())
