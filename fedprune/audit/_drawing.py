"""The report's figures: SVG text that takes its colours and font from the page it stands in.

Colours are those of Okabe and Ito (2008), told apart under every common colour blindness; what is
kept and what is removed also differ in shape, so the figures survive black-and-white print.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from xml.sax.saxutils import escape

import matplotlib as mpl
import matplotlib.text
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 8.6  # inches, drawn at 72 points an inch

# Drawn in these colours, which the page replaces by its own for light, dark and print.
INK, MUTED, GRID = "#101112", "#707172", "#d0d1d2"
KEPT, REMOVED, DENSE = "#0072b2", "#d55e00", "#808182"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    KEPT: "var(--kept)",
    REMOVED: "var(--removed)",
    DENSE: "var(--dense)",
}


@dataclass(frozen=True)
class Plot:
    """One figure: inline SVG, its title and alternative text, and a caption."""

    svg: str
    title: str
    caption: str


def new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.set_axisbelow(True)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def in_words(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.1f} %"


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
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
