"""A client's noised count table: reserved, counted, drawn, stored, and only then sent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedprune import fairness
from fedprune.config import Scalar
from fedprune.errors import FederationError, FedpruneError
from fedprune.federated.answering import charged, receipt_line, reserve, store
from fedprune.federated.answers import Answers, Column, Rows, as_rows
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import Entry, NoisedCounts
from fedprune.privacy.ledgers.chain import STORED
from fedprune.runs import PLAIN_CELLS, cells_asked, load_weights_vector, table_kind

KIND = "query.table"
_SPLITS = ("train", "test")

_LOG = logging.getLogger(__name__)

Counts = NDArray[np.int64]


def table_settings(mechanism: NoisedCounts, split: str, groups: str) -> dict[str, Scalar]:
    """Write what is asked as a question carries it."""
    return {
        "split": split,
        "groups": groups,
        "epsilon": mechanism.epsilon,
        "cells": mechanism.num_cells,
        "capacity": mechanism.capacity,
    }


def table_entry(question: Question) -> Entry:
    """The ledger row that each client reserves for its table, its number left open."""
    mechanism = _mechanism(question)
    return charged(question, "", table_kind(mechanism), mechanism.relation, mechanism.event)


def count_tables(station: Station, question: Question, clients: Sequence[int]) -> Counts:
    """Count exactly, one cell for each record, in the cells that the question asks for.

    Returns:
        [clients, groups, 2, 2], dense wrong or right x pruned wrong or right; or of two classes
        [clients, groups, 2, 2, 2], label x dense prediction x pruned prediction.

    Raises:
        FedpruneError: if the groups or models cannot be used, or no table has so many cells.
    """
    split, cells = question.text("split"), _cells(station, question)
    places, owners = station.cohort_index(clients, split)
    column = station.rows(split).group(question.text("groups"))
    if not len(places):  # where there are more clients than rows, a cohort may have none
        return np.zeros((len(clients), len(column.names), *cells), dtype=np.int64)
    dense = station.correct(question, True, split, places)
    pruned = station.correct(question, False, split, places)
    rows = (column.codes[places], owners, len(clients), len(column.names))
    if cells == PLAIN_CELLS:
        return fairness.client_tables(dense, pruned, *rows)
    labels = station.rows(split).labels[places]
    # Of two classes a model predicts the label where it is right, else the other one.
    says_dense, says_pruned = (np.where(right, labels, 1 - labels) for right in (dense, pruned))
    return fairness.client_outcome_tables(labels, says_dense, says_pruned, *rows)


def _cells(station: Station, question: Question) -> tuple[int, ...]:
    """Read the cells of each group that the server asks for out of the number of counts.

    Raises:
        FederationError: if these groups have no table of so many counts.
    """
    schema, groups = station.dataset.schema, question.text("groups")
    num_cells, num_groups = question.whole("cells", 1), len(schema.group_names(groups))
    found = cells_asked(num_cells, num_groups, schema.num_classes, groups)
    if found is None:
        raise FederationError(
            f"the server asks for {num_cells} counts, which no table of the {num_groups} groups "
            f"{groups!r} of data with {schema.num_classes} classes has"
        )
    return found


def answer_table(station: Station, question: Question, clients: Sequence[int]) -> Answers:
    """Send each client's table with noise.

    The reservation comes before the data are touched. A deployed client whose counting fails still
    spends and sends a table, of no rows: an error would be an answer about its data that no budget
    covers.
    """
    if station.node is not None and station.node.tables == "off":
        station.simulation_only("to send count tables: its own tables = 'off'")
    mechanism, template = _mechanism(question), table_entry(question)
    _check_countable(station, question)
    found = reserve(station, template, clients)
    tables = np.zeros((len(clients), mechanism.report_bytes), dtype=np.uint8)
    if len(found.granted):
        asked = found.clients[found.granted].tolist()
        counts = _clipped(station, question, asked, mechanism)
        sources = [station.randomness(question, "table", question.round, i) for i in asked]
        drawn = mechanism.randomize_rows(counts, sources)
        store(station, template, asked, drawn)
        tables[found.granted] = drawn
    tables[found.memoised] = as_rows(found.reports, mechanism.report_bytes)
    refused = {int(found.clients[place]): error for place, error in found.refused.items()}
    answering = np.ones(len(clients), dtype=bool)
    answering[list(found.refused)] = False
    return _answers(station, template, found.clients[answering], tables[answering], refused)


def _mechanism(question: Question) -> NoisedCounts:
    """Make the mechanism that was asked for; its parameters are checked, never trusted."""
    return NoisedCounts(
        question.number("epsilon"), question.whole("cells", 1), question.whole("capacity", 0)
    )


def _check_countable(station: Station, question: Question) -> None:
    """Refuse, before anything is reserved, what no client could count whatever its data.

    Raises:
        FederationError: saying why.
    """
    split = question.text("split")
    if split not in _SPLITS:
        raise FederationError(
            f"the server asks for rows of {split!r}, known are {' and '.join(_SPLITS)}; nothing "
            "was spent"
        )
    if question.reference is None:
        raise FederationError(
            "an evaluation question needs the dense model as its reference; nothing was spent"
        )
    try:
        _cells(station, question)
        whole = question.architecture.without_mask()
        for architecture, weights in (
            (question.architecture, question.weights),
            (whole, question.reference),
        ):
            model, _ = architecture.build()
            load_weights_vector(model, weights)
    except FedpruneError as error:
        raise FederationError(
            f"nobody could count what the server asks about ({error}); nothing was spent"
        ) from None


def _clipped(
    station: Station, question: Question, clients: Sequence[int], mechanism: NoisedCounts
) -> Counts:
    """Count, and keep of each client no more rows than its table may count: [clients, cells]."""
    try:
        counts = count_tables(station, question, clients)
    except Exception as error:
        if station.simulated:  # nobody's data are at stake: say what is wrong
            raise
        _LOG.error("counting failed; the table is drawn from no row", exc_info=error)
        return np.zeros((len(clients), mechanism.num_cells), dtype=np.int64)
    if mechanism.capacity:
        kept = [
            fairness.clip_table(
                counts[i : i + 1],
                mechanism.capacity,
                station.generator(question, "clip", question.round, client),
            )
            for i, client in enumerate(clients)
        ]
        counts = np.concatenate(kept)
    return counts.reshape(len(clients), -1)


def _answers(
    station: Station,
    template: Entry,
    clients: NDArray[np.int64],
    tables: Rows,
    refused: Mapping[int, FedpruneError],
) -> Answers:
    columns: dict[str, Column] = {"report": tables}
    if station.signing_key is None:
        return Answers(clients, columns, {"receipt": ""}, refused)
    lines = [
        receipt_line(
            station, replace(template, client=str(client), stage=STORED, report=table.tobytes())
        )
        for client, table in zip(clients.tolist(), tables, strict=True)
    ]
    return Answers(clients, {**columns, "receipt": lines}, {}, refused)
