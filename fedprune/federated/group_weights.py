"""Weights of groups' examples, as a training question carries them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import FederationError

Floats = NDArray[np.float64]


def write_weights(weights: Floats) -> str:
    """Write weights [num_groups] for `read_weights`."""
    return " ".join(f"{weight:.9g}" for weight in weights)


def read_weights(text: str, num_groups: int) -> Floats:
    """Read the groups' weights out of a question.

    Raises:
        FederationError: if they are not one finite number of at least 0 for each group.
    """
    try:
        weights = np.array([float(part) for part in text.split()])
    except ValueError:
        weights = np.empty(0)
    if len(weights) != num_groups or not np.isfinite(weights).all() or (weights < 0).any():
        raise FederationError(
            f"group weights must be {num_groups} finite numbers of at least 0, got {text!r}"
        )
    return weights
