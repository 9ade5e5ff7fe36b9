"""What summary.json repeats from a run's own events and models.

The run writes these figures when it ends, and an auditor reads them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fedprune.config import Config
from fedprune.runs.architecture import Architecture
from fedprune.runs.count_tables import tables_noised
from fedprune.runs.folder import weights_vector

JsonDict = dict[str, Any]
_WEIGHT_BYTES = 4  # float32
_PLANNED = ("predicted_recall", "useful", "advice", "clients")


def run_title(config: Config) -> str:
    """Name a run for its readers."""
    return f"{config.model.name} on {config.data.dataset}"


def tables_wanted(config: Config, simulated: bool) -> bool:
    """Whether clients are asked for count tables, without which no accuracy is known."""
    wanted = config.evaluate.tables
    return wanted in ("unprotected", "noised") or (wanted == "simulation-only" and simulated)


def accuracies(config: Config, simulated: bool, results: Mapping[str, JsonDict]) -> JsonDict:
    """Accuracies over all clients' evaluation rows, as far as they are known.

    They are those of the evaluation rounds or, where count tables are noised and asked for at the
    end alone, those that the tables come to; None where nobody was asked.

    Args:
        config: the run's.
        simulated: whether clients were.
        results: of the run's phases, by name.
    """
    names = ("dense", "pruned", "pruned_before_fine_tuning")
    if not tables_wanted(config, simulated):
        return dict.fromkeys(names)
    if tables_noised(config):
        found = (results.get("fairness") or {}).get("accuracy", {})
        return {name: found.get(name) for name in names}
    phases = ("evaluate-dense", "evaluate-after", f"evaluate-{config.prune.steps}-before")
    return {
        name: results.get(phase, {}).get("accuracy")
        for name, phase in zip(names, phases, strict=True)
    }


def kept_units(architecture: Architecture) -> JsonDict:
    """Count the units that a pruned network has left, in all and by layer."""
    layout, mask = architecture.dense_layout, architecture.mask
    groups = []
    for group in layout.groups:
        part = mask[group.start : group.stop]
        groups.append({"name": group.name, "kept": int(part.sum()), "of": len(part)})
    return {"units": int(mask.sum()), "of": len(layout), "by_group": groups}


def traffic(planned: Mapping[str, Any], dense: nn.Module) -> JsonDict:
    """Count the payload of one round of mask reports.

    Args:
        planned: what the phase "plan" said.
        dense: the network that the question is about.
    """
    size = _WEIGHT_BYTES * weights_vector(dense).numel()
    return {
        "up_bytes_per_client": planned["up_bytes_per_client"],
        "down_bytes_per_client": size,
        "dense_upload_bytes": size,
        "what": "payload of one mask report, and of the question it answers, without framing",
    }


def planned_figures(planned: Mapping[str, Any]) -> JsonDict:
    """Give what the summary repeats of the phase "plan"."""
    return {key: planned[key] for key in _PLANNED}


def missing_by_round(events: Iterable[JsonDict]) -> dict[str, list[int]]:
    """Clients without a usable answer, for every round that had such."""
    found: dict[str, list[int]] = {}
    for event in events:
        found.update(event.get("missing", {}))
    return found


def seconds_by_phase(events: Iterable[JsonDict]) -> dict[str, float]:
    """Seconds of every finished phase, rounds of one stage added up."""
    seconds: dict[str, float] = {}
    for event in events:
        prefix, _, phase = event["phase"].rpartition("/")
        stage = phase.rsplit("-", 1)[0] if phase[-1:].isdigit() else phase
        name = f"{prefix}/{stage}" if prefix else stage
        seconds[name] = round(seconds.get(name, 0.0) + float(event["seconds"]), 3)
    return seconds
