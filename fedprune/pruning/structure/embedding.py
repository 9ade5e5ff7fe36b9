"""The way back from a shrunk model to the dense shape, so that removed units can be asked about."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import LayoutMismatchError
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.surgery import shrink


def embed(small: nn.Module, dense: nn.Module, layout: UnitLayout, mask: Tensor) -> nn.Module:
    """Copy a dense model with the values of a shrunk one wherever units were kept.

    Removed units keep the values that they have in `dense`, so that shrinking what comes out gives
    the small model again.

    Args:
        small: `shrink(model of the dense shape, layout, mask)`, maybe trained since; not changed.
        dense: a model that the layout is of; not changed.
        layout: the dense model's units.
        mask: [num_units] bool, the units that the small model has.

    Raises:
        LayoutMismatchError: if the models or the mask do not belong together.
    """
    places = shrink(_numbered(dense), layout, mask).state_dict()
    values = small.state_dict()
    if {n: t.shape for n, t in places.items()} != {n: t.shape for n, t in values.items()}:
        raise LayoutMismatchError(
            f"the small model is not what the mask leaves of this {type(dense).__name__}"
        )
    whole = copy_model(dense)
    with torch.no_grad():
        for name, tensor in whole.state_dict().items():
            if tensor.is_floating_point():
                flat = tensor.flatten()  # a copy where the order in memory is another
                flat[places[name].long().flatten()] = values[name].flatten()
                tensor.copy_(flat.view(tensor.shape))
            else:
                tensor.copy_(values[name])
    return whole


def _numbered(model: nn.Module) -> nn.Module:
    """Copy a model with every number replaced by its own place, so that slicing tells places."""
    numbered = copy_model(model).double()  # exact up to 2^53 places
    with torch.no_grad():
        for tensor in numbered.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))
    return numbered
