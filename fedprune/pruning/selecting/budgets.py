"""Budgets: what a smaller model may still have of the units, weights, operations or time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedprune.errors import PruningError
from fedprune.pruning.structure.costs import Measure

if TYPE_CHECKING:
    from fedprune.pruning.selecting.latency_table import LatencyTable
    from fedprune.pruning.structure.layout import UnitLayout

_SLACK = 1e-9  # 0.7 * 10 units are 7 units, whatever binary fractions say


@dataclass(frozen=True)
class Budget:
    """A limit on one measure of the model.

    Attributes:
        name: `keep_units`, `keep_macs`, `keep_params` or `keep_latency`.
        fraction: Of the whole model, in (0, 1].
        measure: What counts against it.
        dense: What the whole model measures.
        limit: The most that the smaller model may measure.
    """

    name: str
    fraction: float
    measure: Measure
    dense: float
    limit: float

    @property
    def cost(self) -> str:
        """What is limited: `units`, `macs`, `params` or `latency`."""
        return self.name.removeprefix("keep_")

    @property
    def unit(self) -> str:
        """What the limit is counted in."""
        return "ms" if self.cost == "latency" else self.cost


def budgets_of(
    layout: UnitLayout,
    fractions: Mapping[str, float | None],
    latency: LatencyTable | None = None,
) -> tuple[Budget, ...]:
    """Turn fractions by name into limits, in the order of `fractions`.

    Args:
        layout: The units.
        fractions: From `keep_units`, `keep_macs`, `keep_params` and `keep_latency` to a fraction
            in (0, 1], or None where there is no such budget.
        latency: Needed by `keep_latency`.

    Raises:
        PruningError: if there is no budget, a fraction is out of range, or `keep_latency` and the
            table do not come together.
    """
    given = {name: value for name, value in fractions.items() if value is not None}
    if not given:
        raise PruningError(f"at least one of {', '.join(fractions)} must be given, got none")
    if ("keep_latency" in given) != (latency is not None):
        raise PruningError(
            "keep_latency and latency, a table of measured times, must be given together, got "
            f"keep_latency = {given.get('keep_latency')} and "
            f"{'a' if latency is not None else 'no'} table"
        )
    return tuple(_budget(layout, name, value, latency) for name, value in given.items())


def _budget(layout: UnitLayout, name: str, fraction: float, latency: LatencyTable | None) -> Budget:
    if not 0 < fraction <= 1:
        raise PruningError(f"{name} must be in (0, 1], got {fraction}")
    fraction, cost = float(fraction), name.removeprefix("keep_")
    if cost != "units" and not layout.has_costs:
        raise PruningError(f"{name} counts what units cost, and separate gates cost nothing alone")
    if name == "keep_latency":
        assert latency is not None
        measure = latency.measure_of(layout)
        dense = layout.costs.thinned_total(measure, 1.0)
        return Budget(name, fraction, measure, dense, fraction * dense * (1 + _SLACK))
    measure = layout.costs.measure(cost)
    dense = len(layout) if cost == "units" else layout.costs.dense(cost)
    return Budget(name, fraction, measure, dense, math.floor(fraction * dense * (1 + _SLACK)))
