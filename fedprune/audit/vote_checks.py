"""Votes recomputed from the answers' bytes, and the first selection from the votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedprune import privacy, pruning, runs
from fedprune.audit.evidence import Evidence
from fedprune.errors import FedpruneError
from fedprune.privacy import PhaseVotes, Report, VoteEstimate

Answers = Mapping[str, Sequence[tuple[int, Report]]]
Arrays = Mapping[str, NDArray[np.generic]]


def votes_flaw(evidence: Evidence, answers: Answers) -> str | None:
    """Recompute every step's votes.

    Args:
        evidence: with votes.safetensors.
        answers: of every round, each with its client, from a ledger or from receipts.

    Returns:
        None where the stored votes follow from them, else the first unit whose vote does not.
    """
    votes = evidence.folder.read_tensors("votes.safetensors")
    cohorts = runs.ranked_clients(evidence.config)
    for step, ranked in enumerate(cohorts, start=1):
        prefix = f"step{step}."
        arrays = {
            name.removeprefix(prefix): tensor.numpy()
            for name, tensor in votes.items()
            if name.startswith(prefix)
        }
        try:
            found = _RECOMPUTED[evidence.config.privacy.trust](
                evidence, step, ranked, arrays, answers
            )
        except FedpruneError as error:
            return f"the votes of step {step} cannot be computed again: {error}"
        close = np.isclose(found.mean, arrays["mean"], rtol=0, atol=1e-9)
        close &= np.isclose(found.variance, arrays["variance"], rtol=1e-9, atol=0)
        wrong = np.flatnonzero(~close)  # what is not a number is not close to anything
        if wrong.size:
            return f"the vote of unit {wrong[0]} in step {step} does not follow from the reports"
    return None


def _local(
    evidence: Evidence, step: int, ranked: Sequence[int], arrays: Arrays, answers: Answers
) -> VoteEstimate:
    """Every phase's reports, each about the block that its client was assigned."""
    config, num_units = evidence.config, len(arrays["mean"])
    ranks = privacy.public_ranks(config.data.clients, runs.ranks_label(config))
    found = []
    phases = runs.step_phases(config, num_units, ranked)
    for number, (cohort, _) in enumerate(phases, start=1):
        units = np.asarray(arrays[f"phase{number}.units"], dtype=np.int64)
        mechanism = runs.report_mechanism(config, len(units), len(cohort))
        heard = sorted(answers.get(runs.phase_round(step, number), ()))
        blocks = privacy.assigned_blocks(
            ranks[[client for client, _ in heard]], mechanism.num_blocks
        )
        sums = mechanism.add(mechanism.new_sums(), [report for _, report in heard], blocks=blocks)
        found.append(PhaseVotes(units, mechanism.estimate_sums(sums, counts="assigned")))
    return found[0].estimate if len(found) == 1 else privacy.combine(found, num_units)


def _shuffled(
    evidence: Evidence, step: int, ranked: Sequence[int], arrays: Arrays, answers: Answers
) -> VoteEstimate:
    mechanism = runs.report_mechanism(evidence.config, len(arrays["mean"]), len(ranked))
    reports = [report for _, report in answers.get(runs.phase_round(step, 1), ())]
    counts = privacy.counts_for(mechanism, len(reports))
    return mechanism.estimate(reports, counts=counts)


def _scored(
    evidence: Evidence, step: int, ranked: Sequence[int], arrays: Arrays, answers: Answers
) -> VoteEstimate:
    del ranked
    mechanism = runs.record_mechanism(evidence.config, len(arrays["mean"]))
    heard = sorted(answers.get(runs.phase_round(step, 1), ()))
    return mechanism.estimate([report for _, report in heard]).votes()


def _summed(
    evidence: Evidence, step: int, ranked: Sequence[int], arrays: Arrays, answers: Answers
) -> VoteEstimate:
    """From the sum that was revealed; single answers are masked and say nothing."""
    del ranked, answers
    told = evidence.results()[f"vote-{step}"]
    layout_units = len(arrays["mean"])
    mechanism = runs.aggregate_mechanism(evidence.config, layout_units, told["kept_per_client"])
    total = np.asarray(arrays["sum"], dtype=np.int64).view(np.uint64).astype(mechanism.dtype)
    return mechanism.estimate(total, int(told["reports"]))


_Recompute = Callable[[Evidence, int, Sequence[int], Arrays, Answers], VoteEstimate]
_RECOMPUTED: Mapping[str, _Recompute] = {
    "local": _local,
    "shuffle": _shuffled,
    "record": _scored,
    "aggregate": _summed,
}


def selection_flaw(evidence: Evidence) -> str | None:
    """Redo the first step: posterior from votes and magnitudes, then the selection."""
    votes = evidence.folder.read_tensors("votes.safetensors")
    mean, spread = votes["step1.mean"].numpy(), votes["step1.variance"].numpy()
    posterior, uncertain = mean, spread
    model, architecture = evidence.folder.load_dense()
    layout = architecture.dense_layout
    if evidence.config.privacy.prior == "magnitude":
        magnitude = pruning.score(model, layout, [], criterion="magnitude_l2").double().numpy()
        groups = np.asarray(layout.group_of, dtype=np.int64)
        found = privacy.magnitude_posterior(mean, spread, magnitude, groups)
        posterior, uncertain = found.mean, found.variance
    if not np.allclose(posterior, votes["step1.posterior"].numpy(), rtol=0, atol=1e-6):
        return "the posterior of step 1 does not follow from votes and magnitudes"
    budget = evidence.results()["vote-1"]["budget"]
    times = runs.latency_table(evidence.config, evidence.folder)
    stored, mask = votes["step1.posterior"], votes["step1.mask"].bool()
    chosen = runs.select_units(evidence.config, stored, layout, budget, times)
    values = stored.double().numpy()
    if not runs.may_be_preferred(evidence.config, chosen, mask, values, uncertain, layout):
        return "the units kept in step 1 are not those that the posterior selects"
    return None
