"""Demographic parity and equalised odds of a task of two classes, as a section and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedprune.audit import _wording as say
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json

# Key in the summary, heading of its columns, and what it is a share of.
_RATES = (
    ("demographic_parity", "Predicted", "all rows"),
    ("true_positive", "True positive", "rows of the class"),
    ("false_positive", "False positive", "rows of the other class"),
)


def outcomes_section(summary: Json) -> Section | None:
    """Lay out how often groups are predicted the positive class; None for more than two classes."""
    outcomes = say.table_of(summary, "fairness.outcomes")
    if not outcomes:
        return None
    title, positive = "Demographic parity and equalised odds", _positive(outcomes)
    if outcomes.get("no_figure_because"):
        words = f"There are no figures: {say.text(outcomes['no_figure_because'])}."
        return Section("outcomes", title, notes=(Note("mind", words),))
    confidence = say.number(say.pick(summary, "fairness.confidence")) or 0.95
    return Section(
        "outcomes",
        title,
        lead=(
            f"The positive class is {positive}. Demographic parity difference: the largest minus "
            f"the smallest share of a group's rows that is predicted {positive}. Equalised odds "
            f"difference: the same of the rows that are {positive} (true positives) or of those "
            "that are not (false positives), whichever differs more between groups.",
            *_differences(outcomes, confidence),
        ),
        tables=(_rates_table(outcomes, positive),),
    )


def outcome_lines(summary: Json) -> Iterator[str]:
    """Say both differences in a line each; nothing for more than two classes."""
    outcomes = say.table_of(summary, "fairness.outcomes")
    if not outcomes:
        return
    if outcomes.get("no_figure_because"):
        yield f"demographic parity, equalised odds: {outcomes['no_figure_because']}"
        return
    of = f"between groups of {outcomes.get('group')}, of predicting {_positive(outcomes)}"
    for key, name in _DIFFERENCES:
        found = say.table_of(outcomes, key)
        dense, pruned = (say.number(found.get(f"difference_{side}")) for side in _SIDES)
        if dense is None or pruned is None:
            yield f"{name} difference {of}: none, {_TOO_FEW[key]}"
            continue
        pair, interval = say.table_of(found, "pair"), say.list_of(found, "pair.interval")
        sure = f", followed pair {pair['change']:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"
        yield f"{name} difference {of}: dense {dense:.4f}, pruned {pruned:.4f}{sure}"


_SIDES = ("dense", "pruned")
_DIFFERENCES = (
    ("demographic_parity", "demographic parity"),
    ("equalized_odds", "equalised odds"),
)
_TOO_FEW = {
    "demographic_parity": "fewer than two groups have rows enough",
    "equalized_odds": "fewer than two groups have rows enough of each class",
}


def _positive(outcomes: Json) -> str:
    return f"“{say.text(outcomes.get('positive_class'))}”"


def _differences(outcomes: Json, confidence: float) -> Iterator[str]:
    for key, name in _DIFFERENCES:
        found = say.table_of(outcomes, key)
        values = [found.get(f"difference_{side}") for side in _SIDES]
        if any(say.number(value) is None for value in values):
            yield f"There is no {name} difference to report: {_TOO_FEW[key]}."
            continue
        shown = [
            f"{say.percent(value, 1)} {side} "
            f"({say.percent_interval(found.get(f'interval_{side}'))})"
            for value, side in zip(values, _SIDES, strict=True)
        ]
        yield (
            f"{name.capitalize()} difference: {' and '.join(shown)}, a change of "
            f"{say.points(found.get('change'), 1)} points; {100 * confidence:g}{say.PERCENT} "
            f"intervals whichever groups differ most. {_pair(found)}"
        )


def _pair(found: Json) -> str:
    pair = say.table_of(found, "pair")
    interval = say.list_of(pair, "interval")
    if say.points_interval(interval) == say.UNKNOWN:
        return "How sure the change is cannot be said: no interval was recorded."
    verdict = "zero is inside" if interval[0] <= 0 <= interval[1] else "zero is outside"
    rate = found.get("followed_rate") or found.get("rate")
    return (
        f"Followed pair, {say.text(pair.get('best'))} minus {say.text(pair.get('worst'))} "
        f"({say.text(rate)} rate, chosen on {say.text(pair.get('chosen_on'))}): "
        f"{say.points(pair.get('change'), 1)} points "
        f"({say.points_interval(interval, 1)}; {verdict})."
    )


def _rates_table(outcomes: Json, positive: str) -> Table:
    rates = [
        {str(group.get("name")): group for group in say.list_of(outcomes, f"{key}.groups")}
        for key, _, _ in _RATES
    ]
    head = ["Group"]
    for _, name, _ in _RATES:
        head += ["Rows", f"{name}, dense", "pruned", "interval"]
    rows = tuple(
        (name, *(cell for rate in rates for cell in _rate_cells(rate.get(name, {}))))
        for name in rates[0]
    )
    shares = "; ".join(f"{name.lower()}: of {of}" for _, name, of in _RATES)
    return Table(tuple(head), rows, caption=f"Share predicted {positive}, by group ({shares}).")


def _rate_cells(group: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if not group:  # fewer than two groups have such rows: the rate is not compared
        return ("–", "–", "–", "–")
    if group.get("too_small"):
        return ("few", "too small", "too small", "–")
    return (
        say.count(group.get("rows")),
        say.percent(group.get("dense"), 1),
        say.percent(group.get("pruned"), 1),
        say.percent_interval(group.get("interval_pruned")),
    )
