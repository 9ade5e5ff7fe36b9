"""The checks themselves; they read a run folder and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from fedprune import hardware, privacy, pruning, runs
from fedprune.audit.findings import Finding, check, same
from fedprune.config import Config
from fedprune.privacy import Ledger, Report, ThresholdResponse
from fedprune.privacy.chain import STORED
from fedprune.runs import RunFolder

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What the checks read."""

    folder: RunFolder
    config: Config
    summary: JsonDict

    @property
    def has_ledger(self) -> bool:
        """Whether the clients' ledger lies in this folder (simulation)."""
        return self.folder.has("ledger.sqlite")

    def results(self) -> dict[str, JsonDict]:
        """What every finished phase said."""
        return {event["phase"]: event["result"] for event in self.folder.events()}


def check_privacy(evidence: Evidence) -> Iterator[Finding]:
    """Ledger chain, memoised bytes, budgets, totals, and the votes recomputed from reports."""
    ledger_path = evidence.folder.path / "ledger.sqlite"
    yield check("privacy", "the ledger is there", lambda: _missing(evidence.has_ledger))
    if not evidence.has_ledger:
        return

    def intact() -> str | None:
        with Ledger.open(ledger_path, read_only=True) as ledger:
            return next(ledger.verify(), None)

    sound = check(
        "privacy", "the ledger's chain, report bytes and budgets are intact", intact, "every row"
    )
    yield sound
    if not sound.holds:
        return
    yield check(
        "privacy",
        "the ledger ends where the run's events say it ends, and passed every point they name",
        lambda: _heads(evidence),
        "no row was cut off or added",
    )
    yield check(
        "privacy",
        "the ledger's budget and run are those of the configuration, nobody past it",
        lambda: _terms(evidence),
        "every row",
    )
    yield check(
        "privacy",
        "epsilon, reports and what is not covered are as the summary says",
        lambda: _spent(evidence),
        runs.privacy_figures(evidence.folder, evidence.config, True)["statement"],
    )
    if evidence.config.privacy.trust == "local":
        yield check(
            "privacy",
            "every report has the mechanism's size and the votes follow from the reports",
            lambda: _votes(evidence),
            "recomputed from the stored bytes",
        )
        yield check(
            "privacy",
            "the first step's units follow from its votes",
            lambda: _selection(evidence),
            "posterior and selection redone",
        )


def check_fairness(evidence: Evidence) -> Iterator[Finding]:
    """Accuracy, gaps and intervals recomputed from tables.json."""
    if evidence.config.evaluate.tables == "off":
        return

    def accuracy() -> str | None:
        counts = np.array(evidence.folder.read_json("tables.json")["test"]).sum(axis=(0, 1))
        total = counts.sum()
        found = {"dense": counts[1].sum() / total, "pruned": counts[:, 1].sum() / total}
        claimed = {key: evidence.summary["accuracy"][key] for key in found}
        return same("accuracy", claimed, {k: float(v) for k, v in found.items()})

    def fairness() -> str | None:
        found = runs.fairness_of_tables(evidence.folder.read_json("tables.json"))
        return same("fairness", evidence.summary["fairness"], found)

    yield check("fairness", "accuracy follows from the count tables", accuracy, "recomputed")
    yield check("fairness", "gaps and intervals follow from the count tables", fairness, "redone")


