"""Rewinding: kept units go back to the values that they had early in training.

After each pruning step of a lottery ticket the kept weights return to initialisation (Frankle &
Carbin 2019, "The Lottery Ticket Hypothesis") or to step k, early in training (Frankle et al. 2020,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis"), and training starts again from there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import ModelError, PruningError
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.surgery import mask_model, shrink


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's parameters and buffers, so that later training does not touch them."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def rewind(
    dense: nn.Module,
    reference: Mapping[str, Tensor],
    layout: UnitLayout | None = None,
    mask: Tensor | None = None,
    *,
    shrunk: bool = False,
) -> nn.Module:
    """Copy a model with the values of a reference state, and only the units that a mask keeps.

    Statistics of batch norms go back too. A mask speaks about all units of the dense model; the
    masks of an iterative schedule are first joined by `compose_masks`.

    Args:
        dense: a model of the dense shape, whatever its values; it is not changed.
        reference: the dense model's state at initialisation or at step k, from `snapshot` or
            `models.read_state`.
        layout: the dense model's units; needed with a mask.
        mask: [num_units] bool, True = keep; None keeps all.
        shrunk: whether removed units are cut off (`shrink`) or only silent (`mask_model`); the
            outputs are the same.

    Returns:
        The rewound model, in the mode of `dense`.

    Raises:
        ModelError: if the reference is not a state of this model or is not finite.
        PruningError: if only one of layout and mask is given, or the mask does not fit.
        LayoutMismatchError: if the model's layers are not the layout's.
    """
    if (layout is None) != (mask is None):
        raise PruningError("a layout and a mask go together, got only one of them")
    if shrunk and mask is None:
        raise PruningError("a shrunk model needs a mask of the units that stay, got none")
    rewound = with_state(dense, reference)
    if layout is None or mask is None:
        return rewound
    return shrink(rewound, layout, mask) if shrunk else mask_model(rewound, layout, mask)


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model with other values of all its parameters and buffers.

    Raises:
        ModelError: naming the first tensor that is missing, unknown, misshapen or not finite.
    """
    duplicate = copy_model(model)
    own = duplicate.state_dict()
    for name in (*own, *state):
        _check(name, own, state, type(model).__name__)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return duplicate


def _check(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], model: str) -> None:
    if name not in own or name not in state:
        where = "the reference state" if name in state else "the model"
        raise ModelError(f"a reference state must be of this {model}: {name} is only in {where}")
    if own[name].shape != state[name].shape:
        raise ModelError(
            f"a reference state must be of this {model}: {name} has shape "
            f"{list(state[name].shape)}, not {list(own[name].shape)}; rewinding wants the dense "
            f"model, from which the kept units are cut"
        )
    if not bool(state[name].isfinite().all()):
        raise ModelError(f"a reference state must be finite, {name} of {model} is not")
