"""Checks of fairness, robustness, models and the record; they read a run folder only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune import hardware, pruning, runs
from fedprune.audit import ledger_claims
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check, same
from fedprune.audit.summary_checks import check_summary
from fedprune.errors import ReportError
from fedprune.privacy import NoisedCounts
from fedprune.runs import RunFolder

JsonDict = dict[str, Any]


def check_fairness(evidence: Evidence) -> Iterator[Finding]:
    """Accuracy, gaps, rates and their intervals recomputed from tables.json."""
    tables = evidence.folder.has("tables.json")
    if not evidence.simulated:
        yield check(
            "fairness",
            "accuracy is that of the evaluation rounds",
            lambda: _heard(evidence),
            "events",
        )
        if not tables:
            yield check(
                "fairness",
                "no gap is stated, since no count tables were collected",
                lambda: same("fairness", evidence.summary["fairness"], None),
                "no client's count tables left it, or too few agreed",
            )
            return
        yield check(
            "fairness",
            "every count table has its receipt",
            lambda: _tables_without_receipt(evidence),
            "counted",
        )
    elif evidence.config.evaluate.tables == "off":
        yield check(
            "fairness",
            "neither accuracy nor gap is stated, since no count tables were collected",
            lambda: _nothing_evaluated(evidence),
            "evaluate.tables = off",
        )
        return

    def fairness() -> str | None:
        stored = evidence.folder.read_json("tables.json")
        found = runs.fairness_of_tables(stored)
        return _other_kind(evidence, stored) or same(
            "fairness", evidence.summary["fairness"], found
        )

    if runs.tables_noised(evidence.config):
        yield check(
            "fairness",
            "the count tables are those that the clients noised, charged and stored",
            lambda: _other_tables(evidence),
            "every table, from the stored bytes",
        )
    if evidence.simulated or not _evaluated_by_some(evidence):
        yield check(
            "fairness",
            "accuracy follows from the count tables",
            lambda: _accuracy(evidence),
            "recomputed",
        )
    yield check("fairness", "gaps and intervals follow from the count tables", fairness, "redone")


def _cells(evidence: Evidence) -> tuple[int, ...]:
    return runs.final_cells(evidence.num_classes, evidence.config.data.groups)


def _other_kind(evidence: Evidence, stored: JsonDict) -> str | None:
    """Say so where rates that this run's tables are to hold were left out of them, or put in."""
    found, wanted = np.shape(stored["test"])[2:], _cells(evidence)
    if found != wanted or ("classes" in stored) != (evidence.num_classes == 2):
        return (
            f"tables.json has {' x '.join(map(str, found))} counts a group, a run of "
            f"{evidence.num_classes} classes and groups {evidence.config.data.groups!r} has "
            f"{' x '.join(map(str, wanted))}"
        )
    return None


def _other_tables(evidence: Evidence) -> str | None:
    """Compare tables.json with what the ledger, or the receipts, of the two rounds hold."""
    stored = evidence.folder.read_json("tables.json")
    num_cells = len(stored["names"]) * math.prod(_cells(evidence))
    mechanism = runs.table_mechanism(evidence.config, num_cells)
    noise = runs.table_noise(evidence.config)
    if noise is None or stored.get("noise") != noise.to_json():
        return "tables.json describes another noise than the configuration asks for"
    sent = {name: _sent_tables(evidence, mechanism, name) for name in runs.TABLE_ROUNDS}
    told = np.array(stored["test"], dtype=np.int64).reshape(-1, mechanism.num_cells)
    if sorted(told.tolist()) != sorted(sent["tables"].tolist()):
        return "the tables of test rows are not those that the clients sent"
    total = np.array(stored["train_total"], dtype=np.int64).reshape(-1)
    if total.tolist() != sent["pair-tables"].sum(axis=0).tolist():
        return "the total over training rows is not that of the tables that the clients sent"
    drawn = runs.table_noise(evidence.config, len(sent["pair-tables"]))
    if drawn is None or stored.get("train_noise") != drawn.to_json():
        return "tables.json describes another noise of the training rows' total"
    return None


def _sent_tables(evidence: Evidence, mechanism: NoisedCounts, name: str) -> NDArray[np.int64]:
    if evidence.simulated:
        found = [report.payload for _, report in ledger_claims.reports(evidence).get(name, [])]
    else:
        found = [receipt.report for receipt in evidence.used_receipts(name)]
    if {len(one) for one in found} - {mechanism.report_bytes}:
        raise ReportError(f"a table of round {name} has not {mechanism.report_bytes} bytes")
    rows = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, mechanism.report_bytes)
    return mechanism.decode_rows(rows)