def check_robustness(evidence: Evidence) -> Iterator[Finding]:
    """Lipschitz bounds recomputed from the stored models, certified accuracy from margins."""

    def bounds() -> str | None:
        claimed = evidence.summary["robustness"]
        found = runs.lipschitz_bounds(evidence.folder, claimed["input_std"])
        return same("robustness", {k: claimed[k] for k in found}, found, tolerance=1e-6)

    def enclosed() -> str | None:
        claimed = evidence.summary["robustness"]
        for name in ("dense", "pruned"):
            if not claimed[f"lower_{name}"] <= claimed[f"upper_{name}"]:
                return f"robustness.upper_{name} lies below lower_{name}"
        return None

    def certified() -> str | None:
        stated = evidence.summary["certified_accuracy"]
        std = evidence.summary["robustness"]["input_std"]
        found = runs.certified_accuracies(evidence.folder, float(stated["radius"]), std)
        return same("certified_accuracy", {k: stated[k] for k in found}, found)

    yield check("robustness", "upper bounds follow from the stored models", bounds, "recomputed")
    yield check("robustness", "upper bounds lie above what was found", enclosed, "both models")
    if evidence.summary.get("simulated", True) and evidence.config.evaluate.tables != "off":
        yield check(
            "robustness", "certified accuracy follows from margins and bounds", certified, "redone"
        )


def check_model(evidence: Evidence) -> Iterator[Finding]:
    """The stored models load, have the stated cost, and kept the units that were voted for."""

    def cost() -> str | None:
        loaded = {"dense": evidence.folder.load_dense(), "pruned": evidence.folder.load_pruned()}
        for name, (model, architecture) in loaded.items():
            found = hardware.cost(model, architecture.example_input)
            claimed = evidence.summary["cost"][name]
            pair = {key: claimed[key] for key in ("params", "macs")}
            wrong = same(f"cost.{name}", pair, {"params": found.params, "macs": found.macs})
            if wrong:
                return wrong
        return None

    def kept() -> str | None:
        votes = evidence.folder.read_tensors("votes.safetensors")
        _, architecture = evidence.folder.load_pruned()
        mask = torch.ones(len(architecture.dense_layout), dtype=torch.bool)
        for step in range(1, evidence.config.prune.steps + 1):
            mask = pruning.compose_masks(mask, votes[f"step{step}.mask"].bool())
        if not torch.equal(mask, architecture.mask):
            return "the units that the model kept are not those of votes.safetensors"
        return None

    yield check("model", "parameters and MACs are those of the stored models", cost, "recounted")
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
        begun = evidence.results()["plan"]["run"]
        return wrong or same("run", begun, runs.run_id(evidence.config))

    def compared() -> str | None:
        results, steps = evidence.results(), evidence.config.prune.steps
        recalls = runs.mask_recalls(results, steps)
        wrong = same("mask_recall", summary["mask_recall"], recalls.get("private"))
        for name, parts in (summary["baselines"] or {}).items():
            found = {
                "accuracy": results.get(f"{name}/evaluate-after", {}).get("accuracy"),
                "mask_recall": recalls[name],
            }
            wrong = wrong or same(f"baselines.{name}", {key: parts[key] for key in found}, found)
        return wrong

    def all_seeds() -> str | None:
        config = evidence.config
        summaries = [summary]
        for seed in range(config.seed + 1, config.seed + config.evaluate.seeds):
            path = folder.path / "seeds" / f"seed-{seed}"
            summaries.append(RunFolder.open(path).read_json("summary.json"))
        if summary["baselines"] is None:
            return None
        found = runs.compare_over_seeds(summaries, config.evaluate.confidence)
        return same("paired_difference", summary["paired_difference"], found)

    def laid_out() -> str | None:
        _, architecture = folder.load_pruned()
        stated = folder.read_json("layout.json")
        found = json.loads(json.dumps(architecture.dense_layout.describe()))
        return same("layout", stated, found)

    yield check("record", "the files are those that the run ended with", sealed, "SHA-256")
    yield check("record", "the configuration is the one that was run", configured, "compared")
    yield check("record", "recalls and baselines are those of the events", compared, "recomputed")
    yield check("record", "every seed is there and the comparison follows", all_seeds, "redone")
    yield check("record", "layout.json describes the dense model's units", laid_out, "compared")


def _missing(there: bool) -> str | None:
    return None if there else "ledger.sqlite is missing from the run folder"


