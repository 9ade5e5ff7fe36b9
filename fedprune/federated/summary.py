"""summary.json: what a finished run says about itself, every figure from a phase's result."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version

from fedprune import __version__
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.path import Outcome
from fedprune.runs import (
    accuracies,
    availability_totals,
    certified_accuracies,
    compare_over_seeds,
    kept_units,
    mask_recalls,
    missing_by_round,
    planned_figures,
    privacy_figures,
    run_title,
    seconds_by_phase,
    traffic,
)

_PACKAGES = ("flwr", "numpy", "safetensors", "torch", "torch-pruning", "torchvision")


def summarize(
    experiment: Experiment,
    dense: Held,
    private: Outcome,
    baselines: Mapping[str, Outcome] | None,
) -> JsonDict:
    """Gather the phases' results into the summary, and write it as the run's last act."""
    results = {event["phase"]: event["result"] for event in experiment.folder.events()}
    recalls = mask_recalls(results, experiment.config.prune.steps)
    summary: JsonDict = {
        "name": run_title(experiment.config),
        "seed": experiment.config.seed,
        "simulated": experiment.simulated,
        "accuracy": accuracies(experiment.config, experiment.simulated, results),
        "mask_recall": recalls.get("private"),
        "mask_recall_without_prior": recalls.get("votes_without_prior"),
        "baselines": _baselines(baselines, recalls),
        "paired_difference": None,
        "kept": kept_units(private.held.architecture),
        "cost": results["cost"],
        "privacy": privacy_summary(experiment, results),
        "fairness": results.get("fairness"),
        "robustness": results["robustness"],
        "certified_accuracy": certified(experiment),
        "traffic": traffic(results["plan"], dense.model()),
        "plan": planned_figures(results["plan"]),
        "missing": missing_by_round(experiment.folder.events()),
        "availability": availability_totals(experiment.config, experiment.folder.events()),
        "seconds": seconds_by_phase(experiment.folder.events()),
        "versions": versions(),
        "config": experiment.config.model_dump(),
    }
    if baselines is not None:
        summary["paired_difference"] = compare_over_seeds(
            [summary], experiment.config.evaluate.confidence
        )
    experiment.folder.write_json("summary.json", summary)
    return summary


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    own = {"fedprune": __version__, "python": platform.python_version()}
    return {**own, **{name: version(name) for name in _PACKAGES}}


def privacy_summary(experiment: Experiment, results: Mapping[str, JsonDict]) -> JsonDict:
    """What the ledger says was spent, with its qualifiers and what it does not cover."""
    return {
        "mechanism": results["plan"]["mechanism"],
        "variance_per_vote": results["vote-1"].get("variance_per_vote"),
        **privacy_figures(experiment.folder, experiment.config, experiment.simulated),
    }


def _baselines(
    baselines: Mapping[str, Outcome] | None, recalls: Mapping[str, float]
) -> JsonDict | None:
    if baselines is None:
        return None
    return {
        name: {
            "accuracy": outcome.accuracy,
            "accuracy_before_fine_tuning": outcome.accuracy_before_fine_tuning,
            "mask_recall": recalls[name],
        }
        for name, outcome in baselines.items()
    }


def certified(experiment: Experiment) -> JsonDict:
    """Certified accuracy at the configured radius, from stored margins and recomputed bounds."""
    evaluate, schema = experiment.config.evaluate, experiment.schema
    radius, unit = evaluate.certified_radius, schema.input_unit
    found: JsonDict = {"radius": radius, "unit": unit, "dense": None, "pruned": None}
    if experiment.folder.has("margins.safetensors"):
        found |= certified_accuracies(
            experiment.folder, radius, schema.input_std, evaluate.confidence
        )
    return found
