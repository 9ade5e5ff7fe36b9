"""What a run would cost and find, said before any client spends anything."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedprune import privacy, pruning
from fedprune.config import Config
from fedprune.data import Dataset, Schema
from fedprune.errors import PruningError
from fedprune.privacy.accounting import CLIENT, REPLACEMENT
from fedprune.privacy.planning import CLIENT_MODEL, USEFUL_RECALL
from fedprune.pruning import UnitLayout
from fedprune.runs import Architecture, weights_vector
from fedprune.study.clients import divide, initial_model

WANTED_RECALL = 0.9
_STRONGEST_EPSILON = 16.0
_MANY_CLIENTS = 10**9
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
        reports_per_step: clients that answer in one step.
        variance_per_vote: exact, of one unit's vote.
        predicted_recall: of the mask that the same clients would choose without noise, without
            the magnitude prior's help, under `client_model`.
        useful: False where the mask would be little better than chance.
        advice: sentences, worst news first.
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
    variance_per_vote: float
    predicted_recall: float
    client_model: str
    useful: bool
    advice: tuple[str, ...]
    up_bytes_per_client: int
    down_bytes_per_client: int
    dense_upload_bytes: int
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "advice": list(self.advice)}


def plan(config: Config, schema: Schema, dataset: Dataset | None = None) -> Plan:
    """Predict variance, recall, bytes and, where rows are at hand, time of a configuration.

    Args:
        config: the experiment.
        schema: what the clients' data look like.
        dataset: all rows, in a simulation; None where they lie with the clients.

    Raises:
        FedpruneError: if the data cannot be divided or the model not be built as configured.
    """
    if dataset is not None:
        divide(config, dataset)  # refuses what cannot be divided before anything starts
    schema.group_names(config.data.groups)  # refuses an attribute that the data do not have
    architecture = Architecture.dense(config.model.name, schema.num_classes, schema.input_shape)
    layout = architecture.dense_layout
    model = initial_model(config, schema)
    _check_budget(config, layout)
    keep = _first_keep(config, layout)
    reports = config.data.clients // config.prune.steps
    mechanism, variance = None, 0.0
    if config.privacy.trust == "local":
        mechanism = privacy.ThresholdResponse(config.privacy.epsilon, len(layout))
        variance = mechanism.variance_per_vote(reports)
    recall = privacy.predict_recall(variance, keep)
    floor = max(USEFUL_RECALL, keep + 0.2 * (1 - keep))
    useful = recall >= floor
    return Plan(
        num_units=len(layout),
        params=int(layout.total_params),
        macs=int(layout.total_macs),
        keep_units=keep,
        mechanism=repr(mechanism) if mechanism else None,
        guarantee=guarantee(config).sentence(),
        clients=config.data.clients,
        steps=config.prune.steps,
        reports_per_step=reports,
        variance_per_vote=variance,
        predicted_recall=recall,
        client_model=CLIENT_MODEL,
        useful=useful,
        advice=() if useful else _advice(config, len(layout), keep, reports, recall, floor),
        up_bytes_per_client=mechanism.report_bytes if mechanism else (len(layout) + 7) // 8,
        down_bytes_per_client=4 * weights_vector(model).numel(),
        dense_upload_bytes=4 * weights_vector(model).numel(),
        seconds=None if dataset is None else _seconds(config, dataset, model),
    )


def guarantee(config: Config) -> privacy.Guarantee:
    """What one client's mask reports are protected by."""
    return privacy.Guarantee(
        config.privacy.epsilon, config.privacy.delta, CLIENT, REPLACEMENT, config.privacy.trust
    )


def _check_budget(config: Config, layout: UnitLayout) -> None:
    """Refuse a budget that not even one unit a layer fits into."""
    name, final = config.prune.budget
    floors = sum(min(config.prune.floor, len(group)) for group in layout.groups)
    if name == "keep_units" and int(final * len(layout) + 1e-9) < floors:
        raise PruningError(
            f"prune.keep_units = {final:g} keeps {int(final * len(layout) + 1e-9)} of "
            f"{len(layout)} units, but prune.floor = {config.prune.floor} needs {floors}"
        )
    if name != "keep_units":
        scores = torch.zeros(len(layout))
        keep = {"keep_macs": config.prune.keep_macs, "keep_params": config.prune.keep_params}
        pruning.select(scores, layout, floor=config.prune.floor, **keep)


def _first_keep(config: Config, layout: UnitLayout) -> float:
    name, final = config.prune.budget
    first = pruning.keep_fractions(config.prune.schedule, config.prune.steps, final)[0]
    if name == "keep_units":
        return first
    if name == "keep_macs":
        return pruning.expected_keep_units(layout, keep_macs=first)
    return pruning.expected_keep_units(layout, keep_params=first)


def _advice(
    config: Config, num_units: int, keep: float, reports: int, recall: float, floor: float
) -> tuple[str, ...]:
    """Say that the mask would be useless, and which setting would do."""
    target = max(WANTED_RECALL, keep + 0.8 * (1 - keep))
    wanted = privacy.variance_for_recall(target, keep)
    sentences = [
        f"the private mask would be nearly useless: predicted recall {recall:.2f}, chance "
        f"{keep:.2f}, useful from {floor:.2f}"
    ]
    mechanism = privacy.ThresholdResponse(config.privacy.epsilon, num_units)
    clients = int(np.ceil(mechanism.variance_per_vote(1) / wanted)) * config.prune.steps
    many = f"about {clients:,}" if clients < _MANY_CLIENTS else f"more than {_MANY_CLIENTS:,}"
    sentences.append(
        f"at epsilon = {config.privacy.epsilon:g} a recall of {target:.2f} needs {many} clients"
    )
    strongest = max(_STRONGEST_EPSILON, np.ceil(config.privacy.epsilon))
    for epsilon in np.arange(np.ceil(config.privacy.epsilon), strongest + 1):
        stronger = privacy.ThresholdResponse(float(epsilon), num_units)
        if stronger.variance_per_vote(reports) <= wanted:
            sentences.append(f"with {reports} clients it needs epsilon = {epsilon:g}")
            break
    else:
        sentences.append(f"with {reports} clients a step no epsilon up to {strongest:g} reaches it")
    if config.privacy.prior == "magnitude":
        sentences.append("what carries such a run is the magnitude prior")
    return tuple(sentences)


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
