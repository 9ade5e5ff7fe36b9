"""Accuracy before and after, by way of choosing the mask and by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedprune.audit._drawing import (
    DENSE,
    GRID,
    INK,
    KEPT,
    MUTED,
    Plot,
    in_words,
    new_figure,
    short,
    to_svg,
)
from fedprune.audit._wording import PERCENT, number

MAX_GROUPS = 40


@dataclass(frozen=True)
class Outcome:
    """Accuracy of one way to choose the mask, before and after the same fine-tuning."""

    name: str
    before: float | None
    after: float | None
    own: bool


def plot_accuracy(
    outcomes: Sequence[Outcome], dense: float | None, name: str = "accuracy"
) -> Plot | None:
    """Draw accuracy before and after fine-tuning for every way to choose the mask."""
    drawn = [o for o in outcomes if o.after is not None or o.before is not None][::-1]
    if not drawn:
        return None
    figure, axes = new_figure(0.9 + 0.42 * len(drawn))
    for row, outcome in enumerate(drawn):
        colour = KEPT if outcome.own else INK
        _dumbbell(axes, row, outcome.before, outcome.after, colour)
    if dense is not None:
        axes.axvline(dense, color=DENSE, linewidth=1.2, linestyle=(0, (5, 3)))
        top = len(drawn) - 0.42
        axes.text(dense, top, "dense ", ha="right", va="bottom", color=MUTED, fontsize=8.5)
    _name_rows(axes, [o.name for o in drawn], [o.own for o in drawn])
    _percent_axis(axes, "accuracy")
    alt = "; ".join(
        f"{o.name}: {in_words(o.before)} to {in_words(o.after)}" for o in reversed(drawn)
    )
    caption = (
        "Open: right after pruning. Filled: after the same fine-tuning. The private mask is blue."
    )
    title = "Accuracy by how the mask was chosen"
    return Plot(to_svg(figure, name, title, f"{title}. {alt}."), title, caption)


def plot_groups(
    groups: Sequence[Mapping[str, Any]], confidence: float, name: str = "groups"
) -> Plot | None:
    """Draw each group's accuracy, dense and pruned, with intervals.

    Args:
        groups: as `fairness.groups` of a summary; groups that are too small are left out.
        confidence: of the intervals.
        name: prefix of the ids in the SVG.

    Returns:
        The plot, or None where no group has a figure.
    """
    sides = ("accuracy_dense", "accuracy_pruned")
    known = [g for g in groups if all(number(g.get(side)) is not None for side in sides)]
    if not known:
        return None
    drawn = known
    if len(known) > MAX_GROUPS:
        drawn = sorted(known, key=lambda group: float(group["accuracy_pruned"]))[:MAX_GROUPS]
    drawn = drawn[::-1]
    figure, axes = new_figure(0.9 + 0.4 * len(drawn))
    for row, group in enumerate(drawn):
        _interval(axes, row + 0.13, group["accuracy_dense"], group.get("interval_dense"), DENSE)
        _interval(axes, row - 0.13, group["accuracy_pruned"], group.get("interval_pruned"), KEPT)
    _name_rows(axes, [str(group["name"]) for group in drawn], [False] * len(drawn))
    _percent_axis(axes, "accuracy")
    caption = f"Grey: dense. Blue: pruned. Lines: {100 * confidence:g}{PERCENT} intervals."
    if len(drawn) < len(known):
        caption += f" Of {len(known)} groups the {len(drawn)} with the lowest accuracy are drawn."
    alt = "; ".join(
        f"{g['name']}: {in_words(g['accuracy_dense'])} to {in_words(g['accuracy_pruned'])}"
        for g in reversed(drawn)
    )
    title = "Accuracy by group"
    return Plot(to_svg(figure, name, title, f"{title}, dense to pruned. {alt}."), title, caption)


def _dumbbell(axes: Axes, row: int, before: float | None, after: float | None, colour: str) -> None:
    if before is not None and after is not None:
        axes.plot([before, after], [row, row], color=colour, alpha=0.35, linewidth=2)
    if before is not None:
        axes.plot([before], [row], "o", color=colour, markersize=6.5, mew=1.4, mfc="none")
    if after is not None:
        axes.plot([after], [row], "o", color=colour, markersize=7)


def _interval(axes: Axes, row: float, value: float, interval: object, colour: str) -> None:
    ends = [number(end) for end in interval] if isinstance(interval, list | tuple) else []
    known = [end for end in ends if end is not None]
    if len(known) == 2:
        axes.plot(known, [row, row], color=colour, alpha=0.55, linewidth=1.6)
    axes.plot([value], [row], "o", color=colour, markersize=6)


def _name_rows(axes: Axes, names: Sequence[str], strong: Sequence[bool]) -> None:
    axes.set_yticks(range(len(names)), [short(name, 34) for name in names])
    for label, bold in zip(axes.get_yticklabels(), strong, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if bold else "normal")
        label.set_fontsize(9.5)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _percent_axis(axes: Axes, label: str) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(max(-0.01, low), min(1.01, high))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    digits = 0 if np.diff(axes.get_xticks()).min() > 0.0099 else 1
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.{digits}f}{PERCENT}")
    axes.xaxis.grid(True, color=GRID, linewidth=0.7)
    axes.set_xlabel(label, color=MUTED, fontsize=9)
