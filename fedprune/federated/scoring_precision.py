"""May simulated clients be scored in bfloat16? Asked of a sample of them before a step's votes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedprune import pruning, study
from fedprune.federated.messages import model_digest
from fedprune.federated.station import RowSource

if TYPE_CHECKING:
    from fedprune.federated.experiment import Experiment, Held

SAMPLE = 2000  # clients; the votes of fewer lie closer together and make bfloat16 look worse


@dataclass(frozen=True)
class ScoringPrecision:
    """Which precision a step's clients are scored in, and why; "" where none was asked for."""

    used: str = "float32"
    sentence: str = ""


def precision_of(experiment: Experiment, held: Held, keep_units: float) -> ScoringPrecision:
    """Compare the votes' masks of the first clients in both precisions, once for each model.

    The sample is of the whole federation and not of a cohort, so that every engine decides alike.

    Args:
        experiment: the run; only a simulation has all rows at hand.
        held: the model that is voted on.
        keep_units: the fraction of its units that clients vote to keep.
    """
    config = experiment.config
    wanted = config.engine.precision
    if wanted == "float32" or not experiment.simulated or config.privacy.trust == "record":
        return ScoringPrecision()
    known, key = experiment.precisions, f"{model_digest(*held.value)} {keep_units}"
    if key not in known:
        known[key] = _checked(experiment, held, keep_units)
        experiment.reporter.say(known[key].sentence)
    return known[key]


def _checked(experiment: Experiment, held: Held, keep_units: float) -> ScoringPrecision:
    config = experiment.config
    dataset = study.load_dataset(config)
    federation = study.divide(config, dataset)
    places = [federation.train_index(i) for i in range(min(SAMPLE, config.data.clients))]
    owners = np.repeat(np.arange(len(places)), [len(part) for part in places])
    found = pruning.check_precision(
        held.model(),
        held.layout(),
        RowSource(dataset.train, np.concatenate(places)),
        None,
        torch.from_numpy(owners),
        config.engine.precision,
        keep_units=keep_units,
        floor=config.prune.floor,
        criterion=config.prune.criterion,
        seed=config.seed,
    )
    return ScoringPrecision(found.used, found.sentence)
