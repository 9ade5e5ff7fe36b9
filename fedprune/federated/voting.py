"""How a step's ranking of units comes about: by private votes, or by what they are compared with.

A ranking is one number a unit, higher = keep. All rankings then go through the same selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import FederationError
from fedprune.federated.answers import Answers
from fedprune.federated.collected import Collected, Collector, magnitudes, posterior_of
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.local_votes import local_votes, shuffled_votes
from fedprune.federated.messages import Question
from fedprune.federated.record_votes import record_votes
from fedprune.federated.secure_votes import secure_votes
from fedprune.federated.steps import Step, task

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """What a step's selection is made from: [num_units] each.

    Attributes:
        score: higher = keep.
        mean, variance: of the votes, where there were votes.
        prior_free: the ranking without the magnitude prior, where one was used.
        score_variance: of the score, where it is an estimate.
        answers: how many clients it rests on; None where none were asked.
        collected: how private answers came about.
    """

    score: Vector
    mean: Vector | None = None
    variance: Vector | None = None
    prior_free: Vector | None = None
    score_variance: Vector | None = None
    answers: int | None = None
    collected: Collected | None = None


Ranker: TypeAlias = Callable[[Experiment, Held, Step, bool], Ranking]


def private_votes(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The clients' private answers, shrunk towards the magnitude line if so configured."""
    if experiment.config.privacy.trust == "none":
        votes, _, count = _plain_answers(experiment, held, step, counterfactual)
        exact = np.zeros_like(votes)
        return Ranking(votes, votes, exact, score_variance=exact, answers=count)
    found = COLLECTORS[experiment.config.privacy.trust](experiment, held, step)
    estimate = found.estimate
    posterior = posterior_of(experiment, held, held.layout(), step, estimate)
    return Ranking(
        estimate.mean if posterior is None else posterior.mean,
        estimate.mean,
        estimate.variance,
        estimate.mean,
        estimate.variance if posterior is None else posterior.variance,
        estimate.num_reports,
        found,
    )


def clean_votes(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The share of clients that keep each unit, without any noise (simulation only)."""
    votes, _, count = _plain_answers(experiment, held, step, counterfactual)
    return Ranking(votes, votes, answers=count)


def pooled_scores(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The mean of the clients' scores, as if they were pooled (simulation only)."""
    _, scores, count = _plain_answers(experiment, held, step, counterfactual)
    return Ranking(scores, answers=count)


def magnitude(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """The l2 norm of each unit's weights: no client is asked."""
    del experiment, step, counterfactual
    return Ranking(magnitudes(held, held.layout()))


def random(experiment: Experiment, held: Held, step: Step, counterfactual: bool) -> Ranking:
    """A seeded shuffle."""
    del counterfactual
    generator = experiment.generator("random ranking", step.number)
    return Ranking(generator.random(len(held.layout())))


COLLECTORS: Mapping[str, Collector] = {
    "local": local_votes,
    "shuffle": shuffled_votes,
    "aggregate": secure_votes,
    "record": record_votes,
}
BASELINES: Mapping[str, Ranker] = {
    "votes_without_noise": clean_votes,
    "pooled": pooled_scores,
    "magnitude": magnitude,
    "random": random,
}


def _plain_answers(
    experiment: Experiment, held: Held, step: Step, counterfactual: bool
) -> tuple[Vector, Vector, int]:
    """Mean masks and mean scores of a step's clients, without noise, and how many answered."""
    layout = held.layout()
    question = experiment.question(
        f"masks-{step.number}",
        held,
        task(experiment, layout.fingerprint, step),
        counterfactual=counterfactual,
    )
    votes, scores, count = np.zeros(len(layout)), np.zeros(len(layout)), 0
    for masks, some_scores in _plain_pairs(experiment, question, step, len(layout)):
        votes += masks.sum(axis=0)
        count += len(masks)
        for score in some_scores:  # client after client: every engine rounds alike
            scores += score
    return votes / count, scores / count, count


def _plain_pairs(
    experiment: Experiment, question: Question, step: Step, num_units: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    """Masks and scores of one or many clients at a time: [clients, num_units] each."""

    def read(answers: Answers) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        packed, scores = answers.rows("mask", "mask"), answers.rows("scores", "scores")
        if packed.shape[1] != (num_units + 7) // 8 or scores.shape[1] != 4 * num_units:
            raise FederationError(f"client {answers.first} sent a mask or scores of another length")
        return (
            np.unpackbits(packed, axis=1, count=num_units).astype(bool),
            np.frombuffer(scores.tobytes(), dtype="<f4").reshape(len(answers), num_units),
        )

    label = f"masks of step {step.number}"
    return experiment.ask_together("query.masks", question, step.clients, label, read)
