"""Accuracy, what was removed, cost, and the run itself, as sections of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.audit import _wording as say
from fedprune.audit._opening import FASTER, cost_ratio, latency_ratio, speedup_interval
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json
from fedprune.audit.plots import Outcome, plot_accuracy
from fedprune.audit.vote_plot import plot_votes

BASELINES = {
    "votes_without_noise": "same votes without noise",
    "votes_without_prior": "votes without the prior",
    "pooled": "scores pooled centrally",
    "magnitude": "magnitude of the weights",
    "random": "random",
}


def accuracy_section(summary: Json) -> Section:
    outcomes, recalls = _outcomes(summary)
    dense = say.number(say.pick(summary, "accuracy.dense"))
    rows = [("dense, nothing removed", "–", say.percent(dense), "–")]
    rows += [
        (o.name, say.percent(o.before), say.percent(o.after), recall)
        for o, recall in zip(outcomes, recalls, strict=True)
    ]
    plot = plot_accuracy(outcomes, dense)
    return Section(
        "accuracy",
        "Accuracy, and whether the vote helped",
        lead=tuple(_difference(summary)),
        notes=tuple(_accuracy_notes(summary, len(outcomes) > 1)),
        plots=() if plot is None else (plot,),
        tables=(
            Table(
                ("Mask chosen by", "After pruning", "After fine-tuning", "Recall"),
                tuple(rows),
                caption="Every mask has the same size and the same fine-tuning. Recall: the share "
                "of units kept by the same clients' votes without noise that this mask keeps too.",
                strong=frozenset({1}),
            ),
        ),
    )


def _outcomes(summary: Json) -> tuple[list[Outcome], list[str]]:
    private = say.pick(summary, "privacy.trust") != "none"
    own = Outcome(
        "private votes (this run)" if private else "votes (this run)",
        say.number(say.pick(summary, "accuracy.pruned_before_fine_tuning")),
        say.number(say.pick(summary, "accuracy.pruned")),
        own=True,
    )
    outcomes, recalls = [own], [say.percent(summary.get("mask_recall"), 1)]
    for key, name in BASELINES.items():
        found = say.table_of(summary, f"baselines.{key}")
        if found:
            before = say.number(found.get("accuracy_before_fine_tuning"))
            outcomes.append(Outcome(name, before, say.number(found.get("accuracy")), own=False))
            recall = found.get("mask_recall")
            if recall is None and key == "votes_without_prior":
                recall = summary.get("mask_recall_without_prior")
            recalls.append(say.percent(recall, 1))
    return outcomes, recalls


def _difference(summary: Json) -> list[str]:
    difference = say.table_of(summary, "paired_difference")
    mean, seeds = say.number(difference.get("mean")), say.number(difference.get("seeds"))
    if mean is None:
        return []
    name = difference.get("name") or "private minus baseline"
    words = f"Accuracy, {name}: {say.points(mean)} percentage points"
    low, high = say.number(difference.get("low")), say.number(difference.get("high"))
    if low is None or high is None:
        return [f"{words}, from one seed; one seed gives no interval, so chance is not ruled out."]
    confidence = say.number(difference.get("confidence"))
    level = "" if confidence is None else f"{100 * confidence:g}{say.PERCENT} "
    over = "" if seeds is None else f", over {say.plural(int(seeds), 'seed')}"
    words += f" ({level}interval {say.points(low)} to {say.points(high)}{over}). "
    if low <= 0 <= high:
        return [f"{words}The interval includes zero: this does not show a difference."]
    return [f"{words}The interval leaves zero out: the vote {'helps' if mean > 0 else 'hurts'}."]


def _accuracy_notes(summary: Json, has_baselines: bool) -> list[Note]:
    notes = []
    if not has_baselines:
        words = (
            "No baselines: they need votes without noise or pooled data, which exist only in "
            "simulation and only if asked for. So the recall of the mask is not known either."
        )
        notes.append(Note("mind", words))
    if say.pick(summary, "plan.useful") is False:
        advice = say.pick(summary, "plan.advice")
        recall = say.percent(say.pick(summary, "plan.predicted_recall"), 0)
        words = f"The plan foresaw a mask of little use (predicted recall {recall})."
        notes.append(Note("bad", f"{words} {say.sentence(advice)}" if advice else words))
    return notes


def removed_section(
    summary: Json, votes: Mapping[str, NDArray[Any]] | None, layout: Json | None
) -> Section:
    layers = [layer for layer in say.list_of(summary, "kept.by_group") if isinstance(layer, dict)]
    notes = []
    plot = None
    if votes is not None:
        plot = plot_votes(_arrays(votes), _layer_sizes(layers, layout))
    if plot is None:
        notes.append(Note("mind", "The votes are not in the run's folder, so none are drawn."))
    kept, of = say.pick(summary, "kept.units"), say.pick(summary, "kept.of")
    lead = f"{say.count(kept)} of {say.count(of)} units stay." if layers else ""
    table = Table(
        ("Layer", "Kept", "Of", "Share"),
        tuple(
            (
                say.text(layer.get("name")),
                say.count(layer.get("kept")),
                say.count(layer.get("of")),
                say.percent(say.ratio(layer.get("kept"), layer.get("of")), 0),
            )
            for layer in layers
        ),
        bars=tuple(say.ratio(layer.get("kept"), layer.get("of")) or 0.0 for layer in layers),
    )
    return Section(
        "removed",
        "What stays and what goes",
        lead=(lead,) if lead else (),
        notes=tuple(notes),
        plots=() if plot is None else (plot,),
        tables=(table,) if layers and len(layers) <= 30 else (),
        folded=(("Units kept in each layer", table),) if len(layers) > 30 else (),
    )


def _arrays(votes: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(values) for name, values in votes.items() if values is not None}


def _layer_sizes(layers: Sequence[Json], layout: Json | None) -> list[tuple[str, int]]:
    groups = say.list_of(layout, "groups") if layout else []
    if groups:
        return [(str(name), int(stop) - int(start)) for name, start, stop in groups]
    sizes = [(say.text(layer.get("name")), say.number(layer.get("of"))) for layer in layers]
    return [(name, int(size)) for name, size in sizes if size is not None]


def cost_section(summary: Json) -> Section:
    writers = {
        "params": ("Parameters", say.count),
        "macs": ("Multiply-accumulates an example", say.large),
        "bytes": ("Weights on disk", say.size),
        "latency_ms": ("Latency of a batch, measured", say.milliseconds),
    }
    rows = []
    for key, (label, write) in writers.items():
        dense, pruned = (say.pick(summary, f"cost.{side}.{key}") for side in ("dense", "pruned"))
        rows.append((label, write(dense), write(pruned), say.times(say.ratio(dense, pruned))))
    return Section(
        "cost",
        "Cost",
        notes=tuple(_cost_notes(summary)),
        tables=(Table(("", "Dense", "Pruned", "Ratio"), tuple(rows), caption=_measured(summary)),),
    )


def _measured(summary: Json) -> str:
    how = say.table_of(summary, "cost.latency")
    parts = [
        f"{name} {say.count(how[key])}"
        for key, name in (("batch_size", "batch size"), ("threads", "threads"))
        if say.number(how.get(key)) is not None
    ]
    if say.number(how.get("repeats")) is not None:
        parts.append(f"median of {say.count(how['repeats'])} passes, both models in turns")
    interval = speedup_interval(summary)
    if interval is not None:
        parts.append(f"95 % interval of the speed-up {interval[0]:.2f}× to {interval[1]:.2f}×")
    return f"Latency: {', '.join(parts)}." if parts else ""


def _cost_notes(summary: Json) -> list[Note]:
    speed, macs = latency_ratio(summary), cost_ratio(summary, "macs")
    if speed is None:
        return [Note("mind", "Latency was not measured: fewer operations alone promise no speed.")]
    interval = speedup_interval(summary)
    if interval is not None and macs is not None and macs > FASTER and interval[0] <= 1:
        words = (
            f"{say.times(macs)} fewer multiply-accumulates brought nothing that could be measured "
            f"({speed:.2f}×, 95 % interval {interval[0]:.2f} to {interval[1]:.2f}): on this "
            "machine, at this batch size, time goes elsewhere."
        )
        return [Note("bad", words)]
    if macs is not None and macs > FASTER and speed < FASTER:
        words = (
            f"{say.times(macs)} fewer multiply-accumulates brought no measured speed-up "
            f"({speed:.2f}×): on this machine, at this batch size, time goes elsewhere."
        )
        return [Note("bad", words)]
    if macs is not None and speed < macs / 1.5:
        words = (
            f"{say.times(macs)} fewer multiply-accumulates brought a measured speed-up of "
            f"{speed:.2f}×: operations are not time."
        )
        return [Note("mind", words)]
    return []


def run_section(summary: Json, events: Sequence[Json]) -> Section:
    traffic, phases = say.table_of(summary, "traffic"), _stages(say.table_of(summary, "seconds"))
    facts = [
        ("Mask report that a client sends", say.size(traffic.get("up_bytes_per_client"))),
        ("Question that it answers", say.size(traffic.get("down_bytes_per_client"))),
        ("One dense model update, for comparison", say.size(traffic.get("dense_upload_bytes"))),
    ]
    total = sum(phases.values())
    rows = [(name, say.seconds(value)) for name, value in phases.items()]
    table = Table(("Phase", "Time"), (*rows, ("together", say.seconds(total))))
    folded = [("Events of the run", _events_table(events))] if events else []
    folded += [(title, inner) for title, inner in _provenance(summary) if inner.rows]
    return Section(
        "run",
        "Traffic, time and provenance",
        lead=(say.sentence(f"Traffic: {traffic['what']}"),) if traffic.get("what") else (),
        facts=tuple(facts),
        tables=(table,) if rows else (),
        folded=tuple(folded),
    )


def _stages(seconds: Json) -> dict[str, float]:
    """Seconds by stage in words, all stages of a baseline (named before a slash) together."""
    stages: dict[str, float] = {}
    for name, value in seconds.items():
        baseline, slash, _ = name.partition("/")
        words = f"{baseline} (baseline)" if slash else name
        words = words.replace("_", " ").replace("-", " ")
        stages[words] = stages.get(words, 0.0) + (say.number(value) or 0.0)
    return stages


def _events_table(events: Sequence[Json]) -> Table:
    rows = tuple(
        (
            say.text(event.get("phase")).replace("_", " "),
            say.text(event.get("finished")),
            say.seconds(event.get("seconds")),
        )
        for event in events
    )
    return Table(("Phase", "Finished", "Time"), rows, words=frozenset({1}))


def _provenance(summary: Json) -> list[tuple[str, Table]]:
    versions = say.table_of(summary, "versions")
    config = _flatten(say.table_of(summary, "config"))
    return [
        ("Versions", _pairs("Package", "Version", versions)),
        ("Configuration", _pairs("Key", "Value", config)),
    ]


def _pairs(left: str, right: str, content: Json) -> Table:
    rows = tuple(
        (str(key), "unset" if value in (None, "") else say.text(value))
        for key, value in content.items()
    )
    return Table((left, right), rows, words=frozenset({1}))


def _flatten(content: Json, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
