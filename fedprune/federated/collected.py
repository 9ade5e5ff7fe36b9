"""What a step's private answers come to, whoever had to be trusted for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.steps import Step
from fedprune.privacy import Posterior, VoteEstimate, magnitude_posterior
from fedprune.pruning import UnitLayout, score

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Collected:
    """Votes, and how they came about.

    Attributes:
        estimate: of all units of the step's layout.
        facts: what the step's event says of them.
        arrays: what votes.safetensors keeps of them, by name.
    """

    estimate: VoteEstimate
    facts: JsonDict = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


Collector: TypeAlias = Callable[[Experiment, Held, Step], Collected]


def magnitudes(held: Held, layout: UnitLayout) -> Vector:
    """The l2 norm of each unit's weights: [num_units]."""
    found = score(held.model(), layout, [], criterion="magnitude_l2")
    return np.asarray(found.double().numpy())


def posterior_of(
    experiment: Experiment, held: Held, layout: UnitLayout, step: Step, estimate: VoteEstimate
) -> Posterior | None:
    """Shrink votes towards the magnitude line; None where the configuration wants no prior.

    From the second step on, what the step before said of the units that are still there is one
    more feature of the line: its clients were others, so nothing is counted twice.
    """
    if experiment.config.privacy.prior == "none":
        return None
    groups = np.asarray(layout.group_of, dtype=np.int64)
    return magnitude_posterior(
        estimate.mean,
        estimate.variance,
        magnitudes(held, layout),
        groups,
        earlier=_earlier(experiment, step),
    )


def _earlier(experiment: Experiment, step: Step) -> Vector | None:
    if step.number == 1:
        return None
    votes = experiment.folder.read_tensors("votes.safetensors")
    prefix = f"step{step.number - 1}."
    if experiment.config.prune.regrow:  # the same units are asked about again
        return np.asarray(votes[f"{prefix}posterior"].numpy())
    return np.asarray(votes[f"{prefix}posterior"][votes[f"{prefix}mask"].bool()].numpy())