def _nothing_evaluated(evidence: Evidence) -> str | None:
    stated = evidence.summary["accuracy"]
    wrong = same("accuracy", stated, dict.fromkeys(stated))
    return wrong or same("fairness", evidence.summary["fairness"], None)


def _accuracy(evidence: Evidence) -> str | None:
    stored = evidence.folder.read_json("tables.json")
    counts = runs.stored_rows(stored).plain().counts.sum(axis=(0, 1))
    total = counts.sum()
    found = {"dense": counts[1].sum() / total, "pruned": counts[:, 1].sum() / total}
    if runs.tables_noised(evidence.config):
        found = runs.fairness_of_tables(stored)["accuracy"]
        found = {key: found.get(key) for key in ("dense", "pruned")}
    claimed = {key: evidence.summary["accuracy"][key] for key in found}
    return same("accuracy", claimed, {k: v if v is None else float(v) for k, v in found.items()})


def _heard(evidence: Evidence) -> str | None:
    """Compare a deployed run's accuracies with what its evaluation rounds ended with."""
    found = runs.accuracies(evidence.config, evidence.simulated, evidence.results())
    return same("accuracy", evidence.summary["accuracy"], found)


def _evaluated_by_some(evidence: Evidence) -> bool:
    """Whether the rounds behind the accuracies and the tables had different clients."""
    rounds = ("evaluate-dense", "evaluate-after", "tables")
    return len({tuple(evidence.missing.get(name, ())) for name in rounds}) > 1


def _tables_without_receipt(evidence: Evidence) -> str | None:
    tables = len(evidence.folder.read_json("tables.json")["test"])
    signed = len({receipt.client for receipt in evidence.used_receipts("tables")})
    return None if tables == signed else f"{tables} count tables came, {signed} have a receipt"


def check_robustness(evidence: Evidence) -> Iterator[Finding]:
    """Lipschitz bounds recomputed from the stored models, certified accuracy from margins."""

    def bounds() -> str | None:
        claimed = evidence.summary["robustness"]
        found = runs.lipschitz_bounds(evidence.folder, claimed["input_std"])
        return same("robustness", {k: claimed[k] for k in found}, found, tolerance=1e-6)

    def enclosed() -> str | None:
        claimed = evidence.summary["robustness"]
        for name in ("dense", "pruned"):
            lower, upper = claimed[f"lower_{name}"], claimed[f"upper_{name}"]
            if upper is not None and not lower <= upper:
                return f"robustness.upper_{name} lies below lower_{name}"
        return None

    def certified() -> str | None:
        robustness = evidence.summary["robustness"]
        radius, unit = evidence.config.evaluate.certified_radius, robustness["input_unit"]
        found: JsonDict = {"radius": radius, "unit": unit, "dense": None, "pruned": None}
        if not why_not:
            std = robustness["input_std"]
            confidence = evidence.config.evaluate.confidence
            found |= runs.certified_accuracies(evidence.folder, radius, std, confidence)
        return same("certified_accuracy", evidence.summary["certified_accuracy"], found)

    def unbroken() -> str | None:
        attacked = evidence.summary["certified_accuracy"].get("attacked", {})
        broken = {side: attacked.get(f"broken_{side}", 0) for side in ("dense", "pruned")}
        return f"certificates broken: {broken}" if any(broken.values()) else None

    yield check("robustness", "upper bounds follow from the stored models", bounds, "recomputed")
    yield check("robustness", "upper bounds lie above what was found", enclosed, "both models")
    why_not = _no_certificates_because(evidence)
    if why_not:
        claim = f"no certified accuracy is stated, since {why_not}"
        yield check("robustness", claim, certified, "none is")
    else:
        yield check(
            "robustness", "certified accuracy follows from margins and bounds", certified, "redone"
        )
        if evidence.config.evaluate.attacked_rows:
            yield check("robustness", "no attack broke a certificate", unbroken, "both models")


def _no_certificates_because(evidence: Evidence) -> str:
    """Say why a run can have no certificates; "" where it can."""
    if not evidence.simulated:
        return "margins never leave a deployed client"
    if not runs.tables_wanted(evidence.config, evidence.simulated):
        return "no evaluation rows were asked for"
    robustness = evidence.summary.get("robustness")
    unbounded = isinstance(robustness, dict) and robustness.get("method_dense") is None
    return "the network has no rigorous bound" if unbounded else ""


