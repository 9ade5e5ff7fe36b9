"""Certified accuracy over radii, beside what attacks left standing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.audit._drawing import (
    DENSE,
    GRID,
    KEPT,
    MUTED,
    Plot,
    in_words,
    new_figure,
    to_svg,
)
from fedprune.audit._wording import PERCENT, number


def plot_certified(certified: Mapping[str, Any], unit: str, name: str = "certified") -> Plot | None:
    """Draw certified accuracy over radii, dense and pruned, with pointwise intervals.

    Args:
        certified: as `certified_accuracy` of a summary; what attacks left standing is drawn with
            it where rows were attacked.
        unit: of the radii; "" where it has no name.
        name: prefix of the ids in the SVG.

    Returns:
        The plot, or None where there is no curve to draw.
    """
    curve, attacked = (_mapping(certified.get(key)) for key in ("curve", "attacked"))
    figure, axes = new_figure(2.8)
    told = []
    for side, colour, marker in (("dense", DENSE, "s"), ("pruned", KEPT, "o")):
        lines = _lines(curve, side, ("certified", "low", "high"))
        if lines is None:
            return None
        radii, shares, low, high = lines
        axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(radii, shares, color=colour, marker=marker, markersize=4)
        told.append(f"{side} {in_words(shares[0])} to {in_words(shares[-1])}")
        standing = _lines(attacked, side, ("standing",))
        if standing is not None:
            axes.plot(*standing, color=colour, marker=marker, markersize=3, ls="--", lw=1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], [f"0{PERCENT}", f"50{PERCENT}", f"100{PERCENT}"])
    axes.grid(color=GRID, linewidth=0.6)
    radius = f"l2 radius, in {unit}" if unit else "l2 radius"
    axes.set_xlabel(radius, color=MUTED, fontsize=9)
    title = "Certified accuracy by radius"
    caption = (
        "Grey: dense. Blue: pruned. Bands: exact intervals, radius by radius. At 0 "
        "it is the share of these rows that is right by more than rounding could change."
    )
    if attacked:
        caption += (
            " Dashed: the share of the attacked rows that no attack of the radius broke; for "
            "those rows the truth lies at or below it."
        )
    return Plot(to_svg(figure, name, title, f"{title}: {'; '.join(told)}."), title, caption)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lines(
    curve: Mapping[str, Any], side: str, keys: Sequence[str]
) -> list[NDArray[np.float64]] | None:
    """Radii and the values of one side at them, [radii] each; None where some are missing."""
    radii, own = curve.get("radii"), _mapping(curve.get(side))
    lists = [radii, *(own.get(key) for key in keys)]
    lines = [[number(value) for value in one] for one in lists if isinstance(one, list)]
    whole = len(lines) == len(lists) and len({len(line) for line in lines}) == 1
    if not whole or any(None in line for line in lines):
        return None
    return [np.array(line, dtype=np.float64) for line in lines]
