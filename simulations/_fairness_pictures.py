"""Results of the fairness study as lines of text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _fairness_judging import HARDEST
from matplotlib.figure import Figure


def line(row: dict[str, Any]) -> str:
    """One result as text."""
    found = row["summary"]
    if found["gap_change"] is None:
        return f"{row['dataset']} {row['grouping']}: no two groups have 30 rows"
    name = row.get("mitigation", row.get("stage"))
    low, high = found["gap_change_interval"]
    text = (
        f"{row['dataset']:<8}{row['grouping']:<11}{row['keep']:>4g} {name:<25}accuracy "
        f"{100 * found['accuracy']['dense']:5.1f} to {100 * found['accuracy']['pruned']:5.1f}, gap "
        f"{100 * found['gap_dense']:5.1f} to {100 * found['gap_pruned']:5.1f}, pair "
        f"{100 * found['pair']['change']:+5.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    if row["what"] == "mitigation":
        share = (
            "nothing to close" if row["closed"] is None else f"closes {100 * row['closed']:.0f} %"
        )
        text += f", {share}, accuracy {100 * row['accuracy_gained']:+.1f}"
    return text


def draw(rows: list[dict[str, Any]], seed: int, path: Path) -> None:
    """Growth of the followed pair's difference: by keep fraction, and by mitigation."""
    own = [row for row in rows if row["seed"] == seed and row["summary"]["pair"] is not None]
    kinds = list(dict.fromkeys((row["dataset"], row["grouping"]) for row in own))
    figure = Figure(figsize=(9, 2.4 * max(1, len(kinds))), layout="constrained")
    panels = figure.subplots(max(1, len(kinds)), 2, squeeze=False)
    for (left, middle), kind in zip(panels, kinds, strict=False):
        these = [row for row in own if (row["dataset"], row["grouping"]) == kind]
        cuts = [row for row in these if row.get("stage") == "fine-tuned"]
        bars(left, [label(f"{row['keep']:g}", row) for row in cuts], cuts)
        helped = [row for row in these if row["what"] == "mitigation"]
        names = [
            f"keep {row['keep']:g}, chosen" if "choice" in row else row["mitigation"]
            for row in helped
        ]
        bars(middle, [label(*pair) for pair in zip(names, helped, strict=True)], helped)
        left.set(title=f"{kind[0]} by {kind[1]}", ylabel="keep fraction")
        middle.set(title=f"keep {HARDEST:g}: what helps")
    figure.supxlabel(
        "growth of the followed pair's difference, points, 95 % (accuracy in brackets)", fontsize=9
    )
    figure.savefig(path, dpi=150)


def label(name: str, row: dict[str, Any]) -> str:
    """A name with the accuracy that it comes at."""
    return f"{name} ({100 * row['summary']['accuracy']['pruned']:.1f} %)"


def bars(panel: Any, labels: list[str], rows: list[dict[str, Any]]) -> None:
    """Values with 95 % bars, one a line."""
    values = np.array([100 * row["summary"]["pair"]["change"] for row in rows])
    same = [row["keep"] == 1 for row in rows]  # the dense network itself: nothing changed
    intervals = [row["summary"]["pair"]["interval"] for row in rows]
    ends = 100 * np.array([[0, 0] if s else i for s, i in zip(same, intervals, strict=True)]).T
    places = np.arange(len(rows))
    panel.errorbar(values, places, xerr=np.abs(ends - values), fmt="o", color="#0072b2", ms=4)
    panel.axvline(0, color="#999999", lw=0.8)
    panel.set_yticks(places, labels, fontsize=7)
    panel.invert_yaxis()
    panel.grid(alpha=0.3, axis="x")
