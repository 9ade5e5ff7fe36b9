"""Evaluation rounds: count tables from clients, accuracy, fairness, certificates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedprune import hardware
from fedprune.errors import FederationError, ReportError
from fedprune.federated.answers import Answers
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.messages import answer_bytes
from fedprune.federated.table_answers import KIND as TABLE_KIND
from fedprune.federated.table_answers import table_settings
from fedprune.runs import (
    PLAIN_CELLS,
    fairness_of_tables,
    final_cells,
    lipschitz_bounds,
    table_mechanism,
    table_noise,
    tables_noised,
)

Tables = NDArray[np.int64]
Cells = tuple[int, ...]
_PAIR_CLIENTS = 1000  # whose training rows choose the pair of groups that is followed


def accuracy_of(
    experiment: Experiment, held: Held, dense: Held, name: str, counterfactual: bool = False
) -> float | None:
    """Accuracy of a model over all clients' evaluation rows, as a phase of its own.

    None where count tables cost a budget: that is spent at the end, not between steps. A baseline's
    tables exist inside the simulation alone.
    """
    noised = tables_noised(experiment.config)
    if not experiment.tables_wanted or (noised and not counterfactual):
        return None

    def action() -> JsonDict:
        heard = _tables(experiment, held, dense, "test", experiment.clients, name)
        total = sum((tables.sum(axis=(0, 1)) for tables in heard), np.zeros((2, 2), np.int64))
        return {"accuracy": float(total[:, 1].sum() / max(1, total.sum()))}

    return float(experiment.phase(name, action)["accuracy"])


def ask_tables(
    experiment: Experiment,
    held: Held,
    dense: Held,
    split: str,
    clients: list[int],
    round_name: str,
) -> Tables:
    """Collect the tables of the final model, with noise where so configured.

    Returns:
        [clients, num_groups, 2, 2], or of two classes [clients, num_groups, 2, 2, 2] with the
        label first (`runs.final_cells`).
    """
    groups = experiment.config.data.groups
    cells = final_cells(experiment.schema.num_classes, groups)
    if tables_noised(experiment.config):
        heard = _noised_tables(experiment, held, dense, split, clients, round_name, cells)
    else:
        heard = _tables(experiment, held, dense, split, clients, round_name, cells)
    return np.concatenate(list(heard))


def sum_tables(
    experiment: Experiment,
    held: Held,
    dense: Held,
    split: str,
    clients: list[int],
    round_name: str,
) -> Tables:
    """Add up count tables without noise: [num_groups, 2, 2]."""
    heard = _tables(experiment, held, dense, split, clients, round_name)
    parts = [tables.sum(axis=0) for tables in heard]
    return np.asarray(np.sum(parts, axis=0), dtype=np.int64)


def _tables(
    experiment: Experiment,
    held: Held,
    dense: Held,
    split: str,
    clients: list[int],
    round_name: str,
    cells: Cells = PLAIN_CELLS,
) -> Iterator[Tables]:
    """Ask for count tables; give those of one or many clients at a time, in order."""
    noised = tables_noised(experiment.config)
    shape = _table_shape(experiment, cells)
    question = experiment.question(
        round_name,
        held,
        {
            "split": split,
            "groups": experiment.config.data.groups,
            "tables": "simulation-only" if noised else experiment.config.evaluate.tables,
            "cells": math.prod(shape),
        },
        reference=dense.weights,
    )

    def read(answers: Answers) -> Tables:
        raw = answers.rows("table", "count table")
        counts = np.frombuffer(raw[:, : raw.shape[1] // 8 * 8].tobytes(), dtype="<i8")
        if raw.shape[1] != 8 * math.prod(shape) or (counts < 0).any():
            raise FederationError(
                f"client {answers.first} sent a count table that is not "
                f"{' x '.join(map(str, shape))} counts in round {round_name}"
            )
        return counts.reshape(len(answers), *shape)

    return experiment.ask_together("evaluate", question, clients, round_name, read)


def _noised_tables(
    experiment: Experiment,
    held: Held,
    dense: Held,
    split: str,
    clients: list[int],
    round_name: str,
    cells: Cells,
) -> Iterator[Tables]:
    """As `_tables`, of tables that clients noised themselves and charged to their budgets."""
    shape = _table_shape(experiment, cells)
    mechanism = table_mechanism(experiment.config, math.prod(shape))
    settings = table_settings(mechanism, split, experiment.config.data.groups)
    question = experiment.question(round_name, held, settings, reference=dense.weights)

    def read(answers: Answers) -> Tables:
        try:
            counts = mechanism.decode_rows(answers.rows("report", "noised count table"))
        except ReportError as error:
            raise FederationError(
                f"client {answers.first} sent a noised count table that is not "
                f"{' x '.join(map(str, shape))} counts in round {round_name}: {error}"
            ) from None
        return counts.reshape(len(answers), *shape)

    return experiment.ask_together(TABLE_KIND, question, clients, round_name, read)


def _table_shape(experiment: Experiment, cells: Cells) -> tuple[int, ...]:
    return (len(experiment.schema.group_names(experiment.config.data.groups)), *cells)


def fairness_phase(experiment: Experiment, held: Held, dense: Held) -> JsonDict | None:
    """Tables of the final model, the pair to follow from training rows, gaps with intervals."""
    if not experiment.tables_wanted:
        return None

    def action() -> JsonDict:
        tables = ask_tables(experiment, held, dense, "test", experiment.clients, "tables")
        order = experiment.generator("pair").permutation(len(experiment.clients))
        some = sorted(order[:_PAIR_CLIENTS].tolist())
        other = ask_tables(experiment, held, dense, "train", some, "pair-tables")
        names = experiment.schema.group_names(experiment.config.data.groups)
        stored = {
            "group": experiment.config.data.groups,
            "names": list(names),
            "seed": experiment.config.seed,
            "confidence": experiment.config.evaluate.confidence,
            "resamples": experiment.config.evaluate.resamples,
            "test": tables.tolist(),
            "train_total": other.sum(axis=0).tolist(),
        }
        if experiment.schema.num_classes == 2:
            stored["classes"] = list(experiment.schema.class_names)
        for key, count in (("noise", 1), ("train_noise", len(other))):
            noise = table_noise(experiment.config, count)
            stored |= {key: noise.to_json()} if noise else {}
        experiment.folder.write_json("tables.json", stored)
        return fairness_of_tables(stored)

    return experiment.phase("fairness", action)


def cost_phase(experiment: Experiment, held: Held, dense: Held) -> JsonDict:
    """Parameters, MACs, bytes and measured latency of both models."""

    def action() -> JsonDict:
        example = held.architecture.example_input
        built = {"dense": dense.model(), "pruned": held.model()}
        measured = hardware.compare(built, example, batch_size=32, repeats=30, threads=1)
        found: JsonDict = {}
        for name, model in built.items():
            found[name] = asdict(hardware.cost(model, example))
            found[name]["latency_ms"] = measured[name].latency.median_ms
        pruned = measured["pruned"]
        found["latency"] = {
            "batch_size": 32,
            "threads": 1,
            "repeats": 30,
            "speedup": pruned.speedup,
            "speedup_interval": [pruned.speedup_low, pruned.speedup_high],
        }
        return found

    return experiment.phase("cost", action)


def robustness_phase(experiment: Experiment, held: Held, dense: Held) -> JsonDict:
    """Lipschitz bounds of both models; in simulation also margins and certified accuracy."""

    def action() -> JsonDict:
        std = experiment.schema.input_std
        found = lipschitz_bounds(experiment.folder, std)
        found["input_std"] = None if std is None else list(std)
        found["input_unit"] = experiment.schema.input_unit
        if found["method_dense"] and experiment.simulated and experiment.tables_wanted:
            margins = {
                name: tensor
                for side, model in (("dense", dense), ("pruned", held))
                for name, tensor in _margins(experiment, model, side).items()
            }
            experiment.folder.write_tensors("margins.safetensors", margins)
        return found

    return experiment.phase("robustness", action)


def _margins(experiment: Experiment, held: Held, side: str) -> dict[str, Tensor]:
    """Margins of rows of a sample of the clients, what is certified locally, and attacks."""
    evaluate = experiment.config.evaluate
    settings: dict[str, float] = {}
    if evaluate.local_certificates:
        settings["local_radius"] = evaluate.certified_radius
    clients = _sampled_clients(experiment, evaluate.certified_rows)
    found = _row_answers(experiment, held, f"margins-{side}", settings, clients)
    told = {f"{side}{end}": values for end, values in found.items()}
    if evaluate.attacked_rows:
        settings["attack_radius"] = evaluate.certified_radius
        clients = _sampled_clients(experiment, evaluate.attacked_rows)
        found = _row_answers(experiment, held, f"attacks-{side}", settings, clients)
        told |= {f"{side}_attacked{end}": values for end, values in found.items()}
    return told


def _row_answers(
    experiment: Experiment,
    held: Held,
    round_name: str,
    settings: dict[str, float],
    clients: list[int],
) -> dict[str, Tensor]:
    """Ask for margins of single rows: "" is those, "_local" and "_distances" what else is asked."""
    question = experiment.question(round_name, held, settings, counterfactual=True)

    def read(client: int, answer: RecordDict) -> dict[str, NDArray[Any]]:
        del client
        raw = answer_bytes(answer, "margins", "margins")
        found = {"": np.frombuffer(raw, dtype="<f8").astype(np.float64)}
        if "local_radius" in settings:
            sure = np.frombuffer(answer_bytes(answer, "local", "local certificates"), np.uint8)
            found["_local"] = np.where(sure > 0, settings["local_radius"], 0.0)
        if "attack_radius" in settings:
            raw = answer_bytes(answer, "distances", "distances")
            found["_distances"] = np.frombuffer(raw, dtype="<f8").astype(np.float64)
        return found

    heard = [
        found for _, found in experiment.ask("query.margins", question, clients, round_name, read)
    ]
    return {
        end: torch.from_numpy(np.concatenate([found[end] for found in heard])) for end in heard[0]
    }


def _sampled_clients(experiment: Experiment, wanted_rows: int) -> list[int]:
    """Sample whole clients until they have about so many rows together; fewer are among more."""
    said = experiment.conversation.introductions.values()
    rows = sum(one.test_rows or 0 for one in said)
    wanted = wanted_rows / max(1, rows)
    count = min(len(experiment.clients), math.ceil(wanted * len(experiment.clients)))
    order = experiment.generator("certified").permutation(len(experiment.clients))
    return sorted(order[:count].tolist())
