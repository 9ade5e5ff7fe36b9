"""The selection that a run's configuration asks for, in the server and in the audit alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedprune import pruning
from fedprune.config import Config


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
