"""A table of measured layer times, from which the time of every smaller model is predicted.

What a processor needs for a layer is no smooth function of its widths: vector instructions and
cache blocks make a staircase of it, and below some width nothing is saved. So every distinct layer
is timed at a grid of widths. What lies between the layers (activations, additions, calls) is taken
for a constant and a factor, fitted to whole networks that were thinned and timed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.hardware.latency import latency
from fedprune.hardware.layer_times import Grid, axis_of, measure_grids
from fedprune.hardware.layers import layer_inputs
from fedprune.hardware.machine import machine
from fedprune.hardware.timing import check_counts
from fedprune.pruning.structure.costs import Integers, Measure, Widths
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.members import PARAMETRIC, Layer
from fedprune.pruning.structure.surgery import shrink

_FORMAT = 1
_THINNED = (0.5, 0.25)  # fractions of every group at which whole networks are timed, besides all


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Measured times of a model's layers over widths, on one machine.

    Attributes:
        machine: What it was measured on, as plain JSON values.
        batch_size: Examples a pass.
        threads: Processor threads.
        repeats: Timed turns; medians count.
        shape_of: From each layer to the name of its shape; layers of one shape share a grid.
        grids: By shape.
        overhead_ms: Time of the rest of the model, whatever its widths.
        factor: Time of the whole model, without the overhead, over the sum of its layers'.
        calibration: The whole networks that were timed: fraction of every group kept, measured and
            predicted milliseconds.
    """

    machine: Mapping[str, Any]
    batch_size: int
    threads: int
    repeats: int
    shape_of: Mapping[str, str]
    grids: Mapping[str, Grid]
    overhead_ms: float
    factor: float
    calibration: tuple[tuple[float, float, float], ...]

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        layout: UnitLayout,
        example_input: Tensor,
        *,
        batch_size: int = 1,
        threads: int = 1,
        repeats: int = 7,
        points: int = 8,
    ) -> LatencyTable:
        """Time every distinct layer of a model at a grid of widths.

        Args:
            model: The model that the layout was made of; it is not changed.
            layout: Its units.
            example_input: [rows, ...]; rows are repeated to fill the batch.
            batch_size: Examples a pass.
            threads: Processor threads that torch may use.
            repeats: Timed turns of each point; medians count.
            points: Widths on each axis of the grid, at most; layers that no unit has a part in
                are timed as they are.

        Raises:
            LayoutMismatchError: if the model's layers are not the layout's.
            PruningError: if `points` is below 2.
            ConfigError: if another count is out of range.
            ModelError: if the model cannot process the batch.
        """
        check_counts("a latency table", batch_size=batch_size, threads=threads, repeats=repeats)
        if not isinstance(points, int) or points < 2:
            raise PruningError(f"points of a latency table must be at least 2, got {points}")
        layout.check_model(model)
        batch = example_input[torch.arange(batch_size) % max(len(example_input), 1)]
        inputs = layer_inputs(model, batch, PARAMETRIC)
        run = [layer for layer in layout.layers if layer.name in inputs]
        shape_of = {layer.name: _shape(layer, model, inputs[layer.name]) for layer in run}
        grids = measure_grids(
            _to_measure(run, shape_of, model, inputs, points), repeats=repeats, threads=threads
        )
        bare = cls(
            machine().describe(), batch_size, threads, repeats, shape_of, grids, 0.0, 1.0, ()
        )
        return bare._calibrated(model, layout, example_input)

    def _calibrated(
        self, model: nn.Module, layout: UnitLayout, example_input: Tensor
    ) -> LatencyTable:
        masks = {keep: _thinned_mask(layout, keep) for keep in (1.0, *_THINNED)}
        networks = {str(keep): shrink(model, layout, mask) for keep, mask in masks.items()}
        timed = latency(
            networks,
            example_input,
            batch_size=self.batch_size,
            repeats=max(10, 2 * self.repeats),
            threads=self.threads,
        )
        wanted = np.array([timed[name].median_ms for name in networks])
        sums = np.array([self.predict(layout, mask) for mask in masks.values()])
        # Relative errors count: the small network is what the table is for.
        design = np.stack([np.ones_like(sums), sums], axis=1) / wanted[:, None]
        (overhead, factor), _ = nnls(design, np.ones_like(wanted))
        predicted = overhead + factor * sums
        points = zip(masks, wanted.tolist(), predicted.tolist(), strict=True)
        return LatencyTable(
            self.machine, self.batch_size, self.threads, self.repeats, self.shape_of, self.grids,
            float(overhead), float(factor), tuple(points),
        )  # fmt: skip

    def measure_of(self, layout: UnitLayout) -> Measure:
        """What a budget of time counts, for the model that the table is of or a smaller one.

        Raises:
            PruningError: if a layer of the layout was not timed, or only narrower.
        """
        for layer in layout.layers:
            self._check_timed(layer, layout.model_name)
        found = [self.grids.get(self.shape_of.get(layer.name, "")) for layer in layout.layers]

        def of_layers(rows: Integers, n_in: Widths, n_out: Widths) -> NDArray[Any]:
            times = np.zeros(np.shape(n_out), dtype=np.float64)
            for column, row in enumerate(rows.tolist()):
                grid = found[row]
                if grid is not None:
                    times[..., column] = grid.at(n_in[..., column], n_out[..., column])
            return self.factor * times

        return Measure(of_layers, other=self.overhead_ms)

    def _check_timed(self, layer: Layer, model_name: str) -> None:
        grid = self.grids.get(self.shape_of.get(layer.name, ""))
        if grid is None and layer.positions > 0:
            raise PruningError(
                f"the latency table is of another model than {model_name}: it has no layer "
                f"{layer.name}"
            )
        if grid is not None and len(layer.out_units) > grid.outs[-1]:
            raise PruningError(
                f"the latency table is of another model than {model_name}: {layer.name} has "
                f"{len(layer.out_units)} outputs and was timed with at most {grid.outs[-1]:g}"
            )

    def predict(self, layout: UnitLayout, mask: Tensor) -> float:
        """Milliseconds of a pass of the model shrunk to a mask [num_units] bool.

        Raises:
            PruningError: if the mask does not fit or the layout is of another model.
        """
        return layout.costs.total(self.measure_of(layout), layout.checked(mask).numpy())

    def save(self, path: str | Path) -> None:
        """Write the table as JSON; an existing file is replaced only by a whole one."""
        stored = {
            "format": _FORMAT,
            "machine": dict(self.machine),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "repeats": self.repeats,
            "overhead_ms": self.overhead_ms,
            "factor": self.factor,
            "calibration": [list(row) for row in self.calibration],
            "layers": dict(self.shape_of),
            "grids": {name: grid.describe() for name, grid in self.grids.items()},
        }
        unfinished = Path(f"{path}.part")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table that `save` wrote.

        Raises:
            PruningError: if the file is missing, damaged or no such table.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            if stored["format"] != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}, got {stored['format']!r}")
            grids = {name: Grid.described(grid) for name, grid in stored["grids"].items()}
            unknown = set(stored["layers"].values()) - grids.keys()
            if unknown:
                raise ValueError(f"no grid of shape {min(unknown)!r}")
            times = [float(stored["overhead_ms"]), float(stored["factor"])]
            counts = [int(stored[key]) for key in ("batch_size", "threads", "repeats")]
            if not all(math.isfinite(time) and time >= 0 for time in times) or min(counts) < 1:
                raise ValueError("times must be at least 0 and counts at least 1")
            return cls(
                machine=dict(stored["machine"]),
                batch_size=counts[0],
                threads=counts[1],
                repeats=counts[2],
                shape_of=dict(stored["layers"]),
                grids=grids,
                overhead_ms=times[0],
                factor=times[1],
                calibration=tuple((float(a), float(b), float(c))
                                  for a, b, c in stored["calibration"]),
            )  # fmt: skip
        except OSError as error:
            raise PruningError(f"cannot read the latency table {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruningError(f"{path} is no latency table: {error}") from error


def _thinned_mask(layout: UnitLayout, keep: float) -> Tensor:
    mask = torch.zeros(len(layout), dtype=torch.bool)
    for group in layout.groups:
        mask[group.start : group.start + max(1, round(keep * len(group)))] = True
    return mask


def _shape(layer: Layer, model: nn.Module, inputs: Tensor) -> str:
    """Everything that decides a layer's time but its widths."""
    module: Any = model.get_submodule(layer.name)
    linear = layer.kind == "linear"
    around = inputs.shape[:-1] if linear else (inputs.shape[0], *inputs.shape[2:])
    details = {
        key: getattr(module, key)
        for key in ("kernel_size", "stride", "padding", "dilation", "output_padding")
        if hasattr(module, key)
    }
    parts = [
        type(module).__name__,
        layer.kind,
        f"groups={layer.groups}",
        f"vectors={layer.vectors}",
    ]
    parts += [f"{key}={value}" for key, value in details.items()]
    # What no unit has a part in keeps its widths, so that these belong to its shape.
    if not (layer.in_units >= 0).any():
        parts.append(f"in={len(layer.in_units)}")
    if not (layer.out_units >= 0).any():
        parts.append(f"out={len(layer.out_units)}")
    return f"{'x'.join(map(str, around))} {' '.join(parts)}"


def _to_measure(
    layers: list[Layer],
    shape_of: Mapping[str, str],
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    points: int,
) -> dict[str, tuple[nn.Module, Tensor, list[int], list[int]]]:
    found: dict[str, tuple[nn.Module, Tensor, list[int], list[int]]] = {}
    for shape in dict.fromkeys(shape_of.values()):
        alike = [layer for layer in layers if shape_of[layer.name] == shape]
        first = alike[0]
        ins = _axis([layer.in_units for layer in alike], points, first.groups)
        outs = _axis([layer.out_units for layer in alike], points, _multiple(first, model))
        matrix = first.kind in ("conv", "linear")
        found[shape] = (
            model.get_submodule(first.name), inputs[first.name], ins if matrix else [0], outs
        )  # fmt: skip
    return found


def _axis(channels: list[NDArray[np.int64]], points: int, multiple: int) -> list[int]:
    widest = max(len(units) for units in channels)
    if not any((units >= 0).any() for units in channels):
        return [widest]
    return axis_of(widest, points, multiple)


def _multiple(layer: Layer, model: nn.Module) -> int:
    module: Any = model.get_submodule(layer.name)
    if isinstance(module, nn.GroupNorm):
        return module.num_channels // module.num_groups
    return layer.groups
