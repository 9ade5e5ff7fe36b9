"""The ClientApp through Flower's own message API: refusals by name, nothing spent in vain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from helpers import small_config

from fedprune import config as configuration
from fedprune import models
from fedprune.federated.client import ANSWERERS, app
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.introduction import Introduction, introduction_question
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.federated.process import inside_simulation
from fedprune.privacy import Ledger, Receipt, Report, ThresholdResponse
from fedprune.runs import Architecture, load_weights_vector, weights_vector

ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    identify_server_task(1)
    yield
    close_stations()


def report_question(round_: str = "report-1", **changes: object) -> Question:
    layout = ARCHITECTURE.dense_layout
    settings: dict[str, object] = {
        "criterion": "taylor",
        "fingerprint": layout.fingerprint,
        "keep_units": 0.5,
        "floor": 1,
        "epsilon": 4.0,
        "block_units": 4,
        "threshold": 4,
        "units": "",
        "clients": 200,
        "ranks": "a public order",
    }
    return Question("run", round_, ARCHITECTURE, WEIGHTS, settings | changes)  # type: ignore[arg-type]


class Deployed:
    """One deployed client with its own ledger, talked to as Flower does."""

    def __init__(self, folder: Path, client: int = 3) -> None:
        self.ledger = folder / f"client-{client}.sqlite"
        self.context = Context(
            run_id=1,
            node_id=7,
            node_config={
                "partition-id": client,
                "data-root": str(folder),
                "ledger": str(self.ledger),
                "epsilon": 4.0,
            },
            state=RecordDict(),
            run_config=configuration.to_flat(small_config(f"out={folder}")),
        )

    def ask(self, kind: str, question: Question) -> Message:
        return app(Message(question.to_content(), 7, kind), self.context)

    def refused(self, kind: str, question: Question) -> str:
        reply = self.ask(kind, question)
        assert reply.has_error()
        return str(reply.error.reason)

    def spent(self) -> float:
        with Ledger.open(self.ledger) as ledger:
            assert list(ledger.verify()) == []
            return float(ledger.spent(str(self.context.node_config["partition-id"])))


@pytest.fixture
def client(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path)


def test_a_report_is_sent_once_and_repeated_byte_for_byte(client: Deployed) -> None:
    first, second = (client.ask("query.report", report_question()) for _ in range(2))
    sent = [r.content.config_records["answer"]["report"] for r in (first, second)]
    assert sent[0] == sent[1]
    ThresholdResponse(4.0, 96, block_units=4, threshold=4).estimate([Report(sent[0])])  # type: ignore[arg-type]
    assert client.spent() == 4.0


def test_deployed_draws_cannot_be_predicted_from_the_seed(tmp_path: Path) -> None:
    sent = []
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        reply = Deployed(folder).ask("query.report", report_question(ranks=""))
        sent.append(reply.content.config_records["answer"]["report"])
        close_stations()
    assert len(set(sent)) > 1


@pytest.mark.parametrize("kind", sorted(ANSWERERS))
def test_a_seed_is_refused_by_name_whatever_is_asked(client: Deployed, kind: str) -> None:
    reason = client.refused(kind, replace(report_question(), seed=7))
    assert reason.startswith("RefusedInDeploymentError: a deployed client refuses a seed")
    assert "7" in reason
    assert client.spent() == 0.0


def test_a_report_comes_with_a_receipt_that_the_ledger_confirms(client: Deployed) -> None:
    question = report_question()
    answers = [
        client.ask("query.report", question).content.config_records["answer"] for _ in range(2)
    ]
    assert answers[0]["receipt"] == answers[1]["receipt"]
    receipt = Receipt.from_line(str(answers[0]["receipt"]))
    receipt.verify()
    assert (receipt.report, receipt.epsilon) == (answers[0]["report"], 4.0)
    assert receipt.question == question.digest
    with Ledger.open(client.ledger) as ledger:
        assert ledger.confirms(receipt) is None


def test_an_introduction_spends_nothing_and_says_what_is_left(client: Deployed) -> None:
    def introduce() -> Introduction:
        reply = app(Message(introduction_question(), 7, "query.introduction"), client.context)
        return Introduction.from_content(reply.content)

    first = introduce()
    assert (first.client, first.simulated, first.epsilon_left) == (3, False, 4.0)
    assert (first.test_rows, first.schema.num_classes) == (None, 10)
    client.ask("query.report", report_question(epsilon=1.5))
    assert introduce().epsilon_left == 2.5
    assert introduce().public_key == first.public_key


@pytest.mark.parametrize("where", ["data", "model"])
def test_code_that_the_operator_did_not_name_is_never_imported(
    client: Deployed, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    question = report_question()
    if where == "data":
        client.context.run_config["data.dataset"] = "trap:load"
    else:
        own = replace(ARCHITECTURE, model="trap:build")
        question = replace(question, architecture=own)
    reason = client.refused("query.report", question)
    assert reason.startswith("RefusedInDeploymentError")
    assert "trap:" in reason


def test_what_is_wrong_with_a_client_s_rows_stays_with_the_client(
    client: Deployed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "heart"
    folder.mkdir()
    (folder / "processed.va.data").write_text("63,1,4,140,260,0,1,112,1,3,2,?,?,SECRET\n")
    client.context.run_config["data.dataset"] = "heart"
    reason = client.refused("query.report", report_question())
    assert reason == "DataError: this client could not answer; its own log says why"
    assert "SECRET" in caplog.text


def test_another_question_in_the_same_round_is_refused(client: Deployed) -> None:
    client.ask("query.report", report_question())
    reason = client.refused("query.report", report_question(keep_units=0.3))
    assert reason.startswith("QuestionChangedError")
    assert client.spent() == 4.0


def test_epsilon_past_the_budget_is_refused(client: Deployed) -> None:
    assert client.refused("query.report", report_question(epsilon=4.5)).startswith(
        "BudgetExceededError"
    )
    client.ask("query.report", report_question(epsilon=2.5))
    second = client.refused("query.report", report_question("report-2", epsilon=2.5))
    assert second.startswith("BudgetExceededError")
    assert client.spent() == 2.5


@pytest.mark.parametrize(
    ("kind", "what"),
    [("query.masks", "without noise"), ("query.margins", "margins"), ("evaluate", "count tables")],
)
def test_what_exists_in_simulation_only_is_refused_by_name(
    client: Deployed, kind: str, what: str
) -> None:
    question = Question(
        "run",
        "r",
        ARCHITECTURE,
        WEIGHTS,
        {**report_question().settings, "split": "test", "groups": "class"},
        reference=WEIGHTS,
    )
    reason = client.refused(kind, question)
    assert reason.startswith("RefusedInDeploymentError")
    assert what in reason


def test_a_layout_that_differs_costs_nothing(client: Deployed) -> None:
    reason = client.refused("query.report", report_question(fingerprint="0" * 64))
    assert reason.startswith("LayoutMismatchError")
    assert "nothing was spent" in reason
    assert client.spent() == 0.0


def test_a_failure_on_a_client_s_data_is_no_free_answer_about_them(client: Deployed) -> None:
    model, _ = ARCHITECTURE.build()
    load_weights_vector(model, WEIGHTS)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():  # weights that fail only if an image's pixels add up to more than 15
        first.weight[0], first.bias[0] = 1e36, -15e36
    crafted = weights_vector(model)
    question = Question("run", "r", ARCHITECTURE, crafted, report_question().settings)
    reply = client.ask("query.report", question)
    assert len(reply.content.config_records["answer"]["report"]) == 2  # type: ignore[arg-type]
    assert client.spent() == 4.0
    train = {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.0}
    settings = {**train, "weight_decay": 0.0}
    broken = torch.full_like(WEIGHTS, torch.nan)
    client.refused("train", Question("run", "t", ARCHITECTURE, broken, settings))
    with Ledger.open(client.ledger) as ledger:  # a failed training round is on record too
        assert [e.kind for e in ledger.entries()][-1] == "model-update"


@pytest.mark.parametrize("kind", sorted(ANSWERERS))
def test_a_counterfactual_question_is_refused_whatever_it_asks(client: Deployed, kind: str) -> None:
    settings = {**report_question().settings, "split": "test", "groups": "class"}
    question = Question("run", "r", ARCHITECTURE, WEIGHTS, settings, WEIGHTS, counterfactual=True)
    client.context.run_config["evaluate.tables"] = "unprotected"
    assert "a counterfactual question" in client.refused(kind, question)


def test_count_tables_leave_only_if_the_client_s_own_config_says_so(client: Deployed) -> None:
    settings = {"split": "test", "groups": "class", "tables": "unprotected", "cells": 40}
    question = Question("run", "r", ARCHITECTURE, WEIGHTS, settings, WEIGHTS)
    client.context.run_config["evaluate.tables"] = "unprotected"  # the server's word
    assert "count tables" in client.refused("evaluate", question)
    client.context.node_config["tables"] = "unprotected"
    assert client.ask("evaluate", question).has_content()
    with Ledger.open(client.ledger) as ledger:
        assert [e.kind for e in ledger.entries()] == ["count-table"]


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": "4"},
        {"epsilon": -1.0},
        {"epsilon": float("nan")},
        {"threshold": 9},
        {"threshold": float("inf")},
        {"block_units": 0},
        {"block_units": 2.5},
        {"criterion": "x"},
        {"keep_units": 7},
        {"floor": float("nan")},
    ],
)
def test_a_malformed_question_is_refused_and_costs_nothing(
    client: Deployed, changes: dict[str, object]
) -> None:
    assert "Error" in client.refused("query.report", report_question(**changes))
    assert client.spent() == 0.0


def test_a_deployed_client_without_its_own_data_ledger_and_budget_refuses(tmp_path: Path) -> None:
    client = Deployed(tmp_path)
    client.context.node_config.pop("epsilon")
    assert "its budget are never taken from a server" in client.refused(
        "query.report", report_question()
    )


def content() -> RecordDict:
    return replace(report_question(), seed=1).to_content()


def test_a_cohort_answers_as_its_clients_would_one_by_one(tmp_path: Path) -> None:
    answers = []
    for name, split in (("together", False), ("alone", True)):
        folder = tmp_path / name
        folder.mkdir()
        grid = LocalGrid(6, configuration.to_flat(small_config(f"out={folder}")))
        nodes = list(grid.get_node_ids())
        if split:
            replies = []
            for node in nodes:
                message = grid.create_message(content(), "query.report", node, "")
                replies += list(grid.send_and_receive([message]))
        else:
            shared = content()
            messages = [grid.create_message(shared, "query.report", n, "") for n in nodes]
            replies = list(grid.send_and_receive(messages))
        answers.append([r.content.config_records["answer"]["report"] for r in replies])
        close_stations()
    assert answers[0] == answers[1]


def test_the_grid_pushes_and_pulls_and_keeps_mixed_messages_in_order(tmp_path: Path) -> None:
    grid = LocalGrid(4, configuration.to_flat(small_config(f"out={tmp_path}")))
    nodes = list(grid.get_node_ids())
    report = content()
    masks = replace(report_question("m"), seed=1).to_content()
    messages = [
        grid.create_message(report, "query.report", nodes[0], ""),
        grid.create_message(masks, "query.masks", nodes[1], ""),
        grid.create_message(report, "query.report", nodes[2], ""),
    ]
    pulled = list(grid.pull_messages(grid.push_messages(messages)))
    found = [r.content.config_records["answer"]["client"] for r in pulled]
    assert found == [0, 1, 2]
    assert "mask" in pulled[1].content.config_records["answer"]
    assert list(grid.pull_messages(["unknown"])) == []


def test_every_kind_of_question_is_known_to_the_flower_app() -> None:
    assert {"train.default", "evaluate.default"} <= set(app._registered_funcs)
    assert {k for k in ANSWERERS if "." in k} <= set(app._registered_funcs)


def test_a_question_survives_its_trip_and_its_digest_covers_all_of_it() -> None:
    question = report_question()
    with inside_simulation():
        read = Question.from_content(question.to_content())
    assert read.digest == question.digest
    assert np.array_equal(read.weights, question.weights)
    changed = [
        report_question("other"),
        report_question(epsilon=3.0),
        Question("run", "report-1", ARCHITECTURE, WEIGHTS + 1, question.settings),
        Question("run", "report-1", ARCHITECTURE, WEIGHTS, question.settings, reference=WEIGHTS),
        replace(question, seed=1),
        replace(question, seed=2),
    ]
    assert len({question.digest, *(q.digest for q in changed)}) == 7
