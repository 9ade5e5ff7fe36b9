"""Votes under trust = "aggregate": nothing but the sum of the masks and its noise becomes known."""

from __future__ import annotations

import numpy as np
import torch

from fedprune import pruning
from fedprune.federated.collected import Collected
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.secure_rounds import secure_sum
from fedprune.federated.steps import Step, task
from fedprune.runs import aggregate_mechanism, phase_round


def secure_votes(experiment: Experiment, held: Held, step: Step) -> Collected:
    """Sum the step's masks securely; every client keeps the same number of units."""
    layout, config = held.layout(), experiment.config
    kept = pruning.select_many(
        torch.zeros(1, len(layout)), layout, keep_units=step.keep_units, floor=config.prune.floor
    )
    mechanism = aggregate_mechanism(config, len(layout), int(kept.sum()))
    found = secure_sum(
        experiment,
        held,
        task(experiment, layout.fingerprint, step),
        phase_round(step.number, 1),
        step.clients,
        mechanism,
        masked=config.privacy.masking or not experiment.simulated,
    )
    estimate = mechanism.estimate(found.total, len(found.survivors))
    facts = {
        "round": phase_round(step.number, 1),
        "asked": len(step.clients),
        "reports": len(found.survivors),
        "units": len(layout),
        "mechanism": repr(mechanism),
        "modulus_bits": mechanism.modulus_bits,
        "scale": mechanism.scale,
        "noise_variance": float(mechanism.noise_variance),
    }
    arrays = {
        "phase1.units": np.arange(len(layout), dtype=np.int64),
        "sum": found.total.astype(np.uint64).view(np.int64),
    }
    return Collected(estimate, {"phases": [facts], "kept_per_client": int(kept.sum())}, arrays)
