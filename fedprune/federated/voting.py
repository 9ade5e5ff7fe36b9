"""How a step's ranking of units comes about: by private votes, or by what they are compared with.

A ranking is one number a unit, higher = keep. All rankings then go through the same selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedprune import pruning
from fedprune.config import Scalar
from fedprune.errors import FederationError, LayoutMismatchError, ReportError
from fedprune.federated.experiment import Experiment, Held, mask_from_bytes
from fedprune.federated.messages import Question, answer_bytes
from fedprune.privacy import (
    Report,
    ThresholdResponse,
    VoteEstimate,
    counts_for,
    magnitude_posterior,
)
from fedprune.pruning import UnitLayout

Vector = NDArray[np.float64]
_BATCH = 1000


@dataclass(frozen=True)
class Step:
    """One step of the pruning schedule.

    Attributes:
        number: 1, 2, ...
        clients: who is asked in it.
        keep_units: the fraction of the current model's units that each client votes to keep.
    """

    number: int
    clients: tuple[int, ...]
    keep_units: float


@dataclass(frozen=True)
class Ranking:
    """What a step's selection is made from: [num_units] each.

    Attributes:
        score: higher = keep.
        mean, variance: of the votes, where there were votes.
        prior_free: the ranking without the magnitude prior, where one was used.
        answers: how many clients it rests on; None where none were asked.
    """

    score: Vector
    mean: Vector | None = None
    variance: Vector | None = None
    prior_free: Vector | None = None
    answers: int | None = None


Ranker: TypeAlias = Callable[[Experiment, Held, Step, bool], Ranking]


def private_votes(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """Randomised reports, debiased, shrunk towards the magnitude line if so configured."""
    if experiment.config.privacy.trust == "none":
        votes, _, count = _plain_answers(experiment, held, step, counterfactual)
        return Ranking(votes, votes, np.zeros_like(votes), answers=count)  # exact for them
    estimate, count = _collect_reports(experiment, held, step)
    if experiment.config.privacy.prior == "none":
        return Ranking(estimate.mean, estimate.mean, estimate.variance, estimate.mean, count)
    layout = held.layout()
    posterior = magnitude_posterior(
        estimate.mean,
        estimate.variance,
        _magnitude(held, layout),
        np.asarray(layout.group_of, dtype=np.int64),
    )
    return Ranking(posterior.mean, estimate.mean, estimate.variance, estimate.mean, count)


def clean_votes(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The share of clients that keep each unit, without any noise (simulation only)."""
    votes, _, count = _plain_answers(experiment, held, step, counterfactual)
    return Ranking(votes, answers=count)


def pooled_scores(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The mean of the clients' scores, as if they were pooled (simulation only)."""
    _, scores, count = _plain_answers(experiment, held, step, counterfactual)
    return Ranking(scores, answers=count)


def magnitude(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The l2 norm of each unit's weights: no client is asked."""
    del experiment, step, counterfactual
    return Ranking(_magnitude(held, held.layout()))


def random(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """A seeded shuffle."""
    del counterfactual
    generator = experiment.generator("random ranking", step.number)
    return Ranking(generator.random(len(held.layout())))


BASELINES: Mapping[str, Ranker] = {
    "votes_without_noise": clean_votes,
    "pooled": pooled_scores,
    "magnitude": magnitude,
    "random": random,
}


def _magnitude(held: Held, layout: UnitLayout) -> Vector:
    scores = pruning.score(held.model(), layout, [], criterion="magnitude_l2")
    return np.asarray(scores.double().numpy())


def _task(experiment: Experiment, layout: UnitLayout, step: Step) -> dict[str, Scalar]:
    return {
        "criterion": experiment.config.prune.criterion,
        "fingerprint": layout.fingerprint,
        "keep_units": step.keep_units,
        "floor": experiment.config.prune.floor,
    }


def _collect_reports(experiment: Experiment, held: Held, step: Step) -> tuple[VoteEstimate, int]:
    layout = held.layout()
    mechanism = ThresholdResponse(experiment.config.privacy.epsilon, len(layout))
    settings = _task(experiment, layout, step) | {
        "epsilon": mechanism.epsilon,
        "block_units": mechanism.block_units,
        "threshold": mechanism.threshold,
    }
    question = experiment.question(f"report-{step.number}", held, settings)

    def read(client: int, answer: RecordDict) -> Report:
        return _checked_report(mechanism, layout, client, answer)

    answers = experiment.ask(
        "query.report", question, step.clients, f"reports of step {step.number}", read
    )
    sums, count = mechanism.new_sums(), 0
    reports: list[Report] = []
    for _, report in answers:
        reports.append(report)
        count += 1
        if len(reports) == _BATCH:
            sums, reports = mechanism.add(sums, reports), []
    sums = mechanism.add(sums, reports)
    return mechanism.estimate_sums(sums, counts=counts_for(mechanism, count)), count


def _checked_report(
    mechanism: ThresholdResponse, layout: UnitLayout, client: int, answer: RecordDict
) -> Report:
    record = answer.config_records["answer"]
    if record.get("fingerprint") != layout.fingerprint:
        raise LayoutMismatchError(
            f"client {client} answers about layout {str(record.get('fingerprint'))[:12]}, the "
            f"server asked about {layout.fingerprint[:12]}"
        )
    payload = answer_bytes(answer, "report", "report")
    try:
        mechanism.format.decode([Report(payload)])
    except ReportError as error:
        raise ReportError(f"client {client}: {error}") from None
    return Report(payload)


def _plain_answers(
    experiment: Experiment, held: Held, step: Step, counterfactual: bool
) -> tuple[Vector, Vector, int]:
    """Mean masks and mean scores of a step's clients, without noise, and how many answered."""
    layout = held.layout()
    question = experiment.question(
        f"masks-{step.number}", held, _task(experiment, layout, step), counterfactual=counterfactual
    )
    votes, scores, count = np.zeros(len(layout)), np.zeros(len(layout)), 0
    for mask, score in _plain_pairs(experiment, question, step, len(layout)):
        votes += mask
        scores += score
        count += 1
    return votes / count, scores / count, count


def _plain_pairs(
    experiment: Experiment, question: Question, step: Step, num_units: int
) -> Iterator[tuple[NDArray[np.bool_], Vector]]:
    def read(client: int, answer: RecordDict) -> tuple[NDArray[np.bool_], Vector]:
        packed = answer_bytes(answer, "mask", "mask")
        scores = answer_bytes(answer, "scores", "scores")
        if len(packed) != (num_units + 7) // 8 or len(scores) != 4 * num_units:
            raise FederationError(f"client {client} sent a mask or scores of another length")
        return (
            mask_from_bytes(packed, num_units),
            np.frombuffer(scores, dtype="<f4").astype(np.float64),
        )

    label = f"masks of step {step.number}"
    for _, pair in experiment.ask("query.masks", question, step.clients, label, read):
        yield pair
