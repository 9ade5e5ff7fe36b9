"""Reads a run folder only: checks its claims, renders its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.audit import receipt_claims, summary_checks
from fedprune.audit._deployed import look_at_receipts, missing_words
from fedprune.audit._opening import availability_sentence
from fedprune.audit._outcomes import outcome_lines
from fedprune.audit.checks import check_fairness, check_model, check_record, check_robustness
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Audit, Finding
from fedprune.audit.privacy_checks import check_privacy
from fedprune.audit.report import render
from fedprune.errors import RunError
from fedprune.runs import RunFolder

PARTS: Mapping[str, Callable[[Evidence], Iterator[Finding]]] = {
    "privacy": check_privacy,
    "fairness": check_fairness,
    "robustness": check_robustness,
    "model": check_model,
    "record": check_record,
}
_UNSEEN = (
    "that clients ran the published code on their own data",
    "that tables, margins and baselines came from the stored models: the rows are not here",
    "latency and times, which depend on the machine",
    summary_checks.UNSEEN,
)
_UNSIGNED = "a folder forged as a whole: its hashes are not signed by anybody"
_SIGNED = "a folder forged as a whole with keys made for it: ask the clients which keys are theirs"


def audit(path: str | Path, part: str = "all") -> Audit:
    """Check a finished run's claims from its folder, further seeds included.

    Args:
        path: the run folder.
        part: a key of `PARTS`, or "all".

    Raises:
        RunError: if the folder is not a finished run or the part is unknown.
    """
    if part != "all" and part not in PARTS:
        raise RunError(f"an audit's part must be all or one of {', '.join(PARTS)}, got {part!r}")
    folder = RunFolder.open(path)
    evidence = Evidence(folder, folder.config, folder.read_json("summary.json"))
    chosen = PARTS if part == "all" else {part: PARTS[part]}
    findings = [finding for look in chosen.values() for finding in look(evidence)]
    for seed in range(
        evidence.config.seed + 1, evidence.config.seed + evidence.config.evaluate.seeds
    ):
        findings += _seed_findings(folder.path / "seeds" / f"seed-{seed}", part)
    unseen = (_UNSIGNED,) if evidence.simulated else (_SIGNED, *receipt_claims.UNSEEN)
    return Audit(tuple(findings), (*_UNSEEN, *unseen))


def write_audit(path: str | Path, found: Audit) -> bool:
    """Put an audit of all parts beside the run for its report; False where it cannot be written."""
    try:
        RunFolder.open(path).write_json("audit.json", found.to_json())
    except RunError:
        return False
    return True


def _seed_findings(path: Path, part: str) -> list[Finding]:
    try:
        return [_named(finding, path.name) for finding in audit(path, part).findings]
    except RunError as error:
        return [Finding("record", f"{path.name} is a finished run", False, str(error))]


def _named(finding: Finding, seed: str) -> Finding:
    return Finding(f"{seed}: {finding.part}", finding.claim, finding.holds, finding.detail)


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Render a finished run as one HTML file; return where it is.

    Raises:
        RunError: if the folder is not a finished run or the file cannot be written.
    """
    folder = RunFolder.open(path)
    summary = folder.read_json("summary.json")
    page = render(
        summary,
        events=folder.events(),
        votes=_last_votes(folder, int(summary["config"]["prune"]["steps"])),
        tables=folder.read_json("tables.json") if folder.has("tables.json") else None,
        audit=folder.read_json("audit.json") if folder.has("audit.json") else None,
        layout=folder.read_json("layout.json") if folder.has("layout.json") else None,
        deployment=look_at_receipts(folder) if summary.get("simulated") is False else None,
    )
    target = Path(out) if out else folder.path / "report.html"
    RunFolder(target.parent).write_text(target.name, page)
    return target


def _last_votes(folder: RunFolder, step: int) -> dict[str, np.ndarray] | None:
    if not folder.has("votes.safetensors"):
        return None
    tensors = folder.read_tensors("votes.safetensors")
    prefix = f"step{step}."
    found = {k.removeprefix(prefix): v.numpy() for k, v in tensors.items() if k.startswith(prefix)}
    return found if {"mean", "variance", "posterior", "mask"} <= found.keys() else None


def headlines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Say the most important figures of a summary in a few lines."""
    accuracy, cost, spent = summary["accuracy"], summary["cost"], summary["privacy"]
    if accuracy["dense"] is not None and accuracy["pruned"] is not None:
        yield f"accuracy: dense {accuracy['dense']:.4f}, pruned {accuracy['pruned']:.4f}"
    for name, parts in (summary["baselines"] or {}).items():
        if parts["accuracy"] is not None:
            yield f"  {name.replace('_', ' ')}: {parts['accuracy']:.4f}"
    if summary["mask_recall"] is not None:
        free = summary["mask_recall_without_prior"]
        yield (
            f"mask recall against the votes without noise: {summary['mask_recall']:.3f}"
            + ("" if free is None else f" (without the prior {free:.3f})")
        )
    difference = summary["paired_difference"]
    if difference is not None:
        yield _difference(difference)
    yield from _gap_lines(summary.get("fairness") or {})
    yield from outcome_lines(summary)
    dense, pruned = cost["dense"], cost["pruned"]
    yield (
        f"size: {dense['params']:,} -> {pruned['params']:,} parameters, {dense['macs']:,} -> "
        f"{pruned['macs']:,} MACs, {dense['latency_ms']:.2f} -> {pruned['latency_ms']:.2f} ms"
    )
    yield f"privacy: {spent['statement']}"
    for total in spent["totals"]:
        yield f"  in all, {total['sentence']}"
    for sentence in spent["not_covered"]:
        yield f"  not covered: {sentence}"
    if "basis" in spent:
        yield f"  known from: {spent['basis']}"
    for words in missing_words(summary):
        yield f"missing: {words}"
    yield from availability_sentence(summary)


def _gap_lines(fairness: Mapping[str, Any]) -> Iterator[str]:
    """Say the gap between groups and its followed pair, or why there is none."""
    if fairness.get("no_figure_because"):
        yield f"no figures of groups: {fairness['no_figure_because']}"
    elif fairness.get("pair"):
        low, high = fairness["gap_change_interval"]
        yield (
            f"accuracy gap between groups of {fairness['group']}: dense "
            f"{fairness['gap_dense']:.4f}, pruned {fairness['gap_pruned']:.4f}, followed pair "
            f"{fairness['pair']['change']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )


def _difference(difference: Mapping[str, Any]) -> str:
    text = f"{difference['name']}: {difference['mean']:+.4f}"
    if difference["low"] is None:
        return f"{text} (one seed: no interval)"
    return (
        f"{text}, {difference['confidence']:.0%} interval [{difference['low']:+.4f}, "
        f"{difference['high']:+.4f}] over {difference['seeds']} seeds"
    )


__all__ = [
    "PARTS",
    "Audit",
    "Finding",
    "audit",
    "headlines",
    "render",
    "write_audit",
    "write_report",
]
