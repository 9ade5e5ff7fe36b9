"""Questions that nobody could answer, whatever the data: refused by name, nothing spent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from helpers import small_config

from fedprune import config as configuration
from fedprune import models
from fedprune.errors import LedgerError
from fedprune.federated.client import app
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.privacy import Ledger
from fedprune.runs import Architecture, weights_vector

ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))
CLIENT = 3
REPORT: Mapping[str, str | float] = {
    "criterion": "taylor",
    "fingerprint": ARCHITECTURE.dense_layout.fingerprint,
    "keep_units": 0.5,
    "floor": 1,
    "epsilon": 4.0,
    "block_units": 4,
    "threshold": 4,
    "units": "",
    "clients": 200,
    "ranks": "a public order",
}
QUESTION = Question("run", "report-1", ARCHITECTURE, WEIGHTS, REPORT)
DP_SGD: Mapping[str, str | float] = {
    "steps": 2,
    "sample_rate": 0.5,
    "noise_multiplier": 4.0,
    "max_grad_norm": 1.0,
    "batch_size": 4,
    "learning_rate": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
}
RECORD = {**REPORT, "epsilon": 1.0, "delta": 1e-6}


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    identify_server_task(1)
    yield
    close_stations()


def answer(folder: Path, kind: str, content: RecordDict) -> Message:
    node = {
        "partition-id": CLIENT,
        "data-root": str(folder),
        "ledger": str(folder / "ledger.sqlite"),
        "epsilon": 4.0,
        "record-epsilon": 8.0,
    }
    config = configuration.to_flat(small_config(f"out={folder}"))
    return app(Message(content, 7, kind), Context(1, 7, node, RecordDict(), config))


def assert_refused(reply: Message, folder: Path, why: str) -> None:
    assert reply.has_error()
    assert why in reply.error.reason
    assert "its own log says why" not in reply.error.reason
    try:
        with Ledger.open(folder / "ledger.sqlite") as ledger:
            assert [ledger.spent(str(CLIENT), relation) for relation in ledger.budgets] == [0, 0]
    except LedgerError:  # it was refused before there was a ledger
        assert not (folder / "ledger.sqlite").exists()


def with_task(**changes: str) -> RecordDict:
    content = QUESTION.to_content()
    content["question"] = ConfigRecord({**content.config_records["question"], **changes})
    return content


def asking(**changes: str | float) -> RecordDict:
    return replace(QUESTION, settings={**REPORT, **changes}).to_content()


def about(**changes: object) -> RecordDict:
    return with_task(architecture=json.dumps(json.loads(ARCHITECTURE.to_json()) | changes))


CASES: Mapping[str, tuple[RecordDict, str]] = {
    "a federation without this client": (asking(clients=CLIENT), "this client is number 3"),
    "a criterion that needs a seed": (asking(criterion="random"), "needs a seed"),
    "unknown group scores": (
        asking(group_scores="median", groups="class"), "known are worst, share"
    ),
    "scores of groups that there are not": (
        asking(group_scores="worst", groups="sex"), "nothing was spent"
    ),
    "group scores that may be negative": (
        asking(group_scores="share", groups="class", criterion="linear_logits_signed"),
        "which may be negative",
    ),
    "an epsilon beyond all floats": (asking(epsilon=10**400), "must be a finite number"),
    "an infinite epsilon": (asking(epsilon=float("inf")), "must be a finite number, got inf"),
    "settings that are a list": (with_task(settings="[1]"), "must be a table, got list"),
    "settings nested too deep": (with_task(settings="[" * 10**5), "cannot be read"),
    "no architecture": (with_task(architecture="null"), "not an architecture description"),
    "an unknown network": (about(model="nope"), "cannot be built"),
    "a billion classes": (about(num_classes=10**9), "this client's data have (10, (1, 8, 8))"),
    "other inputs": (about(input_shape=[1, 10**5, 10**5]), "this client's data have"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_question_that_cannot_be_answered_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, why = CASES[name]
    assert_refused(answer(tmp_path, "query.report", content), tmp_path, why)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("query.report", REPORT), ("query.record_scores", RECORD), ("train.private", DP_SGD)],
)
@pytest.mark.parametrize(
    ("weights", "why"),
    [(torch.full_like(WEIGHTS, float("nan")), "nan"), (WEIGHTS[:-1], "weights must have")],
    ids=["not finite", "too few"],
)
def test_weights_that_nobody_could_use_cost_nothing(
    kind: str, settings: Mapping[str, str | float], weights: torch.Tensor, why: str, tmp_path: Path
) -> None:
    question = replace(QUESTION, weights=weights, settings=settings)
    assert_refused(answer(tmp_path, kind, question.to_content()), tmp_path, why)
