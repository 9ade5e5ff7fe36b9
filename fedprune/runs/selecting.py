"""The selection that a run's configuration asks for, in the server and in the audit alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import pruning, robustness
from fedprune.config import Config

_BOUND_EVALUATIONS = 60


def select_units(
    config: Config,
    scores: Tensor,
    layout: pruning.UnitLayout,
    budget: Mapping[str, float],
    latency: pruning.LatencyTable | None = None,
) -> Tensor:
    """Select units under a budget, with the configured floor, scope and rounding of widths.

    Args:
        config: the run's.
        scores: [num_units], higher = keep.
        layout: the units.
        budget: fractions by the names `keep_units`, `keep_macs`, `keep_params`, `keep_latency`; at
            least one.
        latency: measured times, for a budget of them.

    Returns:
        [num_units] bool, True = keep.

    Raises:
        PruningError: if the budget cannot be met.
    """
    prune = config.prune
    return pruning.select(
        scores,
        layout,
        keep_units=budget.get("keep_units"),
        keep_macs=budget.get("keep_macs"),
        keep_params=budget.get("keep_params"),
        keep_latency=budget.get("keep_latency"),
        latency=latency,
        floor=prune.floor,
        scope=prune.scope,
        round_to=prune.round_to,
        fill=None if prune.fill == "auto" else prune.fill,
    )


def prefer_units(
    config: Config,
    mask: Tensor,
    values: NDArray[np.float64],
    variance: NDArray[np.float64],
    layout: pruning.UnitLayout,
    model: nn.Module,
    input_std: Sequence[float] | None = None,
) -> robustness.Preference:
    """Among masks that the votes cannot tell from the selected one, prefer a smaller bound.

    Units of a layer may take each other's place, so that every width and budget stays as it is,
    where their values differ by at most `prune.bound_slack` standard deviations of the difference.
    The bound is the product of the layers' certified norms.

    Args:
        config: the run's.
        mask: [num_units] bool, as `select_units` gives it.
        values: [num_units] what the selection was by.
        variance: [num_units] of the values.
        layout: the units.
        model: the network that they are units of.
        input_std: [channels] of the normalisation in front of it, or None.

    Raises:
        UnsupportedOpError: if the network has no bound.
    """
    example = torch.zeros(1, *layout.input_shape)

    def bound_of(candidate: NDArray[np.bool_]) -> float:
        small = pruning.shrink(model, layout, torch.from_numpy(candidate))
        found = robustness.lipschitz(small, example, input_std=input_std, samples=0, tighten=False)
        return found.upper

    weights = pruning.score(model, layout, [], criterion="magnitude_l2").double().numpy()
    return robustness.prefer_smaller_bound(
        mask.numpy().astype(np.bool_),
        values,
        bound_of,
        kinds=np.asarray(layout.group_of, dtype=np.int64),
        tolerance=_tolerance(config, variance),
        influence=weights,
        evaluations=_BOUND_EVALUATIONS,
    )


def may_be_preferred(
    config: Config,
    selected: Tensor,
    mask: Tensor,
    values: NDArray[np.float64],
    variance: NDArray[np.float64],
    layout: pruning.UnitLayout,
) -> bool:
    """Whether `prefer_units` may have made `mask` of the one that was selected.

    The search itself is not repeated: bounds round differently on other machines.
    """
    if not config.prune.bound_slack:
        return torch.equal(selected, mask)
    return robustness.equally_good(
        selected.numpy().astype(np.bool_),
        mask.numpy().astype(np.bool_),
        values,
        kinds=np.asarray(layout.group_of, dtype=np.int64),
        tolerance=_tolerance(config, variance),
    )


def _tolerance(config: Config, variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(config.prune.bound_slack * np.sqrt(2 * variance))
