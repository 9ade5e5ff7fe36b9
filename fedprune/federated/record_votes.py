"""Votes under trust = "record": each client's noised sum of bounded per-record scores."""

from __future__ import annotations

import numpy as np
from flwr.app import RecordDict

from fedprune.errors import LayoutMismatchError, ReportError
from fedprune.federated.collected import Collected
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.messages import answer_bytes
from fedprune.federated.record_answers import record_settings
from fedprune.federated.steps import Step, task
from fedprune.privacy import Report
from fedprune.runs import phase_round, record_mechanism


def record_votes(experiment: Experiment, held: Held, step: Step) -> Collected:
    """Ask every client of the step for its noised sum; the mean over clients ranks the units."""
    layout = held.layout()
    mechanism = record_mechanism(experiment.config, len(layout))
    settings = {**task(experiment, layout.fingerprint, step), **record_settings(mechanism)}
    question = experiment.question(phase_round(step.number, 1), held, settings)

    def read(client: int, answer: RecordDict) -> Report:
        if answer.config_records["answer"].get("fingerprint") != layout.fingerprint:
            raise LayoutMismatchError(f"client {client} answers about another layout")
        report = Report(answer_bytes(answer, "report", "report"))
        try:
            mechanism.decode([report])
        except ReportError as error:
            raise ReportError(f"client {client}: {error}") from None
        return report

    label = f"scores of step {step.number}"
    heard = experiment.ask("query.record_scores", question, step.clients, label, read)
    reports = [report for _, report in heard]
    estimate = mechanism.estimate(reports).votes()
    facts = {
        "round": question.round,
        "asked": len(step.clients),
        "reports": len(reports),
        "units": len(layout),
        "mechanism": repr(mechanism),
    }
    units = np.arange(len(layout), dtype=np.int64)
    return Collected(estimate, {"phases": [facts]}, {"phase1.units": units})
