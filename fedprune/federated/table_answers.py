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
from fedprune.runs import CELLS, load_weights_vector, table_kind

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
    """Count exactly: group x dense wrong or right x pruned wrong or right, [clients, groups, 2, 2].

    Raises:
        FedpruneError: if the groups or models cannot be used.
    """
    split = question.text("split")
    places, owners = station.cohort_index(clients, split)
    column = station.rows(split).group(question.text("groups"))
    if not len(places):  # where there are more clients than rows, a cohort may have none
        return np.zeros((len(clients), len(column.names), 2, 2), dtype=np.int64)
    return fairness.client_tables(
        station.correct(question, True, split, places),
        station.correct(question, False, split, places),
        column.codes[places],
        owners,
        len(clients),
        len(column.names),
    )


def answer_table(station: Station, question: Question, clients: Sequence[int]) -> Answers:
    """Send each client's table with noise.

    The reservation comes before the data are touched. A deployed client whose counting fails still
    spends and sends a table, of no rows: an error would be an answer about its data that no budget
    covers.
    """
    if station.node is not None and station.node.tables == "off":
        station.simulation_only("to send count tables: its own tables = 'off'")
    mechanism, template = _mechanism(question), table_entry(question)
    _check_countable(station, question, mechanism)
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


def _check_countable(station: Station, question: Question, mechanism: NoisedCounts) -> None:
    """Refuse, before anything is reserved, what no client could count whatever its data.

    Raises:
        FederationError: saying why.
    """
    split, groups = question.text("split"), question.text("groups")
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
        cells = CELLS * len(station.dataset.schema.group_names(groups))
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
    if mechanism.num_cells != cells:
        raise FederationError(
            f"the server asks for {mechanism.num_cells} counts, the groups {groups!r} have "
            f"{cells}; nothing was spent"
        )


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