def check_model(evidence: Evidence) -> Iterator[Finding]:
    """The stored models load, have the stated cost, and kept the units that were voted for."""

    def cost() -> str | None:
        loaded = {"dense": evidence.folder.load_dense(), "pruned": evidence.folder.load_pruned()}
        for name, (model, architecture) in loaded.items():
            found = hardware.cost(model, architecture.example_input)
            claimed = evidence.summary["cost"][name]
            counted = asdict(found)
            wrong = same(f"cost.{name}", {key: claimed[key] for key in counted}, counted)
            if wrong:
                return wrong
        return None

    def kept() -> str | None:
        votes = evidence.folder.read_tensors("votes.safetensors")
        _, architecture = evidence.folder.load_pruned()
        mask = torch.ones(len(architecture.dense_layout), dtype=torch.bool)
        for step in range(1, evidence.config.prune.steps + 1):
            step_mask = votes[f"step{step}.mask"].bool()
            whole = evidence.config.prune.regrow  # then every step speaks about all units
            mask = step_mask if whole else pruning.compose_masks(mask, step_mask)
        if not torch.equal(mask, architecture.mask):
            return "the units that the model kept are not those of votes.safetensors"
        return None

    claim = "parameters, MACs and bytes are those of the stored models"
    yield check("model", claim, cost, "recounted")
    yield check("model", "the model kept the units that were selected", kept, "compared")


def check_record(evidence: Evidence) -> Iterator[Finding]:
    """The summary's own words against events, configuration, sealed files and further seeds."""
    folder, summary = evidence.folder, evidence.summary

    def sealed() -> str | None:
        results = evidence.results()
        found = runs.seal(folder)
        missing = set(results["seal"]) - set(found)
        if missing:
            return f"{sorted(missing)[0]} is missing from the run folder"
        return same("seal", results["seal"], found)

    def configured() -> str | None:
        here = evidence.config.model_dump()
        stated = {key: value for key, value in summary["config"].items() if key != "out"}
        wrong = same("config", stated, {key: value for key, value in here.items() if key != "out"})
        if wrong or runs.is_run_of(evidence.run, evidence.config, evidence.simulated):
            return wrong
        kind = "simulated" if evidence.simulated else "deployed"
        return f"run {evidence.run} is not a {kind} run of this configuration"

    def absent() -> str | None:
        named = runs.missing_by_round(folder.events())
        clients = range(evidence.config.data.clients)
        for name, gone in evidence.missing.items():
            if not gone or set(gone) - set(clients) or len(set(gone)) != len(gone):
                return f"the clients missing in {name} are not some of 0 to {clients[-1]}: {gone}"
        return same("missing", evidence.missing, named)

    def all_seeds() -> str | None:
        config = evidence.config
        summaries = [summary]
        for seed in range(config.seed + 1, config.seed + config.evaluate.seeds):
            path = folder.path / "seeds" / f"seed-{seed}"
            summaries.append(RunFolder.open(path).read_json("summary.json"))
        if summary["baselines"] is None:
            return same("paired_difference", summary["paired_difference"], None)
        found = runs.compare_over_seeds(summaries, config.evaluate.confidence)
        return same("paired_difference", summary["paired_difference"], found)

    def laid_out() -> str | None:
        _, architecture = folder.load_pruned()
        stated = folder.read_json("layout.json")
        found = json.loads(json.dumps(architecture.dense_layout.describe()))
        return same("layout", stated, found)

    yield check("record", "the files are those that the run ended with", sealed, "SHA-256")
    yield check("record", "the configuration is the one that was run", configured, "compared")
    if not evidence.simulated or evidence.config.availability.configured:
        detail = _missing_words(evidence)
        yield check("record", "who did not answer is named as the events name it", absent, detail)
    yield from check_summary(evidence)
    yield check("record", "every seed is there and the comparison follows", all_seeds, "redone")
    yield check("record", "layout.json describes the dense model's units", laid_out, "compared")


def _missing_words(evidence: Evidence) -> str:
    parts = [
        f"{name}: client{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))}"
        for name, gone in evidence.missing.items()
    ]
    return "; ".join(parts) or "everybody answered every question"