def _heads(evidence: Evidence) -> str | None:
    broken = runs.ledger_contradiction(evidence.folder)
    if broken:
        return broken
    named = [e["ledger_rows"] for e in evidence.folder.events() if "ledger_rows" in e]
    with Ledger.open(evidence.folder.path / "ledger.sqlite", read_only=True) as ledger:
        rows, last = ledger.head[0], (named or [0])[-1]
    return None if rows == last else f"the ledger has {rows} rows, the run ended with {last}"


def _spent(evidence: Evidence) -> str | None:
    simulated = bool(evidence.summary.get("simulated", True))
    found = runs.privacy_figures(evidence.folder, evidence.config, simulated)
    claimed = evidence.summary["privacy"]
    return same("privacy", {key: claimed[key] for key in found}, found)


def _terms(evidence: Evidence) -> str | None:
    name, stated = runs.run_id(evidence.config), evidence.config.privacy.epsilon
    with Ledger.open(evidence.folder.path / "ledger.sqlite", read_only=True) as ledger:
        if ledger.budget.epsilon != stated:
            return f"the ledger's budget is {ledger.budget.epsilon:g}, the configuration's {stated}"
        for number, entry in enumerate(ledger.entries(), start=1):
            if entry.run != name:
                return f"ledger row {number} is of run {entry.run}, this is run {name}"
            if entry.stage == STORED and entry.epsilon != stated:
                return f"ledger row {number} was charged epsilon = {entry.epsilon:g}, not {stated}"
    return None


def _selection(evidence: Evidence) -> str | None:
    """Redo the first step: posterior from votes and magnitudes, then the selection."""
    votes = evidence.folder.read_tensors("votes.safetensors")
    mean, spread = votes["step1.mean"].numpy(), votes["step1.variance"].numpy()
    posterior = mean
    model, architecture = evidence.folder.load_dense()
    layout = architecture.dense_layout
    if evidence.config.privacy.prior == "magnitude":
        magnitude = pruning.score(model, layout, [], criterion="magnitude_l2").double().numpy()
        groups = np.asarray(layout.group_of, dtype=np.int64)
        posterior = privacy.magnitude_posterior(mean, spread, magnitude, groups).mean
    if not np.allclose(posterior, votes["step1.posterior"].numpy(), rtol=0, atol=1e-6):
        return "the posterior of step 1 does not follow from votes and magnitudes"
    budget = evidence.results()["vote-1"]["budget"]
    mask = pruning.select(
        votes["step1.posterior"],
        layout,
        keep_units=budget.get("keep_units"),
        keep_macs=budget.get("keep_macs"),
        keep_params=budget.get("keep_params"),
        floor=evidence.config.prune.floor,
    )
    if not torch.equal(mask, votes["step1.mask"].bool()):
        return "the units kept in step 1 are not those that the posterior selects"
    return None


def _votes(evidence: Evidence) -> str | None:
    votes = evidence.folder.read_tensors("votes.safetensors")
    with Ledger.open(evidence.folder.path / "ledger.sqlite", read_only=True) as ledger:
        by_round: dict[str, list[Report]] = {}
        for entry in ledger.entries():
            if entry.stage == STORED:
                by_round.setdefault(entry.round, []).append(Report(entry.report))
    for step in range(1, evidence.config.prune.steps + 1):
        reports = by_round.get(f"report-{step}", [])
        stated = votes[f"step{step}.mean"].numpy()
        mechanism = ThresholdResponse(evidence.config.privacy.epsilon, len(stated))
        if Fraction(mechanism.likelihood_ratio) <= 1:
            return f"the mechanism of step {step} has no likelihood ratio above 1"
        counts = privacy.counts_for(mechanism, len(reports))
        found = mechanism.estimate(reports, counts=counts)
        spread = votes[f"step{step}.variance"].numpy()
        close = np.isclose(found.mean, stated, rtol=0, atol=1e-9)
        close &= np.isclose(found.variance, spread, rtol=1e-9, atol=0)
        wrong = np.flatnonzero(~close)  # what is not a number is not close to anything
        if wrong.size:
            return f"the vote of unit {wrong[0]} in step {step} does not follow from the reports"
    return None
