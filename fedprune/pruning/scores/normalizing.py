"""Scores made comparable between layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.pruning.structure.layout import UnitLayout

Scale = Callable[[Tensor], Tensor]


def normalize(scores: Tensor, layout: UnitLayout, how: str) -> Tensor:
    """Divide the scores of each group by their common size.

    Args:
        scores: [..., num_units]; the leading dimensions may be clients.
        layout: The units.
        how: A key of `NORMALIZATIONS`: "none", "layer_mean" (the mean of the group's absolute
            scores) or "layer_l2" (the root of the sum of their squares; Molchanov et al. 2017,
            "Pruning convolutional neural networks for resource efficient inference", section 2.2).

    Returns:
        [..., num_units] of the same type. A group whose scores are all zero stays zero.

    Raises:
        PruningError: if the name is unknown, the scores have another length or are not finite.
    """
    if how not in NORMALIZATIONS:
        raise PruningError(f"how must be one of {', '.join(NORMALIZATIONS)}, got {how!r}")
    if scores.ndim == 0 or scores.shape[-1] != len(layout) or not scores.is_floating_point():
        raise PruningError(
            f"scores must be {len(layout)} numbers for {layout.model_name}, got "
            f"{str(scores.dtype).removeprefix('torch.')} of shape {list(scores.shape)}"
        )
    if how != "none" and not bool(scores.isfinite().all()):
        wrong = scores[~scores.isfinite()][0].item()
        raise PruningError(f"scores must be finite to be compared with others, got {wrong}")
    scale = NORMALIZATIONS[how]
    parts = [scores[..., group.units].double() for group in layout.groups]
    scaled = [part / scale(part).where(scale(part) > 0, 1.0) for part in parts]
    return torch.cat(scaled, -1).to(scores.dtype)


def _one(part: Tensor) -> Tensor:
    return torch.ones_like(part[..., :1])


def _mean(part: Tensor) -> Tensor:
    return part.abs().mean(-1, keepdim=True)


def _l2(part: Tensor) -> Tensor:
    return part.square().sum(-1, keepdim=True).sqrt()


NORMALIZATIONS: dict[str, Scale] = {"none": _one, "layer_mean": _mean, "layer_l2": _l2}
