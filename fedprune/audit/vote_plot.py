"""The votes of all units, layer by layer, with what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fedprune.audit._drawing import (
    GRID,
    INK,
    KEPT,
    MUTED,
    REMOVED,
    Plot,
    new_figure,
    short,
    to_svg,
)
from fedprune.audit._wording import PERCENT

MAX_UNITS = 1200  # more are thinned evenly, and the caption says so
Z95 = 1.959963984540054


def plot_votes(
    votes: Mapping[str, NDArray[Any]], layers: Sequence[tuple[str, int]], name: str = "votes"
) -> Plot | None:
    """Draw every unit's vote with its 95 % interval, layer by layer.

    Args:
        votes: `mean` and `variance` [num_units], `mask` [num_units] bool, and `posterior`
            [num_units] where a prior was used.
        layers: each layer's name and number of units, in unit order; used if they add up.
        name: prefix of the ids in the SVG.

    Returns:
        The plot, or None where there are no votes to draw.
    """
    if not {"mean", "variance", "mask"} <= votes.keys() or len(votes["mean"]) == 0:
        return None
    mean, variance = (np.asarray(votes[key], dtype=np.float64) for key in ("mean", "variance"))
    mask = np.asarray(votes["mask"], dtype=np.bool_)
    posterior = votes.get("posterior")
    chosen_by = mean if posterior is None else np.asarray(posterior, dtype=np.float64)
    if not np.all(np.isfinite(mean) & np.isfinite(variance) & np.isfinite(chosen_by)):
        return None
    sizes = [units for _, units in layers]
    layers = layers if sum(sizes) == len(mean) else [("all units", len(mean))]
    order, shown = _order(chosen_by, [units for _, units in layers])
    half = Z95 * np.sqrt(np.maximum(variance, 0))
    figure, axes = new_figure(3.6)
    _draw_votes(axes, order, shown, mean, half, chosen_by, mask)
    _mark_layers(axes, layers)
    dots = "the vote" if posterior is None else "the posterior that the mask was chosen by"
    caption = (
        f"Line: the vote, an unbiased estimate of the share of clients that keep the unit, with "
        f"its 95{PERCENT} interval. Dot: {dots}; filled where the unit stays, a cross where it "
        f"goes. Units stand by layer, the most wanted first."
    )
    if len(shown) < len(mean):
        caption += f" Of {len(mean):,} units {len(shown):,} are drawn, evenly spaced."
    alt = f"Votes of {len(mean)} units with intervals; {int(mask.sum())} are kept."
    return Plot(to_svg(figure, name, "Votes per unit", alt), "Votes per unit", caption)


def _order(
    values: NDArray[np.float64], sizes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units by layer and falling value, and the places of those to draw."""
    order: list[int] = []
    for start, units in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        order += (start + np.argsort(-values[start : start + units], kind="stable")).tolist()
    step = -(-len(values) // MAX_UNITS)
    return np.asarray(order, dtype=np.int64), np.arange(0, len(values), step)


def _draw_votes(
    axes: Axes,
    order: NDArray[np.int64],
    shown: NDArray[np.int64],
    mean: NDArray[np.float64],
    half: NDArray[np.float64],
    chosen_by: NDArray[np.float64],
    mask: NDArray[np.bool_],
) -> None:
    for keep, colour, marker, label in (
        (True, KEPT, "o", "kept"),
        (False, REMOVED, "x", "removed"),
    ):
        places = shown[mask[order[shown]] == keep]
        units = order[places]
        # One broken path draws all lines: far smaller than a path for each.
        x = np.repeat(places.astype(np.float64), 3)
        y = np.stack([mean[units] - half[units], mean[units] + half[units]], axis=1)
        y = np.concatenate([y, np.full((len(units), 1), np.nan)], axis=1).ravel()
        axes.plot(x, y, color=colour, alpha=0.32, linewidth=1.1, solid_capstyle="butt")
        size = 3.4 if len(shown) <= 250 else 2.4
        axes.plot(
            places, chosen_by[units], marker, color=colour, markersize=size, label=label, mew=0.9
        )
    axes.margins(x=0.01)
    units = order[shown]
    axes.set_ylim(
        max(-1.0, min(float((mean - half)[units].min()), float(chosen_by.min())) - 0.03),
        min(2.0, max(float((mean + half)[units].max()), float(chosen_by.max())) + 0.03),
    )
    axes.yaxis.grid(True, color=GRID, linewidth=0.7)
    axes.set_ylabel("share of clients that keep it", color=MUTED, fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}{PERCENT}")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9,
        handletextpad=0.2, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_color(INK)


def _mark_layers(axes: Axes, layers: Sequence[tuple[str, int]]) -> None:
    ends = np.cumsum([units for _, units in layers])
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color=GRID, linewidth=0.9)
    total, last = int(ends[-1]), -1.0
    ticks: list[float] = []
    names: list[str] = []
    for (name, units), end in zip(layers, ends, strict=True):
        centre = end - units / 2 - 0.5
        # Slanted names need about a 20th of the width each; further ones would overlap.
        if centre - last >= total / 20 or not ticks:
            ticks.append(float(centre))
            names.append(short(name, 24))
            last = centre
    slant = len(ticks) > 5
    axes.set_xticks(
        ticks, names, rotation=35 if slant else 0, ha="right" if slant else "center",
        rotation_mode="anchor",
    )  # fmt: skip
