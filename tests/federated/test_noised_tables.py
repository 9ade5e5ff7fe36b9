"""Count tables that clients noise themselves: charged, stored, audited, and what they still say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from helpers import run_small, small_config

from fedprune import audit, models
from fedprune import config as configuration
from fedprune.errors import ConfigError
from fedprune.federated.client import app
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.federated.table_answers import table_settings
from fedprune.privacy import Ledger, NoisedCounts
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT
from fedprune.privacy.ledgers.chain import STORED
from fedprune.runs import Architecture, weights_vector

ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))
NOISED = ["evaluate.tables=noised", "evaluate.baselines=false"]


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    identify_server_task(1)
    yield
    close_stations()


def test_a_run_asks_for_two_tables_and_says_what_they_cost(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run_small(out, [*NOISED, "evaluate.table_epsilon=2", "data.clients=20"])
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        found = [e for e in ledger.entries() if e.kind == "record-table" and e.stage == STORED]
    assert sorted({e.round for e in found}) == ["pair-tables", "tables"]
    assert len(found) == 40
    assert {e.relation for e in found} == {ADD_REMOVE_RECORD}
    totals = {one["relation"]: one for one in summary["privacy"]["totals"]}
    assert totals[REPLACEMENT]["epsilon"] == 4.0
    assert totals[ADD_REMOVE_RECORD]["epsilon"] == 8.0  # the report counts for a record too
    assert "record-table" in totals[ADD_REMOVE_RECORD]["covers"]
    assert any("noised count tables" in words for words in summary["privacy"]["not_covered"])
    assert summary["privacy"]["statement"].startswith("epsilon = 4,")
    stored = json.loads((out / "tables.json").read_text())
    tables = np.array(stored["test"])
    sent = [np.frombuffer(e.report, "<i8").reshape(tables.shape[1:]) for e in found
            if e.round == "tables"]  # fmt: skip
    assert (np.stack(sent).sum(axis=0) == tables.sum(axis=0)).all()
    accuracy = summary["accuracy"]
    assert accuracy["pruned_before_fine_tuning"] is None  # nobody was asked in between
    overall = summary["fairness"]["accuracy"]
    assert accuracy["dense"] == overall["dense"]
    assert overall["interval_dense"][0] <= accuracy["dense"] <= overall["interval_dense"][1]
    assert audit.audit(out).holds
    assert "added noise to every count" in audit.write_report(out).read_text()


def test_an_audit_notices_a_table_that_no_client_sent(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_small(out, [*NOISED, "data.clients=20"])
    stored = json.loads((out / "tables.json").read_text())
    for change in ("test", "noise", "train_total"):
        changed = json.loads(json.dumps(stored))
        if change == "test":
            changed["test"][0][0][0][0] += 1
        elif change == "noise":
            changed["noise"]["scale"] /= 2
        else:
            changed["train_total"][0][0][0] += 1
        (out / "tables.json").write_text(json.dumps(changed))
        broken = [one.claim for one in audit.audit(out).findings if not one.holds]
        assert "the count tables are those that the clients noised, charged and stored" in broken


@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize(
    "others",
    [
        [],
        ["privacy.trust=aggregate", "privacy.delta=1e-5", "federation.quorum=0.6"],
        ["privacy.trust=record", "privacy.delta=1e-5"],
        ["privacy.trust=none"],
        ["train.private=fine-tune", "train.dp_epsilon=9"],
    ],
    ids=["local", "aggregate", "record", "none", "dp-sgd"],
)
def test_budgets_have_room_for_tables_whatever_else_is_asked(
    tmp_path: Path, unit: str, others: list[str]
) -> None:
    # Awkward numbers: a sum of two of them is no float.
    noised = [*NOISED, "evaluate.table_epsilon=0.1", f"evaluate.table_unit={unit}"]
    out = tmp_path / "run"
    summary = run_small(out, [*noised, "evaluate.table_rows=3", "data.clients=12", *others])
    assert np.array(json.loads((out / "tables.json").read_text())["test"]).shape[0] == 12
    assert summary["missing"] == {}
    found = audit.audit(out)
    assert found.holds, [one for one in found.findings if not one.holds]
    relation = REPLACEMENT if unit == "client" else ADD_REMOVE_RECORD
    kinds = {one["relation"]: one["covers"] for one in summary["privacy"]["totals"]}
    assert f"{unit}-table" in kinds[relation]


def test_at_client_level_a_table_counts_few_rows_of_a_client(tmp_path: Path) -> None:
    out = tmp_path / "run"
    strong = ["evaluate.table_unit=client", "evaluate.table_rows=5", "evaluate.table_epsilon=60"]
    run_small(out, [*NOISED, *strong, "data.clients=10"])
    tables = np.array(json.loads((out / "tables.json").read_text())["test"])
    assert tables.reshape(10, -1).sum(axis=1).mean() == pytest.approx(5, abs=2)


def test_a_run_whose_noise_hides_everything_ends_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    drowned = ["evaluate.table_unit=client", "evaluate.table_epsilon=0.05", "data.clients=40"]
    summary = run_small(out, [*NOISED, *drowned])
    assert summary["fairness"]["no_figure_because"]
    assert summary["accuracy"] == dict.fromkeys(summary["accuracy"])
    assert audit.audit(out).holds
    assert "Noise hides the figures" in audit.write_report(out).read_text()


class Deployed:
    """One deployed client with its own ledger and its own word on tables."""

    def __init__(self, folder: Path, **own: str | float) -> None:
        self.ledger = folder / "client.sqlite"
        self.context = Context(
            run_id=1,
            node_id=7,
            node_config={"partition-id": 3, "data-root": str(folder), "ledger": str(self.ledger),
                         "epsilon": 4.0, "record-epsilon": 2.0, "record-delta": 0, **own},
            state=RecordDict(),
            run_config=configuration.to_flat(small_config(f"out={folder}")),
        )  # fmt: skip

    def ask(self, question: Question) -> Message:
        return app(Message(question.to_content(), 7, "query.table"), self.context)

    def refused(self, question: Question) -> str:
        reply = self.ask(question)
        assert reply.has_error()
        return str(reply.error.reason)

    def rows(self) -> int:
        with Ledger.open(self.ledger) as ledger:
            assert list(ledger.verify()) == []
            return len(list(ledger.entries()))


def question(
    round_name: str = "tables", weights: torch.Tensor = WEIGHTS, **changes: str | float
) -> Question:
    settings = {**table_settings(NoisedCounts(1.0, 40), "test", "class"), **changes}
    return Question("run", round_name, ARCHITECTURE, weights, settings, WEIGHTS)


def test_a_deployed_client_sends_the_same_noised_table_again_and_no_more_than_it_allows(
    tmp_path: Path,
) -> None:
    client = Deployed(tmp_path, tables="noised")
    replies = [client.ask(question()) for _ in range(2)]
    sent = [bytes(r.content.config_records["answer"]["report"]) for r in replies]  # type: ignore[arg-type]
    assert sent[0] == sent[1]
    assert len(sent[0]) == NoisedCounts(1.0, 40).report_bytes
    assert "another question" in client.refused(question(epsilon=0.5))
    assert client.ask(question("pair-tables", split="train")).has_content()
    assert "budget" in client.refused(question("more"))


def test_a_client_that_allows_no_tables_or_no_record_budget_sends_none(tmp_path: Path) -> None:
    assert "tables = 'off'" in Deployed(tmp_path).refused(question())
    strict = Deployed(tmp_path / "b", tables="noised")
    del strict.context.node_config["record-epsilon"]
    (tmp_path / "b").mkdir()
    assert "record" in strict.refused(question())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cells": 44}, "44 counts"),
        ({"cells": 0}, "cells"),
        ({"split": "secret"}, "rows of 'secret'"),
        ({"groups": "race"}, "nothing was spent"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"capacity": -1}, "capacity"),
        ({"weights": WEIGHTS[:-1]}, "nothing was spent"),
    ],
)
def test_what_nobody_could_count_is_refused_and_costs_nothing(
    tmp_path: Path, changes: dict[str, str | float], says: str
) -> None:
    client = Deployed(tmp_path, tables="noised")
    assert says in client.refused(question(**changes))
    assert client.rows() == 0


def test_a_table_without_its_pair_is_refused(tmp_path: Path) -> None:
    client = Deployed(tmp_path, tables="noised")
    settings = question().settings
    alone = Question("run", "tables", ARCHITECTURE, WEIGHTS, settings)
    assert "reference" in client.refused(alone)
    assert client.rows() == 0


def test_an_epsilon_of_tables_out_of_range_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.table_epsilon"):
        small_config("evaluate.table_epsilon=0")
