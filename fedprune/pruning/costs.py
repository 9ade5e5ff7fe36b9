"""Exact parameters and multiply-accumulates of a model shrunk to any mask.

A layer with n inputs and m outputs left has kernel·n·m/groups weights and `vectors`·m further
parameters; every weight multiplies once at each position. So a cost is known from how many of
its channels each layer keeps, without touching the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.pruning.members import Layer

Integers = NDArray[np.int64]


class Costs:
    """Counts what the layers cost when some of their channels are gone."""

    def __init__(self, layers: tuple[Layer, ...], num_units: int, other_params: int) -> None:
        """Index the layers' channels by unit; `other_params` never change."""
        self.layers, self.num_units, self.other_params = layers, num_units, other_params
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
        alone = Costs((layer,), 0, 0)
        n_in, n_out = np.array([len(layer.in_units)]), np.array([len(layer.out_units)])
        return int(alone._layer_params(n_in, n_out)[0])

    def params(self, mask: NDArray[np.bool_]) -> int:
        """Parameters of the model shrunk to a mask [num_units]."""
        kept = self._layer_params(self.inputs.kept(mask), self.outputs.kept(mask))
        return int(kept.sum()) + self.other_params

    def macs(self, mask: NDArray[np.bool_]) -> int:
        """Multiply-accumulates for one example of the model shrunk to a mask [num_units]."""
        return int(self._layer_macs(self.inputs.kept(mask), self.outputs.kept(mask)).sum())

    def thinned(self, keep: float, cost: str) -> float:
        """`params` or `macs` if every layer kept the same fraction of its units' channels."""
        n_in, n_out = self.inputs.thinned(keep), self.outputs.thinned(keep)
        if cost == "macs":
            return float(self._layer_macs(n_in, n_out).sum())
        return float(self._layer_params(n_in, n_out).sum()) + self.other_params

    def unit_params(self) -> Integers:
        """Parameters saved by removing each unit alone, [num_units]."""
        return self._savings("params")

    def unit_macs(self) -> Integers:
        """Multiply-accumulates saved by removing each unit alone, [num_units]."""
        return self._savings("macs")

    def running(self, mask: NDArray[np.bool_], cost: str) -> RunningCost:
        """Start counting from a mask, one further unit at a time."""
        return RunningCost(self, mask, cost)

    def priced(self, cost: str, rows: Integers, n_in: Integers, n_out: Integers) -> Integers:
        """Cost of the layers `rows` with so many inputs and outputs."""
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


class RunningCost:
    """The cost of a growing set of units, in time proportional to each unit's own layers."""

    def __init__(self, costs: Costs, mask: NDArray[np.bool_], cost: str) -> None:
        """Start from a mask; `cost` is `params` or `macs`."""
        self._costs, self._cost = costs, cost
        self._n_in, self._n_out = costs.inputs.kept(mask), costs.outputs.kept(mask)
        units, rows, d_in, d_out = _changes(costs.inputs, costs.outputs, costs.num_units)
        self._starts = np.searchsorted(units, np.arange(costs.num_units + 1))
        self._rows, self._d_in, self._d_out = rows, d_in, d_out
        self.total = costs.macs(mask) if cost == "macs" else costs.params(mask)

    def price(self, unit: int) -> int:
        """What one further unit would cost now."""
        rows, n_in, n_out = self._after(unit)
        before = self._costs.priced(self._cost, rows, self._n_in[rows], self._n_out[rows])
        return int((self._costs.priced(self._cost, rows, n_in, n_out) - before).sum())

    def add(self, unit: int) -> None:
        """Keep one further unit."""
        self.total += self.price(unit)
        rows, self._n_in[rows], self._n_out[rows] = self._after(unit)

    def _after(self, unit: int) -> tuple[Integers, Integers, Integers]:
        own = slice(self._starts[unit], self._starts[unit + 1])
        rows = self._rows[own]
        return rows, self._n_in[rows] + self._d_in[own], self._n_out[rows] + self._d_out[own]


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
