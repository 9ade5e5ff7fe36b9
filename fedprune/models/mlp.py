"""A multilayer perceptron for tables and small images."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn


def mlp(
    input_shape: tuple[int, ...], num_classes: int, *, hidden: tuple[int, ...] = (64, 32)
) -> nn.Sequential:
    """Build dense layers fc1, fc2, ... with ReLU between; inputs of any shape are flattened."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(input_shape) > 1:
        layers["flatten"] = nn.Flatten()
    width = math.prod(input_shape)
    for number, next_width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(width, next_width)
        layers[f"relu{number}"] = nn.ReLU()
        width = next_width
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)
