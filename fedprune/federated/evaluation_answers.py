"""A client's answers about a finished model: count tables and, in simulation, margins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune import robustness
from fedprune.federated.answering import send_unprotected
from fedprune.federated.answers import Answers, Outcome, Outcomes
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import RowSource, Station, model_of
from fedprune.federated.table_answers import count_tables
from fedprune.runs import ATTACK_STEPS, ATTACKED


def answer_evaluate(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Send count tables, of as many counts as the question asks for (see `count_tables`)."""
    if station.node is not None and station.node.tables != "unprotected":
        station.simulation_only(f"to send count tables: its own tables = {station.node.tables!r}")
    recorded = station.node is not None or question.text("tables") == "unprotected"
    tables = count_tables(station, question, clients)
    counts = tables.reshape(len(clients), -1).astype("<i8").view(np.uint8)
    answers = Answers(np.array(clients, dtype=np.int64), {"table": counts})
    if recorded:
        return send_unprotected(station, question, "count-table", clients, answers)
    return answers


def answer_margins(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send certificate margins of the test rows: in simulation only.

    Where the question names a `local_radius`, also whether each row is certified at it by bounds
    that hold in the ball around it alone; where it names an `attack_radius`, also how near to each
    row an attack finds an input that is not given its label.
    """
    station.simulation_only("to send margins of single examples")
    places, owners = station.cohort_index(clients, "test")
    columns = _row_columns(station, question, RowSource(station.dataset.test, places))
    return [
        answer_content(client, {name: column[owners == i].tobytes() for name, column in columns})
        for i, client in enumerate(clients)
    ]


def _row_columns(
    station: Station, question: Question, source: RowSource
) -> list[tuple[str, NDArray[Any]]]:
    """What is asked about every row, by name, [rows] each."""
    local, attack = ("local_radius" in question.settings, "attack_radius" in question.settings)
    if not len(source):
        return [("margins", np.zeros(0)), ("local", np.zeros(0)), ("distances", np.zeros(0))]
    inputs, labels = source.batch(0, len(source))
    certifier = station.certifier(question.architecture, question.weights)
    columns = [("margins", np.asarray(certifier.margins(inputs, labels)).astype("<f8"))]
    if local:
        near = station.local_certifier(question.architecture, question.weights)
        sure = near.certified(inputs, labels, question.number("local_radius", 0.0))
        columns.append(("local", np.asarray(sure).astype(np.uint8)))
    if attack:
        radius = question.number("attack_radius", 0.0)
        distances = robustness.attack_distances(
            model_of(question.architecture, question.weights),
            inputs,
            labels,
            [factor * radius for factor in ATTACKED],
            steps=ATTACK_STEPS,
            input_std=station.dataset.input_std,
        )
        columns.append(("distances", distances.astype("<f8")))
    return columns
