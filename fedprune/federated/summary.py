"""summary.json: what a finished run says about itself, every figure from a phase's result."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fedprune import __version__
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.path import Outcome
from fedprune.runs import certified_accuracies, compare_over_seeds, mask_recalls, privacy_figures

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
        "name": _name(experiment),
        "seed": experiment.config.seed,
        "simulated": experiment.simulated,
        "accuracy": {
            "dense": results.get("evaluate-dense", {}).get("accuracy"),
            "pruned": private.accuracy,
            "pruned_before_fine_tuning": private.accuracy_before_fine_tuning,
        },
        "mask_recall": recalls.get("private"),
        "mask_recall_without_prior": recalls.get("votes_without_prior"),
        "baselines": _baselines(baselines, recalls),
        "paired_difference": None,
        "kept": _kept(private.held),
        "cost": results["cost"],
        "privacy": privacy_summary(experiment, results),
        "fairness": results.get("fairness"),
        "robustness": results["robustness"],
        "certified_accuracy": certified(experiment),
        "traffic": _traffic(experiment, dense, results),
        "plan": {
            key: results["plan"][key] for key in ("predicted_recall", "useful", "advice", "clients")
        },
        "missing": missing(experiment),
        "seconds": seconds_by_phase(experiment),
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


def _kept(held: Held) -> JsonDict:
    layout, mask = held.architecture.dense_layout, held.architecture.mask
    groups = []
    for group in layout.groups:
        part = mask[group.start : group.stop]
        groups.append({"name": group.name, "kept": int(part.sum()), "of": len(part)})
    return {"units": int(mask.sum()), "of": len(layout), "by_group": groups}


def certified(experiment: Experiment) -> JsonDict:
    """Certified accuracy at the configured radius, from stored margins and recomputed bounds."""
    radius, unit = experiment.config.evaluate.certified_radius, experiment.schema.input_unit
    found: JsonDict = {"radius": radius, "unit": unit, "dense": None, "pruned": None}
    if experiment.folder.has("margins.safetensors"):
        found.update(certified_accuracies(experiment.folder, radius, experiment.schema.input_std))
    return found


def _traffic(experiment: Experiment, dense: Held, results: Mapping[str, JsonDict]) -> JsonDict:
    del experiment
    return {
        "up_bytes_per_client": results["plan"]["up_bytes_per_client"],
        "down_bytes_per_client": 4 * dense.weights.numel(),
        "dense_upload_bytes": 4 * dense.weights.numel(),
        "what": "payload of one mask report, and of the question it answers, without framing",
    }


def missing(experiment: Experiment) -> dict[str, list[int]]:
    """Clients without a usable answer, for every round that had such."""
    found: dict[str, list[int]] = {}
    for event in experiment.folder.events():
        found.update(event.get("missing", {}))
    return found


def seconds_by_phase(experiment: Experiment) -> dict[str, float]:
    """Seconds of every finished phase, rounds of one stage added up."""
    seconds: dict[str, float] = {}
    for event in experiment.folder.events():
        prefix, _, phase = event["phase"].rpartition("/")
        stage = phase.rsplit("-", 1)[0] if phase[-1:].isdigit() else phase
        name = f"{prefix}/{stage}" if prefix else stage
        seconds[name] = round(seconds.get(name, 0.0) + float(event["seconds"]), 3)
    return seconds


def _name(experiment: Experiment) -> str:
    config: Any = experiment.config
    return f"{config.model.name} on {config.data.dataset}"
