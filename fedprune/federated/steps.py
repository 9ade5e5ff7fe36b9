"""The steps of a pruning schedule, and who is asked in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedprune import pruning
from fedprune.federated.experiment import Experiment
from fedprune.runs import ranked_clients


@dataclass(frozen=True)
class Step:
    """One step of the pruning schedule.

    Attributes:
        number: 1, 2, ...
        clients: who is asked in it, by number.
        ranked: the same clients in the public order that phases and blocks follow.
        keep_units: the fraction of the current model's units that each client votes to keep.
        precision: of the passes that score simulated clients.
    """

    number: int
    clients: tuple[int, ...]
    ranked: tuple[int, ...]
    keep_units: float
    precision: str = "float32"


def schedule(experiment: Experiment) -> list[tuple[Step, float]]:
    """Plan the steps: who is asked (disjoint cohorts) and what fraction of the dense stays."""
    config = experiment.config
    _, final = config.prune.budget
    fractions = pruning.keep_fractions(config.prune.schedule, config.prune.steps, final)
    cohorts = ranked_clients(config)
    return [
        (Step(number, tuple(sorted(cohort)), cohort, 1.0), fraction)
        for number, (cohort, fraction) in enumerate(zip(cohorts, fractions, strict=True), start=1)
    ]


def task(experiment: Experiment, fingerprint: str, step: Step) -> Mapping[str, str | float]:
    """What clients must know to find their own mask."""
    config = experiment.config
    asked: dict[str, str | float] = {
        "criterion": config.prune.criterion,
        "fingerprint": fingerprint,
        "keep_units": step.keep_units,
        "floor": config.prune.floor,
    }
    if step.precision != "float32":
        asked["precision"] = step.precision
    if config.prune.group_scores != "off":
        asked |= {"group_scores": config.prune.group_scores, "groups": config.data.groups}
    return asked
