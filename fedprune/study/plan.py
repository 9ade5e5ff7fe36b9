"""What a run would cost and find, said before any client spends anything."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from fedprune import pruning, runs
from fedprune.config import Config
from fedprune.data import Dataset, Schema
from fedprune.privacy.votes.planning import CLIENT_MODEL, USEFUL_RECALL
from fedprune.pruning import UnitLayout
from fedprune.runs import Architecture, weights_vector
from fedprune.study.answers import answer_of, planned_totals
from fedprune.study.availability import availability_advice, reports_per_step
from fedprune.study.clients import initial_model
from fedprune.study.feasibility import check_data, check_network
from fedprune.study.options import WANTED_RECALL, Option, advice, options, recommendation

_TIMED_ROWS = 64
_TIMED_PASSES = 5
_BASELINES = ("votes_without_noise", "pooled", "magnitude", "random")


@dataclass(frozen=True)
class Plan:
    """The prediction for one configuration.

    Attributes:
        num_units, params, macs: of the dense network.
        keep_units: fraction of units that clients vote to keep in the first step.
        mechanism: in words; None under trust = "none".
        guarantee: what the epsilon means, in one sentence.
        reports_per_step: clients whose answers are expected to be used in one step.
        variance_per_vote: exact, of one unit's vote.
        predicted_recall: of the mask that the same clients would choose without noise, without
            the magnitude prior's help and further phases', under `client_model`; None where it
            depends on the data (trust = "record").
        recall_interval: 95 % of single votes, under the same model.
        recall_if_model_is_off: expected recall if clients differ twice as much, or half as much.
        useful: False where the mask would be little better than chance.
        advice: sentences, worst news first.
        totals: what a client that takes part in everything spends, per neighbouring relation.
        options: what each trust setting would give at this epsilon.
        recommendation: the setting that reaches the wanted recall, or that none does.
        up_bytes_per_client, down_bytes_per_client: of one report round.
        dense_upload_bytes: what sending the dense model's weights would take.
        seconds: rough time on this machine; None without rows to try it on.
    """

    num_units: int
    params: int
    macs: int
    keep_units: float
    mechanism: str | None
    guarantee: str
    clients: int
    steps: int
    reports_per_step: int
    variance_per_vote: float | None
    predicted_recall: float | None
    recall_interval: tuple[float, float] | None
    recall_if_model_is_off: tuple[float, float] | None
    client_model: str
    useful: bool
    advice: tuple[str, ...]
    totals: tuple[str, ...]
    options: tuple[Option, ...]
    recommendation: str
    up_bytes_per_client: int
    down_bytes_per_client: int
    dense_upload_bytes: int
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        plain = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def plan(
    config: Config, schema: Schema, dataset: Dataset | None = None, wanted: float = WANTED_RECALL
) -> Plan:
    """Predict variance, recall, bytes and, where rows are at hand, time of a configuration.

    Args:
        config: the experiment.
        schema: what the clients' data look like.
        dataset: all rows, in a simulation; None where they lie with the clients.
        wanted: the recall that a recommendation is for.

    Raises:
        FedpruneError: if the data cannot be divided, the model not be built or the privacy target
            not be met as configured.
    """
    check_data(config, schema, dataset)
    architecture = Architecture.dense(config.model.name, schema.num_classes, schema.input_shape)
    layout = architecture.dense_layout
    model = initial_model(config, schema)
    check_network(config, schema, layout, model)
    keep = _first_keep(config, layout)
    answer = answer_of(config, len(layout), keep)
    prediction = answer.prediction(keep)
    floor = max(USEFUL_RECALL, keep + 0.2 * (1 - keep))
    useful = prediction is None or prediction.expected >= floor
    return Plan(
        num_units=len(layout),
        params=int(layout.total_params),
        macs=int(layout.total_macs),
        keep_units=keep,
        mechanism=answer.mechanism,
        guarantee=runs.guarantee(config).sentence(),
        clients=config.data.clients,
        steps=config.prune.steps,
        reports_per_step=reports_per_step(config),
        variance_per_vote=answer.variance,
        predicted_recall=prediction.expected if prediction else None,
        recall_interval=(prediction.low, prediction.high) if prediction else None,
        recall_if_model_is_off=(
            (prediction.model_low, prediction.model_high) if prediction else None
        ),
        client_model=CLIENT_MODEL,
        useful=useful,
        advice=(
            *(() if useful else advice(config, len(layout), keep, prediction, floor)),
            *availability_advice(config),
        ),
        totals=planned_totals(config, answer),
        options=options(config, len(layout), keep, wanted),
        recommendation=recommendation(config, len(layout), keep, wanted),
        up_bytes_per_client=answer.up_bytes,
        down_bytes_per_client=4 * weights_vector(model).numel(),
        dense_upload_bytes=4 * weights_vector(model).numel(),
        seconds=None if dataset is None else _seconds(config, dataset, model),
    )


def _first_keep(config: Config, layout: UnitLayout) -> float:
    name, final = config.prune.budget
    first = pruning.keep_fractions(config.prune.schedule, config.prune.steps, final)[0]
    if name == "keep_units":
        return first
    return pruning.expected_keep_units(
        layout,
        keep_macs=first if name == "keep_macs" else None,
        keep_params=first if name == "keep_params" else None,
        keep_latency=first if name == "keep_latency" else None,
        latency=runs.latency_table(config),
    )


def _seconds(config: Config, dataset: Dataset, model: nn.Module) -> float:
    """Extrapolate from two timed passes: a client's training step, and a batch of scoring."""
    train, steps = config.train, config.prune.steps
    per_client = max(1, len(dataset.train) // config.data.clients)
    step_rows = min(train.batch_size, per_client)
    step = _timed_pass(dataset, model, step_rows)
    row = _timed_pass(dataset, model, _TIMED_ROWS) / _TIMED_ROWS
    paths = 1 + len(_BASELINES) if config.evaluate.baselines else 1
    rounds = train.rounds + paths * steps * train.fine_tune_rounds
    clients = min(train.clients_per_round, config.data.clients)
    trained = rounds * clients * train.local_epochs * -(-per_client // step_rows) * step
    scored = len(dataset.train) * (1 if steps == 1 else paths) * row
    evaluated = len(dataset.test) * (paths * (steps + 1) + 4) * row / 3
    return float(round((trained + scored + evaluated) * config.evaluate.seeds, 1))


def _timed_pass(dataset: Dataset, model: nn.Module, rows: int) -> float:
    """Seconds of one forward and backward pass, the best of a few."""
    places = np.arange(rows) % len(dataset.train)
    inputs, labels = dataset.train.inputs(places), dataset.train.targets(places)
    best = np.inf
    for _ in range(_TIMED_PASSES):
        begun = time.perf_counter()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        best = min(best, time.perf_counter() - begun)
    model.zero_grad(set_to_none=True)
    return float(best)
