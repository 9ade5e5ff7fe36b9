"""Federated averaging (McMahan et al. 2017), one resumable phase a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedprune import pruning
from fedprune.config import Config, Scalar
from fedprune.federated.answers import Answers
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.group_duals import Weighted, weigh
from fedprune.federated.messages import Question
from fedprune.federated.private_steps import PrivateTraining
from fedprune.federated.private_training import training_settings
from fedprune.federated.reuse import leave, take_over, training_series
from fedprune.runs import Architecture, participants, round_event

OPEN, PRIVATE, AGAIN = "train", "train.private", "train.again"


def train_rounds(
    experiment: Experiment,
    start: Held,
    *,
    prefix: str,
    stage: str,
    rounds: int,
    learning_rate: float,
    counterfactual: bool = False,
    keep: int | None = None,
    compared: Held | None = None,
) -> Held:
    """Run rounds of federated averaging from a model; keep only the last one's checkpoint.

    In a sweep, rounds in the open that another run has already done are taken over from it.

    Participants and the order of their rows depend on `stage` and the round alone, so that
    different masks (`prefix`) get the same fine-tuning.

    Args:
        experiment: the run.
        start: model to begin with.
        prefix: names the path of pruning in phase names; "" for the private one.
        stage: names the series of rounds.
        rounds: how many.
        learning_rate: of the clients' gradient descent; it changes as `train.decay` says.
        counterfactual: whether the path exists in simulation only.
        keep: a round whose checkpoint stays too.
        compared: the dense model that groups' losses are compared with, if `train.fairness_step`
            weighs groups.
    """
    again = None if counterfactual else _again(experiment, start)
    series = None
    weighs = compared is not None and experiment.config.train.fairness_step > 0
    if keep is None and not weighs and not is_private_round(experiment.config, f"{stage}-1"):
        series = training_series(experiment, start, prefix, stage, rounds, learning_rate)
    take_over(experiment, series, again)
    held, duals = start, None
    numbers = range(1, rounds + 1)
    for number in experiment.reporter.track(numbers, f"{prefix}{stage}", rounds):
        before = held
        round_name = f"{stage}-{number}"
        decay = experiment.config.train.decay
        rate = pruning.learning_rate(decay, number - 1, rounds, learning_rate)

        def action(
            model: Held = before,
            name: str = round_name,
            step: float = rate,
            earlier: list[float] | None = duals,
        ) -> tuple[Architecture, Tensor, JsonDict]:
            if compared is None or not weighs:
                return _round(experiment, model, name, step, counterfactual)
            clients = participants(experiment.config, name)
            weighted = weigh(experiment, model, compared, f"{prefix}{name}", clients, earlier)
            return _round(experiment, model, name, step, counterfactual, weighted)

        held, told = experiment.model_phase(f"{prefix}{round_name}", action)
        duals = told.get("duals")
        if before is not start and number - 1 != keep:
            before.discard()
    leave(experiment, series)
    return held


def _again(experiment: Experiment, start: Held) -> Callable[[str, str], None]:
    """Let a round's participants write down the updates that another run's training stands for."""

    def said_again(round_name: str, source: str) -> None:
        question = experiment.question(round_name, start, {"source": source})
        clients = participants(experiment.config, round_name)
        list(experiment.ask(AGAIN, question, clients, "", _nothing))

    return said_again


def _nothing(client: int, answer: RecordDict) -> None:
    """Read an answer that says nothing."""
    del client, answer


def _round(
    experiment: Experiment,
    held: Held,
    round_name: str,
    learning_rate: float,
    counterfactual: bool,
    weighted: Weighted | None = None,
) -> tuple[Architecture, Tensor, JsonDict]:
    kind, settings = _how(experiment, held, round_name, learning_rate)
    radius = _margin_radius(experiment.config, round_name)
    settings = {**settings, "margin_radius": radius} if radius else settings
    if weighted is not None:
        settings = {**settings, **weighted.settings}
    question = experiment.question(round_name, held, settings, counterfactual=counterfactual)
    weights, told = average(experiment, kind, question, participants(experiment.config, round_name))
    return held.architecture, weights, told if weighted is None else told | weighted.told


def _how(
    experiment: Experiment, held: Held, round_name: str, learning_rate: float
) -> tuple[str, Mapping[str, Scalar]]:
    """The kind of a round's question and its settings: DP-SGD, or in the open."""
    config, train = experiment.config, experiment.config.train
    if is_private_round(config, round_name):
        units = len(held.architecture.dense_layout)
        return PRIVATE, training_settings(private_training(config, units, learning_rate))
    return OPEN, {
        "local_epochs": train.local_epochs,
        "batch_size": train.batch_size,
        "learning_rate": learning_rate,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
    }


def _margin_radius(config: Config, round_name: str) -> float:
    """The radius of a round's loss; it grows from 0 over the first half of the dense training.

    The full one from the first step on can keep a network that knows nothing yet at chance.
    """
    radius, total = config.train.margin_radius, config.train.rounds
    stage, _, number = round_name.rpartition("-")
    return radius * min(1.0, 2 * int(number) / total) if stage == "train" else radius


def is_private_round(config: Config, round_name: str) -> bool:
    """Whether `train.private` asks for DP-SGD in this round."""
    return {
        "off": False,
        "fine-tune": round_name.startswith("tune-"),
        "all": True,
    }[config.train.private]


def private_training(config: Config, num_units: int, learning_rate: float) -> PrivateTraining:
    """One round of DP-SGD as the configuration wants it of a network with so many units."""
    event, train = round_event(config, num_units), config.train
    return PrivateTraining(
        steps=event.steps,
        sample_rate=event.sampling_rate,
        noise_multiplier=event.noise_multiplier,
        max_grad_norm=train.max_grad_norm,
        batch_size=train.batch_size,
        learning_rate=learning_rate,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def average(
    experiment: Experiment, kind: str, question: Question, participants: Sequence[int]
) -> tuple[Tensor, JsonDict]:
    """Average the answers' weights, summed in float64 in partition order.

    In the open by their rows; under DP-SGD equally, since how many rows a client has is nothing
    that its noise covers.
    """
    size, private = question.weights.numel(), kind == PRIVATE

    def read(answers: Answers) -> list[tuple[float, Tensor, float]]:
        models = answers.models(size)
        if private:
            return [(1.0, weights, 0.0) for weights in models]
        rows, losses = answers.numbers("rows", least=1), answers.numbers("loss")
        return list(zip(rows, models, losses, strict=True))

    total = torch.zeros(size, dtype=torch.float64)
    rows = loss = 0.0
    count = 0
    for heard in experiment.ask_together(kind, question, participants, "", read):
        for own, weights, own_loss in heard:
            total += own * weights.double()
            rows += own
            loss += own * own_loss
            count += 1
    told: JsonDict = {"clients": count, "loss": None if private else loss / rows}
    return (total / rows).float(), told
