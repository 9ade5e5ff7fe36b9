"""Votes from reports that each client randomises itself: in phases, or through a shuffler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune import privacy
from fedprune.errors import FederationError, LayoutMismatchError, ReportError
from fedprune.federated.answers import Answers
from fedprune.federated.collected import Collected, posterior_of
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.messages import Question
from fedprune.federated.steps import Step, task
from fedprune.privacy import Mechanism, PhaseVotes, VoteEstimate
from fedprune.privacy.mechanisms.estimation import Counts
from fedprune.privacy.mechanisms.reports import Rows
from fedprune.pruning import UnitLayout
from fedprune.runs import (
    assigns_blocks,
    central_guarantee,
    min_reports,
    phase_round,
    ranks_label,
    report_mechanism,
    step_phases,
)

Index = NDArray[np.int64]
_LIARS = 0.01


@dataclass(frozen=True)
class _Phase:
    """One phase's question and its mechanism."""

    question: Question
    mechanism: Mechanism
    clients: tuple[int, ...]
    units: Index


def local_votes(experiment: Experiment, held: Held, step: Step) -> Collected:
    """Ask disjoint cohorts one after another; later ones about the units still undecided."""
    layout = held.layout()
    found: list[PhaseVotes] = []
    facts: list[JsonDict] = []
    planned = step_phases(experiment.config, len(layout), step.ranked)
    for number, (cohort, ask) in enumerate(planned, start=1):
        units = _undecided(experiment, held, layout, step, found, ask)
        phase = _phase(experiment, held, layout, step, number, cohort, units)
        estimate, told = _ask(experiment, layout, phase)
        found.append(PhaseVotes(units, estimate))
        facts.append(told)
    votes = found[0].estimate if len(found) == 1 else privacy.combine(found, len(layout))
    arrays = {f"phase{i}.units": part.units for i, part in enumerate(found, start=1)}
    return Collected(votes, {"phases": facts}, arrays)


def shuffled_votes(experiment: Experiment, held: Held, step: Step) -> Collected:
    """Collect reports whose senders a shuffler has taken away; too few are never looked at."""
    layout = held.layout()
    units = np.arange(len(layout), dtype=np.int64)
    phase = _phase(experiment, held, layout, step, 1, step.ranked, units)
    reports = _shuffled(_collect(experiment, phase, step.ranked, _reader(layout, phase)))
    least = min_reports(experiment.config)
    if len(reports) < least:
        raise FederationError(
            f"{len(reports)} reports came to the shuffler in step {step.number}, "
            f"privacy.min_reports = {least} are needed for the promised epsilon; none was forwarded"
        )
    mechanism = phase.mechanism
    counts = privacy.counts_for(mechanism, len(reports))
    estimate = mechanism.estimate(reports, counts=counts)
    told = _told(phase, reports, counts)
    told["central"] = central_guarantee(experiment.config, mechanism, len(reports))
    _warn(experiment, told)
    return Collected(estimate, {"phases": [told]}, {"phase1.units": units})


def _undecided(
    experiment: Experiment,
    held: Held,
    layout: UnitLayout,
    step: Step,
    found: Sequence[PhaseVotes],
    ask: int,
) -> Index:
    """All units at first, then those whose side of the cut is least certain."""
    if not found:
        return np.arange(len(layout), dtype=np.int64)
    votes = privacy.combine(found, len(layout))
    posterior = posterior_of(experiment, held, layout, step, votes) or votes
    keep = round(step.keep_units * len(layout))
    return privacy.choose_undecided(posterior.mean, posterior.variance, keep, ask)


def _phase(
    experiment: Experiment,
    held: Held,
    layout: UnitLayout,
    step: Step,
    number: int,
    cohort: tuple[int, ...],
    units: Index,
) -> _Phase:
    mechanism = report_mechanism(experiment.config, len(units), len(cohort))
    settings = {
        **task(experiment, layout.fingerprint, step),
        "mechanism": mechanism.name,
        "epsilon": mechanism.epsilon,
        "block_units": mechanism.block_units,
        "threshold": getattr(mechanism, "threshold", mechanism.block_units),
        "units": _bitmap(units, len(layout)),
        "clients": experiment.config.data.clients,
        "ranks": ranks_label(experiment.config) if assigns_blocks(experiment.config) else "",
    }
    question = experiment.question(phase_round(step.number, number), held, settings)
    return _Phase(question, mechanism, cohort, units)


