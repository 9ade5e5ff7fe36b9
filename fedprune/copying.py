"""Copies of models, of those too that torch's own copy refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from fedprune.errors import ModelError

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model, shared: Iterable[Tensor] = ()) -> Model:
    """Copy a model, also one that keeps results of its last call.

    `copy.deepcopy` refuses tensors with a history: features that a model keeps for whoever asks,
    and weights that `torch.nn.utils.spectral_norm`, `weight_norm` and `prune` compute in hooks.
    Their values are copied, the history is not.

    Args:
        model: any module; it is not changed.
        shared: tensors that the copy is to hold itself, such as parameters of several threads.

    Raises:
        ModelError: if the model holds something that cannot be copied, such as a lock.
    """
    known = {id(tensor): tensor for tensor in shared}
    kept = [
        tensor
        for module in model.modules()
        for tensor in tensors_in(list(vars(module).values()))
        if tensor.grad_fn is not None and id(tensor) not in known
    ]
    known |= {id(tensor): tensor.detach().clone() for tensor in kept}
    try:
        return copy.deepcopy(model, known)
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{type(model).__name__} cannot be copied: {reason}") from error


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a value, of what tuples, lists and dictionaries hold too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
