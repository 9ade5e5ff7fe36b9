"""Votes recomputed from the reports' bytes, and the first selection from the votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch

from fedprune import privacy, pruning
from fedprune.audit.evidence import Evidence
from fedprune.privacy import Report, ThresholdResponse


def votes_flaw(evidence: Evidence, reports_of: Mapping[str, Sequence[Report]]) -> str | None:
    """Recompute every step's votes.

    Args:
        evidence: with votes.safetensors.
        reports_of: the reports of every round, from a ledger or from receipts.

    Returns:
        None where the stored votes follow from them, else the first unit whose vote does not.
    """
    votes = evidence.folder.read_tensors("votes.safetensors")
    for step in range(1, evidence.config.prune.steps + 1):
        reports = reports_of.get(f"report-{step}", ())
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


def selection_flaw(evidence: Evidence) -> str | None:
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
