"""Masks of single weights, for simulation and study only: NO PRIVACY CLAIM is made about them.

Nothing here may leave a client. A mask of single weights tells far more about a client's data than
a report about units can hide, no mechanism of this package is analysed for it, and no part of the
federated app imports this module, which the package's own front door does not export either
(`from fedprune.pruning import weights`). `StudyMasks` is no tensor and refuses to become an array,
bytes or a pickle, so that it cannot be mistaken for a mask of units.

What is studied with it: iterative magnitude pruning and lottery tickets (Han et al. 2015; Frankle &
Carbin 2019), hard against soft thresholding (Donoho & Johnstone 1994; Daubechies et al. 2004).
"""

from fedprune.pruning.weights.masks import (
    SCOPES,
    StudyMasks,
    all_weights,
    apply_masks,
    check_masks,
    hold_at_zero_,
    magnitude_masks,
    masks_of_units,
    prunable_weights,
    random_masks_like,
)
from fedprune.pruning.weights.thresholds import (
    hard_threshold,
    ista,
    shrink_weights_,
    soft_threshold,
)
from fedprune.pruning.weights.tickets import Ticket, iterative_magnitude_pruning

__all__ = [
    "SCOPES",
    "StudyMasks",
    "Ticket",
    "all_weights",
    "apply_masks",
    "check_masks",
    "hard_threshold",
    "hold_at_zero_",
    "ista",
    "iterative_magnitude_pruning",
    "magnitude_masks",
    "masks_of_units",
    "prunable_weights",
    "random_masks_like",
    "shrink_weights_",
    "soft_threshold",
]
