"""A client's answers about a finished model: count tables and, in simulation, margins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedprune.federated.answering import send_unprotected
from fedprune.federated.answers import Answers, Outcome, Outcomes
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import RowSource, Station
from fedprune.federated.table_answers import count_tables


def answer_evaluate(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Send count tables: group x dense right or wrong x pruned right or wrong."""
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
    that hold in the ball around it alone.
    """
    station.simulation_only("to send margins of single examples")
    certifier = station.certifier(question.architecture, question.weights)
    places, owners = station.cohort_index(clients, "test")
    source = RowSource(station.dataset.test, places)
    margins, local = np.zeros(0), None
    if len(places):
        inputs, labels = source.batch(0, len(source))
        margins = np.asarray(certifier.margins(inputs, labels), dtype=np.float64)
    if "local_radius" in question.settings:
        radius = question.number("local_radius", 0.0)
        local = np.zeros(0, dtype=np.bool_)
        if len(places):
            near = station.local_certifier(question.architecture, question.weights)
            local = near.certified(inputs, labels, radius)
    found: list[Outcome] = []
    for i, client in enumerate(clients):
        content = {"margins": margins[owners == i].astype("<f8").tobytes()}
        if local is not None:
            content["local"] = local[owners == i].astype(np.uint8).tobytes()
        found.append(answer_content(client, content))
    return found
