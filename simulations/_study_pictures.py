"""One style for the pictures of the small studies; `_study` hands these names on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#f0e442")


def panels(count: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Any]]:
    """A picture with so many panels side by side."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def curve(
    panel: Any,
    places: Sequence[float],
    rows: Sequence[dict[str, Any]],
    label: str,
    number: int,
    line: str = "-o",
    bars: bool = True,
) -> None:
    """One curve of means, with their 95 % intervals unless there would be too many to read."""
    means = np.array([row["mean"] for row in rows])
    low = np.array([row["low"] for row in rows])
    half = np.nan_to_num(means - low) if bars else None
    panel.errorbar(places, means, yerr=half, fmt=line, color=COLOURS[number % len(COLOURS)],
                   label=label, ms=3.5, lw=1.2)  # fmt: skip


def label(panel: Any, title: str, across: str, up: str, beside: bool = False) -> None:
    """Title, axes, grid and legend in one style; a long legend stands beside the panel."""
    panel.set_title(title, size=10)
    panel.set(xlabel=across, ylabel=up)
    if "accuracy" in up:  # an interval of few repetitions may reach far beyond
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, 0), min(high, 1.02))
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[1]:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
        panel.legend(fontsize=7, **place)
