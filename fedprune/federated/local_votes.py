"""Votes from reports that each client randomises itself: in phases, or through a shuffler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedprune import privacy
from fedprune.errors import FederationError, LayoutMismatchError, ReportError
from fedprune.federated.collected import Collected, posterior_of
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.messages import Question, answer_bytes
from fedprune.federated.steps import Step, task
from fedprune.privacy import Mechanism, PhaseVotes, Report, VoteEstimate
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
    answers = experiment.ask(
        "query.report", phase.question, sorted(step.ranked), _label(phase), _reader(layout, phase)
    )
    payloads = sorted(bytes(report) for _, report in answers)  # in an order that says nothing
    least = min_reports(experiment.config)
    if len(payloads) < least:
        raise FederationError(
            f"{len(payloads)} reports came to the shuffler in step {step.number}, "
            f"privacy.min_reports = {least} are needed for the promised epsilon; none was forwarded"
        )
    mechanism = phase.mechanism
    reports = _rows(mechanism, payloads)
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
    clients = sorted(phase.clients)
    ranks = privacy.public_ranks(config.data.clients, ranks_label(config))
    blocks = privacy.assigned_blocks(ranks, mechanism.num_blocks)
    read = _reader(layout, phase, blocks)
    answers = experiment.ask("query.report", phase.question, clients, _label(phase), read)
    reports = _rows(mechanism, [bytes(report) for _, report in answers])
    told = _told(phase, reports, "assigned")
    _warn(experiment, told)
    return mechanism.estimate(reports, counts="assigned"), told


def _rows(mechanism: Mechanism, payloads: Sequence[bytes]) -> Rows:
    """Put reports into one array: [count, report_bytes] uint8."""
    joined = np.frombuffer(b"".join(payloads), dtype=np.uint8)
    return joined.reshape(len(payloads), mechanism.report_bytes)


def _label(phase: _Phase) -> str:
    return f"reports, {phase.question.round.replace('report-', 'step ')}"


def _reader(
    layout: UnitLayout, phase: _Phase, blocks: Index | None = None
) -> Callable[[int, RecordDict], Report]:
    def read(client: int, answer: RecordDict) -> Report:
        record = answer.config_records["answer"]
        if record.get("fingerprint") != layout.fingerprint:
            raise LayoutMismatchError(
                f"client {client} answers about layout {str(record.get('fingerprint'))[:12]}, the "
                f"server asked about {layout.fingerprint[:12]}"
            )
        report = Report(answer_bytes(answer, "report", "report"))
        try:
            (about,), _ = phase.mechanism.format.decode([report])
        except ReportError as error:
            raise ReportError(f"client {client}: {error}") from None
        if blocks is not None and about != blocks[client]:
            raise ReportError(
                f"client {client} reports about block {about}, its assigned one is {blocks[client]}"
            )
        return report

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
