"""Fairness, robustness and the audit's own checks, as sections of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.audit import _wording as say
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json
from fedprune.audit.plots import plot_groups

COLLAPSE = 0.05  # a fall in accuracy beyond this many hundredths makes a smaller bound suspect


def fairness_section(summary: Json, tables: Json | None) -> Section:
    fairness = say.table_of(summary, "fairness")
    if not fairness:
        words = "Groups were not evaluated: no count tables were collected in this run."
        return Section("fairness", "Fairness", notes=(Note("mind", words),))
    groups = [group for group in say.list_of(fairness, "groups") if isinstance(group, Mapping)]
    confidence = say.number(fairness.get("confidence")) or 0.95
    plot = plot_groups(groups, confidence)
    folded = _counts(tables)
    method = fairness.get("method")
    return Section(
        "fairness",
        f"Fairness by {say.text(fairness.get('group') or 'group')}",
        lead=tuple(_gap_sentences(fairness, confidence)),
        plots=() if plot is None else (plot,),
        tables=(_group_table(groups, fairness),) if groups else (),
        bullets_title="How this was computed" if method else "",
        bullets=(say.sentence(method),) if method else (),
        folded=() if folded is None else (("Counts that everything here follows from", folded),),
    )


def _gap_sentences(fairness: Json, confidence: float) -> list[str]:
    dense, pruned = say.number(fairness.get("gap_dense")), say.number(fairness.get("gap_pruned"))
    if dense is None or pruned is None:
        return ["There is no gap to report: fewer than two groups have rows enough for a figure."]
    change = say.number(fairness.get("gap_change"))
    sentences = [
        f"Best minus worst group: {say.percent(dense, 1)} dense, {say.percent(pruned, 1)} pruned "
        f"({say.points(pruned - dense if change is None else change, 1)} points)."
    ]
    sentences += _pair_sentences(fairness, confidence)
    worst = say.table_of(fairness, "worst_group.pruned")
    if worst:
        name, accuracy = say.text(worst.get("name")), say.percent(worst.get("accuracy"), 1)
        sentences.append(f"After pruning, {name} fares worst, with {accuracy}.")
    return sentences


def _pair_sentences(fairness: Json, confidence: float) -> list[str]:
    pair, interval = say.table_of(fairness, "pair"), fairness.get("gap_change_interval")
    if not pair or say.points_interval(interval) == say.UNKNOWN:
        return ["How sure the change is cannot be said: no interval was recorded."]
    assert isinstance(interval, list | tuple)
    verdict = (
        "zero is inside, so a change is not shown"
        if interval[0] <= 0 <= interval[1]
        else "zero is outside"
    )
    chosen = f", chosen on {pair['chosen_on']}" if pair.get("chosen_on") else ""
    return [
        f"Followed pair{chosen}: {say.text(pair.get('best'))} minus {say.text(pair.get('worst'))} "
        f"changed by {say.points(pair.get('change'), 1)} points ({100 * confidence:g} % interval "
        f"{say.points_interval(interval, 1)}; {verdict})."
    ]


def _group_table(groups: list[Mapping[str, Any]], fairness: Json) -> Table:
    worst = say.pick(fairness, "worst_group.pruned.name")
    head = ("Group", "Rows", "Dense", "Pruned", "interval", "Excess loss", "interval", "p (Holm)")
    rows = tuple(_group_row(group, fairness) for group in groups)
    strong = frozenset(i for i, group in enumerate(groups) if group.get("name") == worst)
    caption = (
        "Excess loss, in points: what pruning cost the group beyond what it cost everyone. "
        "The group that fares worst after pruning is set in bold."
    )
    return Table(head, rows, caption=caption, strong=strong)


def _group_row(group: Json, fairness: Json) -> tuple[str, ...]:
    name = say.text(group.get("name"))
    if group.get("too_small"):
        least = say.count(say.number(fairness.get("min_group")) or 30)
        return (name, f"under {least}", "too small", "too small", "–", "–", "–", "–")
    return (
        name,
        say.count(group.get("rows")),
        say.percent(group.get("accuracy_dense"), 1),
        say.percent(group.get("accuracy_pruned"), 1),
        say.percent_interval(group.get("interval_pruned")),
        say.points(group.get("excess_loss"), 1),
        say.points_interval(group.get("excess_interval"), 1),
        say.p_value(group.get("p_holm")),
    )


def _counts(tables: Json | None) -> Table | None:
    total, names = say.list_of(tables, "total"), say.list_of(tables, "names")
    if not total or len(names) != len(total):
        return None
    rows = tuple(
        (say.text(name), *(say.count(cells[d][p]) for d, p in ((1, 1), (1, 0), (0, 1), (0, 0))))
        for name, cells in zip(names, total, strict=True)
    )
    return Table(("Group", "Both right", "Lost", "Gained", "Both wrong"), rows)


def robustness_section(summary: Json) -> Section:
    robustness = say.table_of(summary, "robustness")
    certified = say.table_of(summary, "certified_accuracy")
    if not robustness and not certified:
        words = "Robustness was not evaluated in this run."
        return Section("robustness", "Robustness", notes=(Note("mind", words),))
    rows = [_bound_row(robustness, side) for side in ("dense", "pruned")]
    head = ("", "Upper bound", "Largest slope found", "Looseness", "Certified accuracy")
    table = Table(head, tuple((*row, say.percent(certified.get(row[0]))) for row in rows))
    method = robustness.get("method")
    return Section(
        "robustness",
        "Robustness",
        lead=_bound_lead(certified),
        notes=tuple(_robustness_notes(summary, robustness, certified)),
        tables=(table,),
        bullets_title="How this was computed" if method else "",
        bullets=(say.sentence(method),) if method else (),
    )


def _bound_row(robustness: Json, side: str) -> tuple[str, str, str, str]:
    upper, lower = robustness.get(f"upper_{side}"), robustness.get(f"lower_{side}")
    return (side, say.plain(upper), say.plain(lower), say.times(say.ratio(upper, lower)))


def _bound_lead(certified: Json) -> tuple[str, ...]:
    bound = (
        "The upper bound holds for every input: no change of size r moves the output by more than "
        "the bound times r (ℓ2). The largest slope found lies below the truth, so the truth is "
        "between the two, and their ratio is how loose the bound may be."
    )
    radius = say.number(certified.get("radius"))
    if radius is None:
        return (bound,)
    unit = f", in {certified['unit']}" if certified.get("unit") else ""
    return (
        bound,
        f"Certified accuracy: the share of test rows that are classified rightly and provably "
        f"stay so under every change up to ℓ2 radius {say.plain(radius)}{unit}.",
    )


def _robustness_notes(summary: Json, robustness: Json, certified: Json) -> list[Note]:
    before, after = (say.number(robustness.get(f"upper_{s}")) for s in ("dense", "pruned"))
    dense, pruned = (say.number(say.pick(summary, f"accuracy.{s}")) for s in ("dense", "pruned"))
    sure_before, sure_after = (say.number(certified.get(s)) for s in ("dense", "pruned"))
    shrinks = before is not None and after is not None and after < before
    if shrinks and dense is not None and pruned is not None and dense - pruned > COLLAPSE:
        words = (
            f"The bound shrank from {say.plain(before)} to {say.plain(after)} while accuracy fell "
            f"from {say.percent(dense, 1)} to {say.percent(pruned, 1)}. A small bound of a network "
            f"that no longer classifies is not robustness: certified accuracy is what matters."
        )
        return [Note("bad", words)]
    if sure_before is None or sure_after is None:
        return []
    if shrinks and sure_after < sure_before:
        words = (
            "The bound shrank, yet fewer rows are certified: margins shrank more. "
            "Certified accuracy is what matters."
        )
        return [Note("mind", words)]
    if max(sure_before, sure_after) < 0.01:
        words = (
            "Hardly any row is certified at this radius: ordinarily trained networks have bounds "
            "too loose to certify much, which says nothing about an actual attack."
        )
        return [Note("mind", words)]
    return []


def audit_section(audit: Json | None) -> Section | None:
    """Lay out an audit: `checks` of {area, claim, passed, detail}."""
    checks = [check for check in say.list_of(audit, "checks") if isinstance(check, Mapping)]
    if not checks:
        return None
    failed = [check for check in checks if check.get("passed") is False]
    words = (
        f"{say.plural(len(failed), 'claim')} of {len(checks)} did not hold."
        if failed
        else f"{say.plural(len(checks), 'claim')} checked from the run's folder: all hold."
    )
    rows = tuple(
        (say.text(c.get("area")), say.text(c.get("claim")), _verdict(c), _detail(c)) for c in checks
    )
    return Section(
        "audit",
        "Audit",
        notes=(Note("bad" if failed else "good", words),),
        tables=(Table(("Area", "Claim", "Holds", "Detail"), rows, words=frozenset({1, 2, 3})),),
    )


def _verdict(check: Json) -> str:
    return {True: "yes", False: "no"}.get(check.get("passed"), "cannot be seen from here")  # type: ignore[arg-type]


def _detail(check: Json) -> str:
    return say.text(check["detail"]) if check.get("detail") else "–"
