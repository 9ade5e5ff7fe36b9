"""Fairness, robustness and the audit's own checks, as sections of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.audit import _wording as say
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json
from fedprune.audit.certified_plot import plot_certified
from fedprune.audit.plots import plot_groups
from fedprune.runs import stored_rows

COLLAPSE = 0.05  # a fall in accuracy beyond this many hundredths makes a smaller bound suspect


def fairness_section(summary: Json, tables: Json | None) -> Section:
    fairness = say.table_of(summary, "fairness")
    if not fairness:
        words = "Groups were not evaluated: no count tables were collected in this run."
        return Section("fairness", "Fairness", notes=(Note("mind", words),))
    if fairness.get("no_figure_because"):
        said = "Noise hides the figures" if fairness.get("noise") else "There are no figures"
        words = f"{said}: {say.text(fairness['no_figure_because'])}."
        return Section("fairness", "Fairness", notes=(Note("mind", words),))
    groups = [group for group in say.list_of(fairness, "groups") if isinstance(group, Mapping)]
    confidence = say.number(fairness.get("confidence")) or 0.95
    plot = plot_groups(groups, confidence)
    folded = [("Exact McNemar tests, dense against pruned", _mcnemar(groups))]
    folded.append((_COUNTS + (_NOISED if fairness.get("noise") else ""), _counts(tables)))
    method = fairness.get("method")
    return Section(
        "fairness",
        f"Fairness by {say.text(fairness.get('group') or 'group')}",
        lead=tuple(_gap_sentences(fairness, confidence)),
        notes=(Note("mind", _NOISE_NOTE),) if fairness.get("noise") else (),
        plots=() if plot is None else (plot,),
        facts=tuple(_overall_facts(fairness)),
        tables=(_group_table(groups, fairness),) if groups else (),
        bullets_title="How this was computed" if method else "",
        bullets=(say.sentence(method),) if method else (),
        folded=tuple((title, table) for title, table in folded if table.rows),
    )


_COUNTS = "Counts that everything here follows from"
_NOISED = ", as the clients noised them"
_NOISE_NOTE = (
    "Clients added noise to every count before it left them: counts may be negative, every "
    "interval allows for the noise, and a group is shown only where it surely has its rows."
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
    sentences += _chance_sentences(fairness, confidence)
    sentences += _pair_sentences(fairness, confidence)
    worst = say.table_of(fairness, "worst_group.pruned")
    if worst:
        name, accuracy = say.text(worst.get("name")), say.percent(worst.get("accuracy"), 1)
        sentences.append(f"After pruning, {name} fares worst, with {accuracy}.")
    return sentences


def _chance_sentences(fairness: Json, confidence: float) -> list[str]:
    """What a gap is worth that is the largest of many: what chance alone would show."""
    chance = [fairness.get(f"gap_{side}_by_chance") for side in ("dense", "pruned")]
    if any(say.number(value) is None for value in chance):
        return []
    sentence = (
        f"The largest of several differences is never zero: groups of equal accuracy would show "
        f"{say.percent(chance[0], 1)} and {say.percent(chance[1], 1)} by chance"
    )
    intervals = [fairness.get(f"gap_{side}_interval") for side in ("dense", "pruned")]
    if all(isinstance(interval, list | tuple) for interval in intervals):
        dense, pruned = (say.percent_interval(interval) for interval in intervals)
        sentence += (
            f"; whichever groups are best and worst, {100 * confidence:g}{say.PERCENT} intervals "
            f"are {dense} dense and {pruned} pruned"
        )
    return [f"{sentence}."]


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
        f"changed by {say.points(pair.get('change'), 1)} points "
        f"({100 * confidence:g}{say.PERCENT} interval "
        f"{say.points_interval(interval, 1)}; {verdict})."
    ]


def _group_table(groups: list[Mapping[str, Any]], fairness: Json) -> Table:
    worst = say.pick(fairness, "worst_group.pruned.name")
    head = (
        "Group",
        "Rows",
        "Dense",
        "Pruned",
        "interval",
        "Excess loss",
        "interval",
        "together",
        "p",
    )
    rows = tuple(_group_row(group, fairness) for group in groups)
    strong = frozenset(i for i, group in enumerate(groups) if group.get("name") == worst)
    caption = (
        "Excess loss, in points: what pruning cost the group beyond what it cost everyone. "
        "Together: intervals that hold for all groups at once. "
        "p: of no excess loss, adjusted over the groups. The group that fares worst after pruning "
        "is set in bold."
    )
    return Table(head, rows, caption=caption, strong=strong)


def _group_row(group: Json, fairness: Json) -> tuple[str, ...]:
    name = say.text(group.get("name"))
    if group.get("too_small"):
        least = say.count(say.number(fairness.get("min_group")) or 30)
        return (name, f"under {least}", "too small", "too small", *["–"] * 5)
    return (
        name,
        say.count(group.get("rows")),
        say.percent(group.get("accuracy_dense"), 1),
        say.percent(group.get("accuracy_pruned"), 1),
        say.percent_interval(group.get("interval_pruned")),
        say.points(group.get("excess_loss"), 1),
        say.points_interval(group.get("excess_interval"), 1),
        say.points_interval(group.get("excess_simultaneous"), 1),
        say.p_value(group.get("p_holm")),
    )


def _overall_facts(fairness: Json) -> list[tuple[str, str]]:
    overall, clients = say.table_of(fairness, "accuracy"), say.table_of(fairness, "clients")
    facts = []
    if say.number(overall.get("change")) is not None:
        facts.append(
            (
                "Accuracy over all these rows",
                f"{say.percent(overall.get('dense'), 1)} to {say.percent(overall.get('pruned'), 1)}"
                f", {say.points(overall['change'], 1)} points "
                f"({say.points_interval(overall.get('change_interval'), 1)})",
            )
        )
    if (say.number(clients.get("clients")) or 0) > 1:
        tenth, worst, variance, chance, between = (
            [say.pick(clients, path.format(side)) for side in ("dense", "pruned")]
            for path in _OVER_CLIENTS
        )
        facts += [
            ("Worst tenth of clients", " to ".join(say.percent(value, 1) for value in tenth)),
            ("Worst client", " to ".join(say.percent(value, 1) for value in worst)),
            ("Variance over clients", " to ".join(say.plain(value) for value in variance)),
            ("that chance alone would bring", " to ".join(say.plain(value) for value in chance)),
            ("that is left without chance", " to ".join(say.plain(value) for value in between)),
        ]
    return facts


_OVER_CLIENTS = (
    "{}.bottom_tenth",
    "{}.worst",
    "{}.variance",
    "chance_variance_{}",
    "between_variance_{}",
)


def _mcnemar(groups: list[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            say.text(group.get("name")),
            say.p_value(group["mcnemar_p"]),
            say.p_value(group.get("mcnemar_p_holm")),
        )
        for group in groups
        if say.number(group.get("mcnemar_p")) is not None
    )
    return Table(("Group", "p", "adjusted over the groups (Holm)"), rows)


def _counts(tables: Json | None) -> Table:
    head = ("Group", "Both right", "Lost", "Gained", "Both wrong")
    stored, names = say.list_of(tables, "test"), say.list_of(tables, "names")
    if not stored:
        return Table(head, ())
    total = stored_rows(dict(tables or {})).plain().counts.sum(axis=0)
    if len(names) != len(total):
        return Table(head, ())
    rows = tuple(
        (
            say.text(name),
            *(say.count(int(cells[d, p])) for d, p in ((1, 1), (1, 0), (0, 1), (0, 0))),
        )
        for name, cells in zip(names, total, strict=True)
    )
    return Table(head, rows)


def robustness_section(summary: Json) -> Section:
    robustness = say.table_of(summary, "robustness")
    certified = say.table_of(summary, "certified_accuracy")
    if not robustness and not certified:
        words = "Robustness was not evaluated in this run."
        return Section("robustness", "Robustness", notes=(Note("mind", words),))
    rows = [_bound_row(robustness, side) for side in ("dense", "pruned")]
    head = (
        "", "Upper bound", "Largest slope found", "Looseness", "Certified accuracy",
        "Not broken by an attack",
    )  # fmt: skip
    sides = [(row, row[0]) for row in rows]
    table = Table(
        head,
        tuple((*row, _certified(certified, at), _standing(certified, at)) for row, at in sides),
    )
    methods = list(dict.fromkeys(robustness.get(f"method_{side}") for _, side in sides))
    plot = plot_certified(certified, str(certified.get("unit") or ""))
    return Section(
        "robustness",
        "Robustness",
        plots=() if plot is None else (plot,),
        lead=_bound_lead(certified),
        notes=tuple(_robustness_notes(summary, robustness, certified)),
        tables=(table,),
        bullets_title="How this was computed" if any(methods) else "",
        bullets=tuple(say.sentence(method) for method in methods if method),
    )


def _standing(certified: Json, side: str) -> str:
    """Share of the attacked rows that no attack of the configured radius broke."""
    attacked = say.table_of(certified, "attacked")
    radii, own = say.list_of(attacked, "radii"), say.table_of(attacked, side)
    if certified.get("radius") not in radii:
        return say.percent(None)
    place = radii.index(certified.get("radius"))
    share, low, high = (say.list_of(own, key)[place:] for key in ("standing", "low", "high"))
    if not (share and low and high):
        return say.percent(None)
    return f"{say.percent(share[0])} {say.percent_interval([low[0], high[0]])}"


def _certified(certified: Json, side: str) -> str:
    share, interval = say.percent(certified.get(side)), certified.get(f"interval_{side}")
    return f"{share} {say.percent_interval(interval)}" if interval else share


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
    attacked = say.number(say.table_of(certified, "attacked").get("rows"))
    attack = (
        f"An attack by projected gradients was tried on {attacked or 0:.0f} of these rows: for "
        f"them the truth lies at or below the share that it did not break."
    )
    return (
        bound,
        *((attack,) if attack else ()),
        f"Certified accuracy: the share of test rows that are classified rightly and provably "
        f"stay so under every change up to ℓ2 radius {say.plain(radius)}{unit}.",
    )


def _robustness_notes(summary: Json, robustness: Json, certified: Json) -> list[Note]:
    reason = robustness.get("no_bound_because")
    if reason:
        return [Note("mind", f"No bound is stated, since none would be rigorous: {reason}.")]
    attacked = say.table_of(certified, "attacked")
    broken = sum(say.number(attacked.get(f"broken_{s}")) or 0 for s in ("dense", "pruned"))
    if broken:
        words = f"An attack broke {say.plural(int(broken), 'certificate')}: the bounds are wrong."
        return [Note("bad", words)]
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
    """Lay out an audit: `findings` of {part, claim, holds, detail}, and what is `unseen`."""
    found = [finding for finding in say.list_of(audit, "findings") if isinstance(finding, Mapping)]
    if not found:
        return None
    broken = [finding for finding in found if finding.get("holds") is not True]
    words = (
        f"Of {say.plural(len(found), 'claim')} checked from the run's folder {len(broken)} "
        f"{'does' if len(broken) == 1 else 'do'} not hold."
        if broken
        else f"{say.plural(len(found), 'claim')} checked from the run's folder, none refuted."
    )
    unseen = tuple(say.sentence(sentence) for sentence in say.list_of(audit, "unseen"))
    rows = tuple(
        (
            say.text(finding.get("part")),
            say.text(finding.get("claim")),
            "yes" if finding.get("holds") is True else "no",
            say.text(finding["detail"]) if finding.get("detail") else "–",
        )
        for finding in found
    )
    strong = frozenset(i for i, f in enumerate(found) if f.get("holds") is not True)
    head = ("Part", "Claim", "Holds", "Detail")
    return Section(
        "audit",
        "Audit",
        notes=(Note("bad" if broken else "good", words),),
        tables=(Table(head, rows, strong=strong, words=frozenset({1, 2, 3})),),
        bullets_title="What an audit cannot see from here" if unseen else "",
        bullets=unseen,
    )
