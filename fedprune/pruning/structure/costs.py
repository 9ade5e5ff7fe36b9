"""Exact parameters and multiply-accumulates of a model shrunk to any mask.

A layer with n inputs and m outputs left has kernel·n·m/groups weights and `vectors`·m further
parameters; every weight multiplies once at each position. So a cost is known from how many of
its channels each layer keeps, without touching the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.pruning.structure.members import Layer

Integers = NDArray[np.int64]
Widths = NDArray[Any]  # int64, or float64 where layers are thinned by a fraction


class Costs:
    """Counts what the layers cost when some of their channels are gone."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        num_units: int,
        other_params: int = 0,
        other_macs: int = 0,
    ) -> None:
        """Index the layers' channels by unit; `other_params` and `other_macs` never change."""
        self.layers, self.num_units = layers, num_units
        self.other = {"params": other_params, "macs": other_macs}
        priced = np.array([not layer.is_selection for layer in layers], dtype=np.int64)
        self.kernel = np.array([layer.kernel for layer in layers], dtype=np.int64) * priced
        self.vectors = np.array([layer.vectors for layer in layers], dtype=np.int64) * priced
        self.positions = np.array([layer.positions for layer in layers], dtype=np.int64)
        self.divisor = np.array([layer.groups for layer in layers], dtype=np.int64)
        # A depthwise output reads one input only: its inputs do not multiply its outputs.
        self.is_matrix = np.array([layer.kind in ("conv", "linear") for layer in layers])
        self.inputs = _Members([layer.in_units for layer in layers])
        self.outputs = _Members([layer.out_units for layer in layers])

    @staticmethod
    def own_params(layer: Layer) -> int:
        """Parameters of one whole layer."""
        return Costs((layer,), 0).dense("params")

    @staticmethod
    def own_macs(layer: Layer) -> int:
        """Multiply-accumulates of one whole layer for one example."""
        return Costs((layer,), 0).dense("macs")

    def dense(self, cost: str) -> int:
        """`params` or `macs` of the whole model."""
        layers = self._layer_macs if cost == "macs" else self._layer_params
        return int(layers(self.inputs.total, self.outputs.total).sum()) + self.other[cost]

    def params(self, mask: NDArray[np.bool_]) -> int:
        """Parameters of the model shrunk to a mask [num_units]."""
        kept = self._layer_params(self.inputs.kept(mask), self.outputs.kept(mask))
        return int(kept.sum()) + self.other["params"]

    def macs(self, mask: NDArray[np.bool_]) -> int:
        """Multiply-accumulates for one example of the model shrunk to a mask [num_units]."""
        kept = self._layer_macs(self.inputs.kept(mask), self.outputs.kept(mask))
        return int(kept.sum()) + self.other["macs"]

    def thinned(self, keep: float, cost: str) -> float:
        """`params` or `macs` if every layer kept the same fraction of its units' channels."""
        n_in, n_out = self.inputs.thinned(keep), self.outputs.thinned(keep)
        layers = self._layer_macs if cost == "macs" else self._layer_params
        return float(layers(n_in, n_out).sum()) + self.other[cost]

    def unit_params(self) -> Integers:
        """Parameters saved by removing each unit alone, [num_units]."""
        return self._savings("params")

    def unit_macs(self) -> Integers:
        """Multiply-accumulates saved by removing each unit alone, [num_units]."""
        return self._savings("macs")

    def measure(self, cost: str) -> Measure:
        """What a budget of `units`, `params` or `macs` counts."""
        if cost == "units":
            return Measure(lambda _rows, n_in, _n_out: np.zeros_like(n_in), other=0, per_unit=1)
        return Measure(partial(self.priced, cost), other=self.other[cost])

    def total(self, measure: Measure, mask: NDArray[np.bool_]) -> float:
        """What a measure says of the model shrunk to a mask [num_units]."""
        rows = np.arange(len(self.layers))
        layers = measure.of_layers(rows, self.inputs.kept(mask), self.outputs.kept(mask))
        return float(layers.sum()) + measure.other + measure.per_unit * int(mask.sum())

    def thinned_total(self, measure: Measure, keep: float) -> float:
        """What a measure says if every layer kept the same fraction of its units' channels."""
        rows = np.arange(len(self.layers))
        layers = measure.of_layers(rows, self.inputs.thinned(keep), self.outputs.thinned(keep))
        return float(layers.sum()) + measure.other + measure.per_unit * keep * self.num_units

    def changes(self) -> Changes:
        """How many inputs and outputs of which layers each unit owns."""
        units, rows, d_in, d_out = _changes(self.inputs, self.outputs, self.num_units)
        return Changes(np.searchsorted(units, np.arange(self.num_units + 1)), rows, d_in, d_out)

    def priced(self, cost: str, rows: Integers, n_in: Widths, n_out: Widths) -> Widths:
        """Cost of the layers `rows` with so many inputs and outputs, [..., rows]."""
        weights = self._weights(n_in, n_out, rows)
        if cost == "macs":
            return np.asarray(weights * self.positions[rows])
        return np.asarray(weights + self.vectors[rows] * n_out)

    def _weights(self, n_in: Any, n_out: Any, rows: Any = slice(None)) -> Any:
        divide = np.floor_divide if np.issubdtype(n_in.dtype, np.integer) else np.true_divide
        pairs = divide(n_in * n_out, self.divisor[rows])
        return self.kernel[rows] * np.where(self.is_matrix[rows], pairs, n_out)

    def _layer_params(self, n_in: Any, n_out: Any) -> Any:
        return self._weights(n_in, n_out) + self.vectors * n_out

    def _layer_macs(self, n_in: Any, n_out: Any) -> Any:
        return self._weights(n_in, n_out) * self.positions

    def _savings(self, cost: str) -> Integers:
        units, rows, d_in, d_out = _changes(self.inputs, self.outputs, self.num_units)
        n_in, n_out = self.inputs.total[rows], self.outputs.total[rows]
        saved = self.priced(cost, rows, n_in, n_out) - self.priced(
            cost, rows, n_in - d_in, n_out - d_out
        )
        savings = np.zeros(self.num_units, dtype=np.int64)
        np.add.at(savings, units, saved)
        return savings


