"""Federated averaging (McMahan et al. 2017), one resumable phase a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.messages import Question, answer_number, answer_weights
from fedprune.runs import Architecture


def train_rounds(
    experiment: Experiment,
    start: Held,
    *,
    prefix: str,
    stage: str,
    rounds: int,
    learning_rate: float,
    counterfactual: bool = False,
) -> Held:
    """Run rounds of federated averaging from a model; keep only the last one's checkpoint.

    Participants and the order of their rows depend on `stage` and the round alone, so that
    different masks (`prefix`) get the same fine-tuning.

    Args:
        experiment: the run.
        start: model to begin with.
        prefix: names the path of pruning in phase names; "" for the private one.
        stage: names the series of rounds.
        rounds: how many.
        learning_rate: of the clients' gradient descent; it falls to zero along a half cosine.
        counterfactual: whether the path exists in simulation only.
    """
    held = start
    numbers = range(1, rounds + 1)
    for number in experiment.reporter.track(numbers, f"{prefix}{stage}", rounds):
        before = held
        round_name = f"{stage}-{number}"
        rate = learning_rate * _half_cosine(number - 1, rounds)

        def action(
            model: Held = before, name: str = round_name, step: float = rate
        ) -> tuple[Architecture, Tensor, JsonDict]:
            return _round(experiment, model, name, step, counterfactual)

        held, _ = experiment.model_phase(f"{prefix}{round_name}", action)
        if before is not start:
            before.discard()
    return held


def _half_cosine(step: int, steps: int) -> float:
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps))))


def _round(
    experiment: Experiment,
    held: Held,
    round_name: str,
    learning_rate: float,
    counterfactual: bool,
) -> tuple[Architecture, Tensor, JsonDict]:
    train = experiment.config.train
    question = experiment.question(
        round_name,
        held,
        {
            "local_epochs": train.local_epochs,
            "batch_size": train.batch_size,
            "learning_rate": learning_rate,
            "momentum": train.momentum,
            "weight_decay": train.weight_decay,
        },
        counterfactual=counterfactual,
    )
    chosen = min(train.clients_per_round, len(experiment.clients))
    generator = experiment.generator("participants", round_name)
    participants = sorted(generator.permutation(len(experiment.clients))[:chosen].tolist())
    weights, loss, count = average(experiment, question, participants)
    return held.architecture, weights, {"loss": loss, "clients": count}


def average(
    experiment: Experiment, question: Question, participants: Sequence[int]
) -> tuple[Tensor, float, int]:
    """Average the answers' weights by their rows, summed in float64 in partition order."""
    size = question.weights.numel()

    def read(client: int, answer: RecordDict) -> tuple[float, Tensor, float]:
        del client
        rows = answer_number(answer, "rows", least=1)
        return rows, answer_weights(answer, size), answer_number(answer, "loss")

    total = torch.zeros(size, dtype=torch.float64)
    rows = loss = 0.0
    count = 0
    for _, (own, weights, own_loss) in experiment.ask("train", question, participants, "", read):
        total += own * weights.double()
        rows += own
        loss += own * own_loss
        count += 1
    return (total / rows).float(), loss / rows, count
