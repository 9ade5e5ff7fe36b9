"""The range that inputs are stated to lie in: checked by name, and kept by attacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import RobustnessError
from fedprune.robustness.arguments import as_floats

Bound = float | Sequence[float] | Tensor
Range = tuple[Bound, Bound]
"""Lowest and highest value of the model's input: numbers, or one value for each channel."""


def check_range(inputs: Tensor, input_range: Range) -> tuple[Tensor, Tensor]:
    """Refuse inputs that leave the range that was stated for them.

    Args:
        inputs: [n, channels, ...] as the model receives them.
        input_range: lowest and highest value, numbers or [channels].

    Returns:
        Both bounds in float64, shaped to broadcast over one example.

    Raises:
        RobustnessError: if the range is empty or of the wrong shape, or an input lies outside;
            names the example, the value and the range.
    """
    if not isinstance(input_range, Sequence | Tensor | np.ndarray) or len(input_range) != 2:
        raise RobustnessError(
            f"input_range must be a lowest and a higher highest value, got {input_range!r:.60}"
        )
    low, high = (_spread(bound, inputs) for bound in input_range)
    if not bool((low < high).all()):
        raise RobustnessError(
            f"input_range must be a lowest and a higher highest value, got {input_range}"
        )
    values = inputs.detach().to(device="cpu", dtype=torch.float64)
    outside = ~((values >= low) & (values <= high))  # NaN is outside
    if bool(outside.any()):
        row = int(outside.flatten(1).any(dim=1).nonzero()[0])
        value = float(values[row][outside[row]][0])
        raise RobustnessError(
            f"input {row} has the value {value:g} outside the stated range {input_range}"
        )
    return low, high


def _spread(bound: Bound, inputs: Tensor) -> Tensor:
    values = as_floats(bound)
    if values is None:
        raise RobustnessError(f"input_range must hold numbers, got {bound!r:.60}")
    if values.ndim > 1 or (values.ndim == 1 and len(values) not in (1, inputs.shape[1])):
        raise RobustnessError(
            f"input_range must hold numbers or one value for each of the {inputs.shape[1]} "
            f"channels, got shape {list(values.shape)}"
        )
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (inputs.ndim - 2))