@dataclass(frozen=True)
class Measure:
    """A cost that is a sum over layers of what their numbers of inputs and outputs decide.

    Attributes:
        of_layers: From layers [rows] and their inputs and outputs [..., rows] to [..., rows].
        other: What no width changes.
        per_unit: What each unit adds by itself.
    """

    of_layers: Callable[[Integers, Widths, Widths], NDArray[Any]]
    other: float
    per_unit: int = 0


@dataclass(frozen=True, eq=False)
class Changes:
    """Which layers each unit has channels in, unit after unit.

    Attributes:
        starts: Where each unit's entries begin, [num_units + 1].
        rows: The layer of each entry.
        d_in: The inputs of that layer that the unit owns.
        d_out: The outputs of that layer that the unit owns.
    """

    starts: Integers
    rows: Integers
    d_in: Integers
    d_out: Integers

    def of(self, units: Integers) -> tuple[Integers, Integers, Integers]:
        """Distinct layers of some units, and the inputs and outputs of each that they own."""
        if len(units) == 1:
            own = slice(self.starts[units[0]], self.starts[units[0] + 1])
            return self.rows[own], self.d_in[own], self.d_out[own]
        places = np.concatenate(
            [np.arange(self.starts[unit], self.starts[unit + 1]) for unit in units]
        )
        rows, where = np.unique(self.rows[places], return_inverse=True)
        d_in = np.bincount(where, weights=self.d_in[places], minlength=len(rows))
        d_out = np.bincount(where, weights=self.d_out[places], minlength=len(rows))
        return rows, d_in.astype(np.int64), d_out.astype(np.int64)


class Running:
    """Several measures of a growing set of units, in time proportional to the layers touched."""

    def __init__(self, costs: Costs, mask: NDArray[np.bool_], measures: Sequence[Measure]) -> None:
        """Start from a mask [num_units]; `totals` is what each measure says of it."""
        self._measures, self._changes = measures, costs.changes()
        self._n_in, self._n_out = costs.inputs.kept(mask), costs.outputs.kept(mask)
        self.totals = [costs.total(measure, mask) for measure in measures]

    def after(self, units: Integers) -> list[float]:
        """What each measure would say with some further units."""
        rows, d_in, d_out = self._changes.of(units)
        n_in, n_out = self._n_in[rows], self._n_out[rows]
        return [
            total
            + float(
                measure.of_layers(rows, n_in + d_in, n_out + d_out).sum()
                - measure.of_layers(rows, n_in, n_out).sum()
            )
            + measure.per_unit * len(units)
            for total, measure in zip(self.totals, self._measures, strict=True)
        ]

    def add(self, units: Integers) -> None:
        """Keep some further units."""
        self.totals = self.after(units)
        rows, d_in, d_out = self._changes.of(units)
        self._n_in[rows] += d_in
        self._n_out[rows] += d_out


class _Members:
    """Which layer owns how many channels of which unit, on one side of the layers."""

    def __init__(self, channels: list[Integers]) -> None:
        self.num_layers = len(channels)
        self.total = np.array([len(units) for units in channels], dtype=np.int64)
        owned = [units >= 0 for units in channels]
        self.fixed = self.total - np.array([mine.sum() for mine in owned], dtype=np.int64)
        empty = np.zeros(0, dtype=np.int64)
        self.units = np.concatenate([empty, *(u[o] for u, o in zip(channels, owned, strict=True))])
        self.rows = np.repeat(np.arange(self.num_layers), self.total - self.fixed)

    def kept(self, mask: NDArray[np.bool_]) -> Integers:
        alive = self.rows[mask[self.units]]
        return self.fixed + np.bincount(alive, minlength=self.num_layers)

    def thinned(self, keep: float) -> NDArray[np.float64]:
        return self.fixed + keep * (self.total - self.fixed)


def _changes(
    inputs: _Members, outputs: _Members, num_units: int
) -> tuple[Integers, Integers, Integers, Integers]:
    """Units, layers and how many inputs and outputs of the layer the unit owns; by unit."""
    num_layers = max(inputs.num_layers, 1)
    ins = np.bincount(inputs.units * num_layers + inputs.rows, minlength=num_units * num_layers)
    outs = np.bincount(outputs.units * num_layers + outputs.rows, minlength=num_units * num_layers)
    keys = np.flatnonzero(ins + outs)
    return keys // num_layers, keys % num_layers, ins[keys], outs[keys]
