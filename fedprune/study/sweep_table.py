"""A sweep's table: one row a cell and seed, every figure from that run's own summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprune import fairness, runs
from fedprune.config import Scalar
from fedprune.runs import RunFolder
from fedprune.study.grid import Cell

JsonDict = dict[str, Any]
Figure = str | int | float | bool | None

DONE, FAILED, OPEN = "done", "failed", "open"
ALTERNATIVE = "an alternative to the other cells'"


@dataclass(frozen=True)
class SeedRow:
    """One run of a sweep.

    Attributes:
        cell: name of its cell's folder.
        seed: of the run.
        settings: the swept keys' values.
        status: "done", "failed", or "open" where it was not done yet.
        error: why it failed, in one sentence.
        summary: what the finished run says of itself; empty otherwise.
        seconds: of its phases, on whatever process they were done.
        spared_seconds: of the phases that it took over from other cells, where they were done.
    """

    cell: str
    seed: int
    settings: Mapping[str, Scalar]
    status: str
    error: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    spared_seconds: float = 0.0


def rows_of(cell: Cell, folder: RunFolder | None, error: str = "") -> list[SeedRow]:
    """Read what the runs of a cell, all seeds, have come to.

    Args:
        cell: of the grid.
        folder: of the cell's first seed; None where it was not begun.
        error: why the cell failed, if it did; it stands for the seeds that are not finished.
    """
    seeds = range(cell.config.seed, cell.config.seed + cell.config.evaluate.seeds)
    return [_row(cell, seed, run_of(cell, folder, seed), error) for seed in seeds]


def run_of(cell: Cell, folder: RunFolder | None, seed: int) -> RunFolder | None:
    """The finished run of one seed in a cell's folder, if there is one."""
    if folder is None:
        return None
    path = folder.path if seed == cell.config.seed else folder.path / "seeds" / f"seed-{seed}"
    return RunFolder(path) if (path / "summary.json").is_file() else None


def _row(cell: Cell, seed: int, run: RunFolder | None, error: str) -> SeedRow:
    if run is None:
        return SeedRow(cell.name, seed, cell.settings, FAILED if error else OPEN, error)
    events = run.events()
    return SeedRow(
        cell=cell.name,
        seed=seed,
        settings=cell.settings,
        status=DONE,
        summary=run.read_json("summary.json"),
        seconds=round(sum(float(event["seconds"]) for event in events), 3),
        spared_seconds=round(sum(float(e.get("spared_seconds", 0.0)) for e in events), 3),
    )


def _at(*path: str) -> Callable[[Mapping[str, Any]], Figure]:
    def read(summary: Mapping[str, Any]) -> Figure:
        found: Any = summary
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, float) and not math.isfinite(found):
            return None
        return found if isinstance(found, str | int | float | bool) else None

    return read


def _end(place: int, *path: str) -> Callable[[Mapping[str, Any]], Figure]:
    """One end of an interval."""

    def read(summary: Mapping[str, Any]) -> Figure:
        found: Any = summary
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return float(found[place]) if isinstance(found, Sequence) and len(found) == 2 else None

    return read


def _difference(name: str) -> dict[str, Callable[[Mapping[str, Any]], Figure]]:
    """Columns of a difference between groups in the rates of a task of two classes."""
    at, pair = ("fairness", "outcomes", name), ("fairness", "outcomes", name, "pair")
    return {
        f"{name}_dense": _at(*at, "difference_dense"),
        f"{name}_pruned": _at(*at, "difference_pruned"),
        f"{name}_pair_change": _at(*pair, "change"),
        f"{name}_pair_change_low": _end(0, *pair, "interval"),
        f"{name}_pair_change_high": _end(1, *pair, "interval"),
    }


BASELINES = ("votes_without_noise", "pooled", "magnitude", "random")

COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {
    "mask_recall": _at("mask_recall"),
    "mask_recall_without_prior": _at("mask_recall_without_prior"),
    **{f"mask_recall_{name}": _at("baselines", name, "mask_recall") for name in BASELINES},
    "predicted_recall": _at("plan", "predicted_recall"),
    "useful": _at("plan", "useful"),
    "accuracy_dense": _at("accuracy", "dense"),
    "accuracy_private": _at("accuracy", "pruned"),
    "accuracy_private_low": _end(0, "fairness", "accuracy", "interval_pruned"),
    "accuracy_private_high": _end(1, "fairness", "accuracy", "interval_pruned"),
    "accuracy_private_before_fine_tuning": _at("accuracy", "pruned_before_fine_tuning"),
    **{f"accuracy_{name}": _at("baselines", name, "accuracy") for name in BASELINES},
    "trust": _at("privacy", "trust"),
    "unit": _at("privacy", "unit"),
    "relation": _at("privacy", "relation"),
    "epsilon": _at("privacy", "epsilon"),
    "delta": _at("privacy", "delta"),
    "epsilon_spent": _at("privacy", "max_epsilon_spent"),
    "units_kept": _at("kept", "units"),
    "units": _at("kept", "of"),
    "params_dense": _at("cost", "dense", "params"),
    "params_pruned": _at("cost", "pruned", "params"),
    "macs_dense": _at("cost", "dense", "macs"),
    "macs_pruned": _at("cost", "pruned", "macs"),
    "latency_ms_dense": _at("cost", "dense", "latency_ms"),
    "latency_ms_pruned": _at("cost", "pruned", "latency_ms"),
    "fairness_gap_dense": _at("fairness", "gap_dense"),
    "fairness_gap_pruned": _at("fairness", "gap_pruned"),
    "fairness_gap_change": _at("fairness", "gap_change"),
    "fairness_gap_change_low": _end(0, "fairness", "gap_change_interval"),
    "fairness_gap_change_high": _end(1, "fairness", "gap_change_interval"),
    "fairness_pair_change": _at("fairness", "pair", "change"),
    **_difference("demographic_parity"),
    **_difference("equalized_odds"),
    "certified_accuracy_dense": _at("certified_accuracy", "dense"),
    "certified_accuracy_pruned": _at("certified_accuracy", "pruned"),
}


def to_csv(rows: Sequence[SeedRow], together: Mapping[str, float]) -> str:
    """Write the table as CSV (RFC 4180), one line a run, unknown figures empty.

    Args:
        rows: in the order of the cells.
        together: per neighbouring relation the epsilon that all finished runs add up to if the
            same real clients answered all of them; each row's own epsilon is an alternative to
            the others'.
    """
    keys = list(rows[0].settings) if rows else []
    head = ["cell", "seed", *keys, "status", *COLUMNS, "epsilon_is", "epsilon_if_all_answered"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([*head, "seconds", "spared_seconds", "error"])
    for row in rows:
        figures = [read(row.summary) for read in COLUMNS.values()]
        total = together.get(str(row.summary.get("privacy", {}).get("relation")))
        writer.writerow(
            [
                row.cell,
                row.seed,
                *(_cell_text(value) for value in row.settings.values()),
                row.status,
                *(_cell_text(value) for value in figures),
                ALTERNATIVE if row.summary else "",
                _cell_text(total),
                row.seconds if row.summary else "",
                row.spared_seconds if row.summary else "",
                row.error,
            ]
        )
    return text.getvalue()


def _cell_text(value: Figure) -> Figure:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def of_groups(rows: Sequence[SeedRow], confidence: float) -> list[JsonDict]:
    """Give means over the seeds of every combination, and paired differences.

    Runs that differ in their seed only are one group, whether the seeds come from
    `evaluate.seeds` or are swept over.

    Args:
        rows: of the sweep.
        confidence: of the Student-t intervals.
    """
    groups: dict[str, list[SeedRow]] = {}
    for row in rows:
        settings = {key: value for key, value in row.settings.items() if key != "seed"}
        groups.setdefault(repr(settings), []).append(row)
    return [_group(list(group), confidence) for group in groups.values()]


def _group(rows: Sequence[SeedRow], confidence: float) -> JsonDict:
    done = list({row.seed: row for row in rows if row.summary}.values())
    summaries = [dict(row.summary) for row in done]
    found: JsonDict = {
        "settings": {k: v for k, v in rows[0].settings.items() if k != "seed"},
        "cells": sorted({row.cell for row in rows}),
        "seeds": [row.seed for row in done],
        "means": {name: mean_of(summaries, name, confidence) for name in _AVERAGED},
        "private_minus_magnitude": None,
        "accuracy_private_over_clients": None,
    }
    if len(summaries) == 1:
        ends = [COLUMNS[f"accuracy_private_{end}"](summaries[0]) for end in ("low", "high")]
        found["accuracy_private_over_clients"] = None if None in ends else ends
    if summaries and all(summary["baselines"] for summary in summaries):
        compared = runs.compare_over_seeds(summaries, confidence)
        found["private_minus_magnitude"] = compared and {
            key: compared[key] for key in ("mean", "low", "high", "seeds", "confidence")
        }
    return found


_AVERAGED = (
    "mask_recall", "mask_recall_without_prior", "accuracy_dense", "accuracy_private",
    *(f"accuracy_{name}" for name in BASELINES), "epsilon", "params_pruned", "macs_pruned",
    "latency_ms_pruned", "fairness_gap_change",
)  # fmt: skip


def mean_of(
    summaries: Sequence[Mapping[str, Any]], column: str, confidence: float
) -> JsonDict | None:
    """Average one column over seeds, with Student's t interval.

    Returns:
        "mean", "low" and "high"; the ends are None with one seed, all is None where a run has no
        such figure.
    """
    values = [COLUMNS[column](summary) for summary in summaries]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    numbers = [float(value) for value in values if value is not None]
    found = fairness.paired_difference(numbers, [0.0] * len(numbers), confidence)
    return {"mean": found.mean, "low": found.low, "high": found.high}
