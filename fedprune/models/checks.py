"""What every built network must do: turn one example into one row of finite logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError


def check_runs(model: nn.Module, input_shape: tuple[int, ...], num_classes: int, name: str) -> None:
    """Run a network in evaluation mode on one example of zeros.

    Args:
        model: it is left in evaluation mode.
        input_shape: of one example.
        num_classes: what it must put out, [1, num_classes] finite float32.
        name: how it was asked for, named in every complaint.

    Raises:
        ModelError: if it fails, or gives something else.
    """
    example = torch.zeros(1, *input_shape)
    try:
        with torch.no_grad():
            output = model.eval()(example)
    except Exception as error:  # what somebody's network may raise cannot be listed
        raise ModelError(
            f"{name} does not run on an example of shape {list(input_shape)}: {one_line(error)}"
        ) from error
    found = _described(output)
    wanted = f"float32 of shape [1, {num_classes}]"
    if found != wanted:
        raise ModelError(
            f"{name} must turn one example of shape {list(input_shape)} into logits, {wanted}, "
            f"got {found}"
        )
    if not bool(output.isfinite().all()):
        raise ModelError(
            f"{name} gives values that are not finite on an example of zeros of shape "
            f"{list(input_shape)}"
        )


def one_line(error: BaseException) -> str:
    """Say an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _described(output: object) -> str:
    if not isinstance(output, Tensor):
        return type(output).__name__
    return f"{str(output.dtype).removeprefix('torch.')} of shape {list(output.shape)}"
