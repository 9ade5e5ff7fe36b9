"""The checks themselves; they read a run folder and nothing else."""

from __future__ import annotations

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


def check_privacy(evidence: Evidence) -> Iterator[Finding]:
    """Ledger chain, memoised bytes, budgets, totals, and the votes recomputed from reports."""
    ledger_path = evidence.folder.path / "ledger.sqlite"
    yield check("privacy", "the ledger is there", lambda: _missing(evidence.has_ledger))
    if not evidence.has_ledger:
        return

    def intact() -> str | None:
        with Ledger.open(ledger_path) as ledger:
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
        "epsilon, reports and what is not covered are as the summary says",
        lambda: _spent(evidence),
        str(evidence.summary["privacy"].get("statement")),
    )
    if evidence.config.privacy.trust == "local":
        yield check(
            "privacy",
            "every report has the mechanism's size and the votes follow from the reports",
            lambda: _votes(evidence),
            "recomputed from the stored bytes",
        )


def check_fairness(evidence: Evidence) -> Iterator[Finding]:
    """Accuracy, gaps and intervals recomputed from tables.json."""
    if not evidence.folder.has("tables.json"):
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
    claimed = evidence.summary["robustness"]
    std = claimed["input_std"]

    def bounds() -> str | None:
        found = runs.lipschitz_bounds(evidence.folder, std)
        return same("robustness", {k: claimed[k] for k in found}, found, tolerance=1e-6)

    def enclosed() -> str | None:
        for name in ("dense", "pruned"):
            if not claimed[f"lower_{name}"] <= claimed[f"upper_{name}"]:
                return f"robustness.upper_{name} lies below lower_{name}"
        return None

    def certified() -> str | None:
        stated = evidence.summary["certified_accuracy"]
        found = runs.certified_accuracies(evidence.folder, float(stated["radius"]), std)
        return same("certified_accuracy", {k: stated[k] for k in found}, found)

    yield check("robustness", "upper bounds follow from the stored models", bounds, "recomputed")
    yield check("robustness", "upper bounds lie above what was found", enclosed, "both models")
    if evidence.folder.has("margins.safetensors"):
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


def _missing(there: bool) -> str | None:
    return None if there else "ledger.sqlite is missing from the run folder"


def _heads(evidence: Evidence) -> str | None:
    broken = runs.ledger_contradiction(evidence.folder)
    if broken:
        return broken
    named = [e["ledger_rows"] for e in evidence.folder.events() if "ledger_rows" in e]
    with Ledger.open(evidence.folder.path / "ledger.sqlite") as ledger:
        rows, last = ledger.head[0], (named or [0])[-1]
    return None if rows == last else f"the ledger has {rows} rows, the run ended with {last}"


def _spent(evidence: Evidence) -> str | None:
    simulated = bool(evidence.summary["simulated"])
    found = runs.privacy_figures(evidence.folder, evidence.config, simulated)
    claimed = evidence.summary["privacy"]
    return same("privacy", {key: claimed[key] for key in found}, found)


def _votes(evidence: Evidence) -> str | None:
    votes = evidence.folder.read_tensors("votes.safetensors")
    with Ledger.open(evidence.folder.path / "ledger.sqlite") as ledger:
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
        wrong = np.flatnonzero(np.abs(found.mean - stated) > 1e-9)
        if wrong.size:
            return f"the vote of unit {wrong[0]} in step {step} does not follow from the reports"
    return None
