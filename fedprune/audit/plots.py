"""The report's figures: SVG text that takes its colours and font from the page it stands in.

Colours are those of Okabe and Ito (2008), told apart under every common colour blindness; what is
kept and what is removed also differ in shape, so the figures survive black-and-white print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
import matplotlib.text
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedprune.audit._wording import PERCENT, number

WIDTH = 8.6  # inches, drawn at 72 points an inch
MAX_UNITS = 1200  # more are thinned evenly, and the caption says so
MAX_GROUPS = 40
Z95 = 1.959963984540054

# Drawn in these colours, which the page replaces by its own for light, dark and print.
_INK, _MUTED, _GRID = "#101112", "#707172", "#d0d1d2"
_KEPT, _REMOVED, _DENSE = "#0072b2", "#d55e00", "#808182"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _KEPT: "var(--kept)",
    _REMOVED: "var(--removed)",
    _DENSE: "var(--dense)",
}


@dataclass(frozen=True)
class Plot:
    """One figure: inline SVG, its title and alternative text, and a caption."""

    svg: str
    title: str
    caption: str


@dataclass(frozen=True)
class Outcome:
    """Accuracy of one way to choose the mask, before and after the same fine-tuning."""

    name: str
    before: float | None
    after: float | None
    own: bool


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
    figure, axes = _figure(3.6)
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
    return Plot(_to_svg(figure, name, "Votes per unit", alt), "Votes per unit", caption)


def plot_accuracy(
    outcomes: Sequence[Outcome], dense: float | None, name: str = "accuracy"
) -> Plot | None:
    """Draw accuracy before and after fine-tuning for every way to choose the mask."""
    drawn = [o for o in outcomes if o.after is not None or o.before is not None][::-1]
    if not drawn:
        return None
    figure, axes = _figure(0.9 + 0.42 * len(drawn))
    for row, outcome in enumerate(drawn):
        colour = _KEPT if outcome.own else _INK
        _dumbbell(axes, row, outcome.before, outcome.after, colour)
    if dense is not None:
        axes.axvline(dense, color=_DENSE, linewidth=1.2, linestyle=(0, (5, 3)))
        top = len(drawn) - 0.42
        axes.text(dense, top, "dense ", ha="right", va="bottom", color=_MUTED, fontsize=8.5)
    _name_rows(axes, [o.name for o in drawn], [o.own for o in drawn])
    _percent_axis(axes, "accuracy")
    alt = "; ".join(f"{o.name}: {_say(o.before)} to {_say(o.after)}" for o in reversed(drawn))
    caption = (
        "Open: right after pruning. Filled: after the same fine-tuning. The private mask is blue."
    )
    title = "Accuracy by how the mask was chosen"
    return Plot(_to_svg(figure, name, title, f"{title}. {alt}."), title, caption)


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
    figure, axes = _figure(0.9 + 0.4 * len(drawn))
    for row, group in enumerate(drawn):
        _interval(axes, row + 0.13, group["accuracy_dense"], group.get("interval_dense"), _DENSE)
        _interval(axes, row - 0.13, group["accuracy_pruned"], group.get("interval_pruned"), _KEPT)
    _name_rows(axes, [str(group["name"]) for group in drawn], [False] * len(drawn))
    _percent_axis(axes, "accuracy")
    caption = f"Grey: dense. Blue: pruned. Lines: {100 * confidence:g}{PERCENT} intervals."
    if len(drawn) < len(known):
        caption += f" Of {len(known)} groups the {len(drawn)} with the lowest accuracy are drawn."
    alt = "; ".join(
        f"{g['name']}: {_say(g['accuracy_dense'])} to {_say(g['accuracy_pruned'])}"
        for g in reversed(drawn)
    )
    title = "Accuracy by group"
    return Plot(_to_svg(figure, name, title, f"{title}, dense to pruned. {alt}."), title, caption)


def plot_certified(curve: Mapping[str, Any], unit: str, name: str = "certified") -> Plot | None:
    """Draw certified accuracy over radii, dense and pruned, with pointwise intervals.

    Args:
        curve: as `certified_accuracy.curve` of a summary.
        unit: of the radii; "" where it has no name.
        name: prefix of the ids in the SVG.

    Returns:
        The plot, or None where there is no curve to draw.
    """
    radii = curve.get("radii")
    sides = [curve.get(side) for side in ("dense", "pruned")]
    if not isinstance(radii, list) or not all(isinstance(side, Mapping) for side in sides):
        return None
    figure, axes = _figure(2.8)
    told = []
    for side, values, colour, marker in zip(
        ("dense", "pruned"), sides, (_DENSE, _KEPT), ("s", "o"), strict=True
    ):
        assert isinstance(values, Mapping)
        lines = [[number(value) for value in values.get(key, ())] for key in _CURVE_LINES]
        if any(len(line) != len(radii) or None in line for line in lines):
            return None
        certified, low, high = (np.array(line, dtype=np.float64) for line in lines)
        axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(radii, certified, color=colour, marker=marker, markersize=4)
        told.append(f"{side} {_say(certified[0])} to {_say(certified[-1])}")
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], [f"0{PERCENT}", f"50{PERCENT}", f"100{PERCENT}"])
    axes.grid(color=_GRID, linewidth=0.6)
    radius = f"l2 radius, in {unit}" if unit else "l2 radius"
    axes.set_xlabel(radius, color=_MUTED, fontsize=9)
    title = "Certified accuracy by radius"
    caption = (
        f"Grey: dense. Blue: pruned. Bands: exact 95{PERCENT} intervals, radius by radius. At 0 "
        "it is the share of these rows that is right by more than rounding could change."
    )
    return Plot(_to_svg(figure, name, title, f"{title}: {'; '.join(told)}."), title, caption)


_CURVE_LINES = ("certified", "low", "high")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.set_axisbelow(True)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


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
        (True, _KEPT, "o", "kept"),
        (False, _REMOVED, "x", "removed"),
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
    axes.yaxis.grid(True, color=_GRID, linewidth=0.7)
    axes.set_ylabel("share of clients that keep it", color=_MUTED, fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}{PERCENT}")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9,
        handletextpad=0.2, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_color(_INK)


def _mark_layers(axes: Axes, layers: Sequence[tuple[str, int]]) -> None:
    ends = np.cumsum([units for _, units in layers])
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color=_GRID, linewidth=0.9)
    total, last = int(ends[-1]), -1.0
    ticks: list[float] = []
    names: list[str] = []
    for (name, units), end in zip(layers, ends, strict=True):
        centre = end - units / 2 - 0.5
        # Slanted names need about a 20th of the width each; further ones would overlap.
        if centre - last >= total / 20 or not ticks:
            ticks.append(float(centre))
            names.append(_short(name, 24))
            last = centre
    slant = len(ticks) > 5
    axes.set_xticks(
        ticks, names, rotation=35 if slant else 0, ha="right" if slant else "center",
        rotation_mode="anchor",
    )  # fmt: skip


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
    axes.set_yticks(range(len(names)), [_short(name, 34) for name in names])
    for label, bold in zip(axes.get_yticklabels(), strong, strict=True):
        label.set_color(_INK)
        label.set_fontweight("bold" if bold else "normal")
        label.set_fontsize(9.5)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _percent_axis(axes: Axes, label: str) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(max(-0.01, low), min(1.01, high))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    digits = 0 if np.diff(axes.get_xticks()).min() > 0.0099 else 1
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.{digits}f}{PERCENT}")
    axes.xaxis.grid(True, color=_GRID, linewidth=0.7)
    axes.set_xlabel(label, color=_MUTED, fontsize=9)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _say(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.1f} %"


def _to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Draw to SVG text for a page: real text, page colours, ids that no other figure has."""
    buffer = io.StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.usetex": False}),
        warnings.catch_warnings(),
    ):
        # The reader's browser has the glyphs; matplotlib only measures with its own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for text in figure.findobj(mpl.text.Text):
            text.set_parse_math(False)  # a "$" in a name is a "$"
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"(font(?:-family)?: [^;\"']*)'[^;\"]*", r"\1var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {72 * figure.get_figwidth():g} {72 * figure.get_figheight():g}">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
