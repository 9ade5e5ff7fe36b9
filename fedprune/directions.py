"""Gradients along a direction."""

from __future__ import annotations

import torch
from torch import Tensor


def step_along(outputs: Tensor, direction: Tensor) -> Tensor:
    """Go from some outputs along a direction: their scalar product.

    The gradient with respect to the outputs is the direction, to the bit. Handing the direction to
    autograd gives the same, but has its shape checked symbolically, for which torch imports all of
    SymPy first, in every process.

    Args:
        outputs: [...], with a gradient; values that are not finite do no harm.
        direction: [...], of the same shape.
    """
    with torch.enable_grad():
        return (outputs * direction).sum()
