"""A sweep's picture: accuracy and recall over the swept keys, with intervals over seeds.

Colours are those of Okabe and Ito (2008), told apart under every common colour blindness; what is
compared differs in line and mark, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedprune.config import Scalar

JsonDict = dict[str, Any]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b2a900")
_MOST_FACETS = 6
_SHIFT = 0.06  # between lines, in steps of the horizontal axis, so that intervals can be told apart
_PANEL_WIDTH, _PANEL_HEIGHT, _LEGEND_WIDTH = 4.3, 3.1, 2.4  # inches


@dataclass(frozen=True)
class _Line:
    column: str
    name: str
    style: Any
    mark: str
    intervals: bool = False


_ACCURACIES = (
    _Line("accuracy_private", "private votes", "-", "o", intervals=True),
    _Line("accuracy_votes_without_noise", "votes without noise", (0, (1, 1.5)), "^"),
    _Line("accuracy_magnitude", "magnitude", (0, (5, 2)), "s"),
)
_RECALLS = (
    _Line("mask_recall", "private votes", "-", "o", intervals=True),
    _Line("mask_recall_without_prior", "without the prior", (0, (3, 1, 1, 1)), "v"),
)


@dataclass(frozen=True)
class _Axes:
    """Which keys go where: along the axis, into colours, into rows of panels."""

    along: tuple[str, tuple[Scalar, ...]]
    colours: tuple[str, tuple[Scalar, ...]] | None
    facets: tuple[Mapping[str, Scalar], ...]
    left_out: int


def draw(groups: Sequence[JsonDict], confidence: float, title: str) -> str | None:
    """Draw a sweep as one self-contained SVG.

    Args:
        groups: as `of_groups` gives them: settings, and means with intervals.
        confidence: of the intervals.
        title: of the picture.

    Returns:
        The SVG's text; None where no run has an accuracy or a recall.
    """
    shown = [g for g in groups if any(g["means"].get(line.column) for line in _ACCURACIES)]
    shown = shown or [g for g in groups if g["means"].get("mask_recall")]
    if not shown:
        return None
    axes = _arranged(groups)
    rows = len(axes.facets)
    size = (2 * _PANEL_WIDTH + _LEGEND_WIDTH, _PANEL_HEIGHT * rows + 0.9)
    with mpl.rc_context({"svg.hashsalt": "fedprune", "font.size": 9, "axes.titlesize": 9.5}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(rows, 2, squeeze=False)
        for number, facet in enumerate(axes.facets):
            own = [group for group in groups if _within(group, facet)]
            _panel(panels[number][0], own, axes, _ACCURACIES, "accuracy after fine-tuning", facet)
            _dense(panels[number][0], own)
            _panel(panels[number][1], own, axes, _RECALLS, "recall of the mask", facet)
        figure.legend(handles=_legend(axes), loc="outside right upper", frameon=False)
        figure.supxlabel(_footnote(groups, axes, confidence), fontsize=7.5, color="#505050")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    return text.getvalue()


def _arranged(groups: Sequence[JsonDict]) -> _Axes:
    """Put the first key with several numbers along the axis, the next key into colours."""
    keys = {key: _values(groups, key) for key in groups[0]["settings"]}
    several = [key for key in keys if len(keys[key]) > 1] or list(keys)
    if not several:
        return _Axes(("", ("",)), None, ({},), 0)
    along = next((key for key in several if all(map(_is_number, keys[key]))), several[0])
    rest = [key for key in several if key != along]
    colour = next((key for key in rest if len(keys[key]) <= len(_COLOURS)), None)
    others = [key for key in rest if key != colour]
    facets: list[Mapping[str, Scalar]] = []
    for group in groups:
        facet = {key: group["settings"][key] for key in others}
        if facet not in facets:
            facets.append(facet)
    return _Axes(
        (along, keys[along]),
        None if colour is None else (colour, keys[colour]),
        tuple(facets[:_MOST_FACETS]),
        max(0, len(facets) - _MOST_FACETS),
    )


def _values(groups: Sequence[JsonDict], key: str) -> tuple[Scalar, ...]:
    values = tuple(dict.fromkeys(group["settings"][key] for group in groups))
    return tuple(sorted(values)) if all(map(_is_number, values)) else values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(group: JsonDict, settings: Mapping[str, Scalar]) -> bool:
    return all(group["settings"][key] == value for key, value in settings.items())


def _panel(
    panel: Axes,
    groups: Sequence[JsonDict],
    axes: _Axes,
    lines: Sequence[_Line],
    label: str,
    facet: Mapping[str, Scalar],
) -> None:
    key, values = axes.along
    hues = axes.colours[1] if axes.colours else (None,)
    for place, hue in enumerate(hues):
        own = groups
        if axes.colours and hue is not None:
            own = [group for group in groups if group["settings"][axes.colours[0]] == hue]
        shift = _SHIFT * (place - (len(hues) - 1) / 2)
        for line in lines:
            _curve(panel, own, key, values, line, _COLOURS[place], shift)
    panel.set_xticks(range(len(values)), [_short(value) for value in values])
    panel.set_xlim(-0.35, len(values) - 0.65)
    panel.set_xlabel(key)
    panel.set_ylabel(label)
    panel.yaxis.set_major_locator(MaxNLocator(6))
    panel.grid(axis="y", color="#d8d8d8", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if facet:
        panel.set_title(", ".join(f"{name} = {_short(value)}" for name, value in facet.items()))


def _curve(
    panel: Axes,
    groups: Sequence[JsonDict],
    key: str,
    values: Sequence[Scalar],
    line: _Line,
    colour: str,
    shift: float,
) -> None:
    found = {group["settings"].get(key, ""): group for group in groups}
    there = [(i, found[value]) for i, value in enumerate(values) if value in found]
    points = [(i, group) for i, group in there if group["means"].get(line.column)]
    if not points:
        return
    xs = [place + shift for place, _ in points]
    ys = [group["means"][line.column]["mean"] for _, group in points]
    strong = line.intervals
    panel.plot(
        xs, ys, linestyle=line.style, marker=line.mark, color=colour, markersize=5 if strong else 4,
        linewidth=1.6 if strong else 1.0, alpha=1.0 if strong else 0.65,
        markerfacecolor=colour if strong else "white",
    )  # fmt: skip
    for x, (_, group) in zip(xs, points, strict=True):
        ends = _interval(group, line.column)
        if strong and ends is not None:
            panel.plot([x, x], ends, color=colour, linewidth=1.1)


def _interval(group: JsonDict, column: str) -> list[float] | None:
    """Over seeds; with a single seed, of an accuracy, over its clients."""
    mean = group["means"][column]
    if mean["low"] is not None:
        return [mean["low"], mean["high"]]
    return group.get("accuracy_private_over_clients") if column == "accuracy_private" else None


def _dense(panel: Axes, groups: Sequence[JsonDict]) -> None:
    """Mark the dense networks' accuracies, each once."""
    means = [group["means"].get("accuracy_dense") for group in groups]
    for value in sorted({mean["mean"] for mean in means if mean}):
        panel.axhline(value, color="#808080", linewidth=1.0, linestyle=(0, (2, 2)))


def _legend(axes: _Axes) -> list[Line2D]:
    lines = [
        Line2D([], [], color="#303030", linestyle=line.style, marker=line.mark, label=line.name,
               markerfacecolor="#303030" if line.intervals else "white")
        for line in (*_ACCURACIES, _RECALLS[1])
    ]  # fmt: skip
    lines.append(Line2D([], [], color="#808080", linestyle=(0, (2, 2)), label="dense network"))
    if axes.colours:
        key, values = axes.colours
        lines += [
            Line2D([], [], color=_COLOURS[i], linewidth=4, label=f"{key} = {_short(value)}")
            for i, value in enumerate(values)
        ]
    return lines


def _footnote(groups: Sequence[JsonDict], axes: _Axes, confidence: float) -> str:
    most = max(len(group["seeds"]) for group in groups)
    said = (
        f"vertical lines: {confidence:.0%} Student-t intervals over {most} seeds"
        if most > 1
        else "one seed; vertical lines: intervals over its clients, of accuracy only"
    )
    left = f"; {axes.left_out} more combinations are in the table" if axes.left_out else ""
    return f"{said}; each epsilon is an alternative to the others, not a part of a sum{left}"


def _short(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