def _ask(
    experiment: Experiment, layout: UnitLayout, phase: _Phase
) -> tuple[VoteEstimate, JsonDict]:
    """Sum one cohort's reports as they come."""
    mechanism, config = phase.mechanism, experiment.config
    ranks = privacy.public_ranks(config.data.clients, ranks_label(config))
    blocks = privacy.assigned_blocks(ranks, mechanism.num_blocks)
    reports = _collect(experiment, phase, phase.clients, _reader(layout, phase, blocks))
    told = _told(phase, reports, "assigned")
    _warn(experiment, told)
    return mechanism.estimate(reports, counts="assigned"), told


def _collect(
    experiment: Experiment,
    phase: _Phase,
    clients: Sequence[int],
    read: Callable[[Answers], Rows],
) -> Rows:
    """Collect reports in the order of the clients: [count, report_bytes] uint8.

    Deployed clients' are kept: which units a later phase asks about follows from them, and after a
    restart of the server somebody else might be there, so that those who have answered the later
    phase already would be asked another question.
    """
    if not experiment.simulated and (kept := _kept(experiment, phase)) is not None:
        return kept
    label = f"reports, {phase.question.round.replace('report-', 'step ')}"
    heard = experiment.ask_together("query.report", phase.question, sorted(clients), label, read)
    reports = np.concatenate(list(heard))
    if not experiment.simulated:
        _keep(experiment, phase, reports)
    return reports


def _keep(experiment: Experiment, phase: _Phase, reports: Rows) -> None:
    name = f"checkpoints/{phase.question.round}"
    missing = experiment.conversation.missing.get(phase.question.round, {})
    experiment.folder.write_json(
        f"{name}-missing.json", {str(c): why for c, why in missing.items()}
    )
    experiment.folder.write_tensors(
        f"{name}-reports.safetensors", {"reports": torch.from_numpy(reports)}
    )


def _kept(experiment: Experiment, phase: _Phase) -> Rows | None:
    name = f"checkpoints/{phase.question.round}"
    if not experiment.folder.has(f"{name}-reports.safetensors"):
        return None
    missing = experiment.folder.read_json(f"{name}-missing.json")
    if missing:
        found = {int(client): str(why) for client, why in missing.items()}
        experiment.conversation.missing[phase.question.round] = found
    reports = experiment.folder.read_tensors(f"{name}-reports.safetensors")["reports"]
    return np.asarray(reports.numpy(), dtype=np.uint8)


def _shuffled(reports: Rows) -> Rows:
    """Sort reports by their bytes: an order that says nothing."""
    return reports[np.lexsort(reports.T[::-1])]


def _reader(
    layout: UnitLayout, phase: _Phase, blocks: Index | None = None
) -> Callable[[Answers], Rows]:
    def read(answers: Answers) -> Rows:
        fingerprint, first = str(answers.alike("fingerprint")), answers.first
        if fingerprint != layout.fingerprint:
            raise LayoutMismatchError(
                f"client {first} answers about layout {fingerprint[:12]}, the server asked about "
                f"{layout.fingerprint[:12]}"
            )
        reports, size = answers.rows("report", "report"), phase.mechanism.report_bytes
        if reports.shape[1] != size:
            raise ReportError(
                f"client {first}: its report must have {size} bytes, got {reports.shape[1]}"
            )
        try:
            about, _ = phase.mechanism.format.decode(reports)
        except ReportError as error:
            raise ReportError(f"client {first}: {error}") from None
        if blocks is not None and (about != blocks[answers.clients]).any():
            raise ReportError(
                f"client {first} reports about block {about[0]}, its assigned one is "
                f"{blocks[first]}"
            )
        return reports

    return read


def _told(phase: _Phase, reports: Rows, counts: Counts) -> JsonDict:
    """What the step's event says of a phase: who, what, and what hostile clients could do."""
    mechanism, assigned = phase.mechanism, counts == "assigned"
    tests = privacy.check_reports(mechanism, reports, assigned=assigned)
    return {
        "round": phase.question.round,
        "asked": len(phase.clients),
        "reports": len(reports),
        "units": len(phase.units),
        "mechanism": repr(mechanism),
        "counts": counts,
        "influence": privacy.influence(mechanism, len(reports), _LIARS, counts=counts).sentence,
        "honesty": [test.sentence() for test in tests],
        "suspicious": any(test.suspicious() for test in tests),
    }


def _warn(experiment: Experiment, told: JsonDict) -> None:
    if told["suspicious"]:
        for sentence in told["honesty"]:
            if "not all clients are honest" in sentence:
                experiment.reporter.say(f"warning: {told['round']}: {sentence}")


def _bitmap(units: Index, num_units: int) -> str:
    """Write which units are asked about; "" for all of them."""
    if len(units) == num_units:
        return ""
    asked = np.zeros(num_units, dtype=bool)
    asked[units] = True
    return np.packbits(asked).tobytes().hex()
