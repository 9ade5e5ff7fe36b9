"""Of two classes the final tables count label and predictions: what they say, cost and refuse."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import people
import pytest
import torch
from deployed_run import deploy
from flwr.app import Context, Message, RecordDict
from helpers import run_small, small_config

from fedprune import audit, models
from fedprune import config as configuration
from fedprune.errors import FairnessError, FederationError
from fedprune.federated import client
from fedprune.federated.answers import Answers
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.federated.station import Station
from fedprune.federated.table_answers import table_settings
from fedprune.privacy import Ledger, NoisedCounts
from fedprune.privacy.ledgers.chain import SENT, STORED
from fedprune.runs import Architecture, RunFolder, fairness_of_tables, stored_rows, weights_vector
from fedprune.study import feasibility

QUICK = (*people.PEOPLE, "evaluate.baselines=false")
NOISED = (*QUICK, "evaluate.tables=noised")
FAIRNESS = "gaps and intervals follow from the count tables"
SENT_SO = "the count tables are those that the clients noised, charged and stored"
ARCHITECTURE = Architecture.dense("mlp", 2, (8,))
WEIGHTS = weights_vector(models.load("mlp", num_classes=2, input_shape=(8,), seed=1))


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    identify_server_task(1)
    yield
    close_stations()


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose tables left the clients as they are; tests must not change it."""
    out = tmp_path_factory.mktemp("outcomes") / "run"
    run_small(out, [*QUICK, "evaluate.tables=unprotected"])
    return out


def read(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / name).read_text()))


def broken(out: Path) -> list[str]:
    return [one.claim for one in audit.audit(out, "fairness").findings if not one.holds]


def predictions(out: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels, sexes and both models' predictions of the rows that a run was tested on."""
    folder = RunFolder.open(out)
    rows = people.load("", seed=folder.config.seed).test
    found = {}
    for name, (model, _) in (("dense", folder.load_dense()), ("pruned", folder.load_pruned())):
        with torch.inference_mode():
            found[name] = model(rows.inputs(slice(None))).argmax(dim=1).numpy()
    return rows.labels, rows.groups["sex"].codes, found


def test_the_summary_states_the_rates_that_the_stored_models_have(unprotected: Path) -> None:
    labels, sexes, predicted = predictions(unprotected)
    outcomes = read(unprotected, "summary.json")["fairness"]["outcomes"]
    assert outcomes["positive_class"] == "more"
    rates = {"demographic_parity": labels >= 0, "true_positive": labels == 1,
             "false_positive": labels == 0}  # fmt: skip
    differences: dict[str, dict[str, float]] = {}
    for key, counted in rates.items():
        for side, says in predicted.items():
            shares = [float(says[counted & (sexes == code)].mean()) for code in (0, 1)]
            stated = [group[side] for group in outcomes[key]["groups"]]
            assert stated == pytest.approx(shares)
            gap = max(shares) - min(shares)
            assert outcomes[key][f"difference_{side}"] == pytest.approx(gap)
            low, high = outcomes[key][f"interval_{side}"]
            assert low <= gap <= high
            differences.setdefault(side, {})[key] = gap
    odds = outcomes["equalized_odds"]
    for side, by_rate in differences.items():
        larger = max(by_rate["true_positive"], by_rate["false_positive"])
        assert odds[f"difference_{side}"] == pytest.approx(larger)
        low, high = odds[f"interval_{side}"]
        assert low <= larger <= high
    low, high = odds["pair"]["interval"]
    assert low <= odds["pair"]["change"] <= high


def test_accuracies_and_gaps_are_sums_of_the_same_cells(unprotected: Path) -> None:
    labels, sexes, predicted = predictions(unprotected)
    summary, stored = read(unprotected, "summary.json"), read(unprotected, "tables.json")
    assert np.shape(stored["test"]) == (12, 2, 2, 2, 2)
    assert np.shape(stored["train_total"]) == (2, 2, 2, 2)
    assert np.sum(stored["test"]) == len(labels)  # every record in exactly one cell
    for side, says in predicted.items():
        right = says == labels
        assert summary["accuracy"][side] == pytest.approx(right.mean())
        for code, group in enumerate(summary["fairness"]["groups"]):
            assert group[f"accuracy_{side}"] == pytest.approx(right[sexes == code].mean())


def test_only_the_final_tables_hold_outcomes_and_each_is_in_the_ledger(unprotected: Path) -> None:
    with Ledger.open(unprotected / "ledger.sqlite", read_only=True) as ledger:
        found = [e for e in ledger.entries() if e.kind == "count-table" and e.stage == SENT]
    rounds = sorted({entry.round for entry in found})
    assert rounds == ["evaluate-1-before", "evaluate-after", "evaluate-dense", "pair-tables",
                      "tables"]  # fmt: skip
    assert len(found) == 12 * len(rounds)
    assert audit.audit(unprotected).holds


def test_the_report_and_the_terminal_say_both_and_of_which_class(unprotected: Path) -> None:
    page = audit.write_report(unprotected, unprotected.parent / "report.html").read_text()
    assert "Demographic parity and equalised odds" in page
    assert "The positive class is “more”" in page
    lines = list(audit.headlines(read(unprotected, "summary.json")))
    for name in ("demographic parity", "equalised odds"):
        (line,) = (line for line in lines if line.startswith(name))
        assert "groups of sex, of predicting “more”: dense 0." in line
    assert any(line.startswith("accuracy gap between groups of sex") for line in lines)


def test_a_page_says_so_where_a_rate_is_not_known(unprotected: Path) -> None:
    outcomes = read(unprotected, "summary.json")["fairness"]["outcomes"]
    for key in ("positive_class", "demographic_parity", "true_positive", "equalized_odds"):
        assert audit.render({"fairness": {"outcomes": {**outcomes, key: None}}})
        inside = outcomes[key] if isinstance(outcomes[key], dict) else {}
        for inner in inside:
            blank = {**outcomes, key: {**inside, inner: None}}
            page = audit.render({"fairness": {"outcomes": blank}})
            assert "None" not in page


@pytest.mark.parametrize("change", ["labels swapped", "outcomes left out", "rates left out"])
def test_an_audit_notices_tables_that_say_something_else(
    unprotected: Path, tmp_path: Path, change: str
) -> None:
    out = Path(shutil.copytree(unprotected, tmp_path / "run"))
    stored, summary = read(out, "tables.json"), read(out, "summary.json")
    if change == "labels swapped":  # everybody of the other class: no accuracy moves
        flipped = np.array(stored["test"])[:, :, ::-1, ::-1, ::-1]
        stored["test"] = flipped.tolist()
    elif change == "outcomes left out":
        stored["test"] = stored_rows(stored).plain().counts.tolist()
        total = {"test": [stored["train_total"]]}
        stored["train_total"] = stored_rows(total).plain().counts[0].tolist()
    else:
        del stored["classes"]
    (out / "tables.json").write_text(json.dumps(stored))
    assert broken(out) == [FAIRNESS]
    summary["fairness"] = fairness_of_tables(stored)  # and with figures that follow from them
    (out / "summary.json").write_text(json.dumps(summary))
    assert broken(out) == ([] if change == "labels swapped" else [FAIRNESS])
    assert not audit.audit(out, "record").holds


def test_a_deployed_run_is_audited_from_its_tables_and_receipts(
    unprotected: Path, tmp_path: Path
) -> None:
    deployed = deploy(unprotected, tmp_path / "run", tables=True)
    found = audit.audit(deployed.path)
    assert [one for one in found.findings if not one.holds] == []


@pytest.mark.parametrize("unit", ["record", "client"])
def test_noised_outcomes_cost_what_plain_tables_do(tmp_path: Path, unit: str) -> None:
    out = tmp_path / "run"
    strong = ("evaluate.table_epsilon=60", f"evaluate.table_unit={unit}", "evaluate.table_rows=40")
    summary = run_small(out, [*NOISED, *strong])
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        found = [e for e in ledger.entries() if e.kind == f"{unit}-table" and e.stage == STORED]
    assert sorted(e.round for e in found) == ["pair-tables"] * 12 + ["tables"] * 12
    assert {len(e.report) for e in found} == {8 * 2 * 8}
    assert {e.epsilon for e in found} == {60.0}
    outcomes = summary["fairness"]["outcomes"]
    labels, sexes, predicted = predictions(out)
    assert unit == "client" or not any(g["too_small"] for g in outcomes["true_positive"]["groups"])
    for code, group in enumerate(outcomes["true_positive"]["groups"]):
        if group["too_small"]:  # the noise is more than a tenth of its rows
            continue
        share = predicted["pruned"][(labels == 1) & (sexes == code)].mean()
        assert group["pruned"] == pytest.approx(share, abs=0.1)
    assert outcomes["demographic_parity"]["difference_pruned"] is not None
    assert audit.audit(out).holds
    stored = read(out, "tables.json")
    stored["test"][0][0][0][0][0] += 1
    stored["test"][0][0][1][1][1] -= 1  # the same plain table
    (out / "tables.json").write_text(json.dumps(stored))
    assert SENT_SO in broken(out)


def test_a_plain_cell_of_noised_outcomes_holds_the_noise_of_two() -> None:
    zeros = np.zeros((4000, 2, 2, 2, 2), dtype=np.int64)
    noise = {"kind": "discrete-laplace", "scale": 3.0, "draws": 1, "clipped_to": None}
    rows = stored_rows({"test": zeros.tolist(), "noise": noise})
    assert rows.noise is not None
    drawn = rows.noise.sample(zeros.shape, np.random.default_rng(1))
    plain = stored_rows({"test": drawn.tolist(), "noise": noise}).plain()
    assert plain.noise is not None
    assert plain.noise.variance == pytest.approx(2 * rows.noise.variance)
    assert plain.counts.var() == pytest.approx(plain.noise.variance, rel=0.05)
    assert plain.counts.sum() == drawn.sum()


def test_noise_that_hides_everything_ends_a_run_with_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run_small(out, [*NOISED, "evaluate.table_epsilon=0.01"])
    assert "noise hides the rows" in summary["fairness"]["no_figure_because"]
    assert any(line.startswith("no figures of groups") for line in audit.headlines(summary))
    assert audit.audit(out).holds


def test_groups_by_class_are_counted_plainly_and_the_summary_says_why(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run_small(out, [*QUICK, "data.groups=class x sex"])
    assert np.shape(read(out, "tables.json")["test"]) == (12, 4, 2, 2)
    outcomes = summary["fairness"]["outcomes"]
    assert outcomes["positive_class"] == "more"
    assert "divided by class" in outcomes["no_figure_because"]
    assert audit.audit(out).holds
    assert "divided by class" in audit.write_report(out).read_text()
    assert any("divided by class" in line for line in audit.headlines(summary))


def test_more_classes_have_neither_table_nor_figure(finished_run: Path) -> None:
    assert np.shape(read(finished_run, "tables.json")["test"]) == (40, 10, 2, 2)
    assert "classes" not in read(finished_run, "tables.json")
    summary = read(finished_run, "summary.json")
    assert "outcomes" not in summary["fairness"]
    assert not any("parity" in line for line in audit.headlines(summary))


def test_groups_that_all_test_rows_share_are_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    one_place = (*QUICK, f"data.dataset={people.FROM_ONE_PLACE}", "data.groups=place")
    with pytest.raises(FairnessError, match="'place' is constant: every row is 'north'"):
        run_small(tmp_path / "run", one_place)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert RunFolder(tmp_path / "run").events() == []
    run_small(tmp_path / "off", [*one_place, "evaluate.tables=off"])


@pytest.mark.parametrize("tables", ["unprotected", "noised"])
def test_a_run_that_cannot_look_beforehand_ends_and_says_that_there_is_one_group(
    tmp_path: Path, tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasibility.fairness, "check_groups", lambda *_, **__: None)
    out = tmp_path / "run"
    one_place = (f"data.dataset={people.FROM_ONE_PLACE}", "data.groups=place")
    summary = run_small(
        out, [*QUICK, *one_place, f"evaluate.tables={tables}", "evaluate.table_epsilon=30"]
    )
    assert summary["fairness"].get("gap_pruned") is None
    if tables == "unprotected":  # noise may hide that nobody lives in the south
        assert summary["accuracy"]["pruned"] > 0.6
        assert "only 'north'" in summary["fairness"]["no_figure_because"]
        page = audit.write_report(out).read_text()
        assert "There are no figures" in page
        assert "Noise hides" not in page
    assert audit.audit(out).holds


class Deployed:
    """One deployed client with people of its own."""

    def __init__(self, folder: Path, tables: str) -> None:
        self.ledger = folder / "client.sqlite"
        self.context = Context(
            run_id=1,
            node_id=7,
            node_config={"partition-id": 3, "data-root": str(folder), "ledger": str(self.ledger),
                         "dataset": people.ALL, "epsilon": 4.0, "record-epsilon": 2.0,
                         "record-delta": 0, "tables": tables},
            state=RecordDict(),
            run_config=configuration.to_flat(small_config(*QUICK, f"out={folder}")),
        )  # fmt: skip

    def ask(self, kind: str, cells: int, groups: str = "sex") -> Message:
        settings = {**table_settings(NoisedCounts(1.0, cells), "test", groups)}
        asked = Question("run", "tables", ARCHITECTURE, WEIGHTS, settings, WEIGHTS)
        return client.app(Message(asked.to_content(), 7, kind), self.context)

    def rows(self) -> int:
        with Ledger.open(self.ledger) as ledger:
            return len(list(ledger.entries()))


@pytest.mark.parametrize(
    ("kind", "tables"), [("query.table", "noised"), ("evaluate", "unprotected")]
)
def test_a_deployed_client_counts_what_is_a_table_and_refuses_other_numbers_by_name(
    tmp_path: Path, kind: str, tables: str
) -> None:
    own = Deployed(tmp_path, tables)
    for cells, groups in ((12, "sex"), (32, "sex"), (1, "sex"), (16, "class"), (10**6, "sex")):
        reply = own.ask(kind, cells, groups)
        assert f"asks for {cells} counts" in str(reply.error.reason)
    assert own.rows() == 0
    reply = own.ask(kind, 16)
    sent = reply.content.config_records["answer"]["report" if tables == "noised" else "table"]
    assert len(sent) == 8 * 16  # type: ignore[arg-type]
    if tables == "unprotected":
        counts = np.frombuffer(sent, "<i8").reshape(2, 2, 2, 2)  # type: ignore[arg-type]
        rows = people.load("", seed=small_config().seed).test
        by_label = [[int(((rows.groups["sex"].codes == sex) & (rows.labels == label)).sum())
                     for label in (0, 1)] for sex in (0, 1)]  # fmt: skip
        assert counts.sum(axis=(2, 3)).tolist() == by_label
        plain = own.ask(kind, 8).content.config_records["answer"]["table"]
        either = counts[:, 1] + counts[:, 0, ::-1, ::-1]
        assert np.frombuffer(plain, "<i8").reshape(2, 2, 2).tolist() == either.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "field", "tables"),
    [("evaluate", "table", "unprotected"), ("query.table", "report", "noised")],
)
def test_a_reply_of_another_size_is_refused_and_its_client_named(
    tmp_path: Path, kind: str, field: str, tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client.ANSWERERS[kind]

    def plain_only(station: Station, question: Question, clients: Sequence[int]) -> Answers:
        found = honest(station, question, clients)
        assert isinstance(found, Answers)
        if question.round != "tables":
            return found
        half = np.asarray(found.columns[field])[:, : 8 * 8]
        return Answers(found.clients, {**found.columns, field: half}, found.shared, found.failures)

    monkeypatch.setitem(client.ANSWERERS, kind, plain_only)
    says = r"client 0 .* not 2 x 2 x 2 x 2 counts in round tables"
    with pytest.raises(FederationError, match=says):
        run_small(tmp_path / "run", [*QUICK, f"evaluate.tables={tables}"])


def test_noise_does_not_depend_on_how_many_cells_a_table_has() -> None:
    for capacity in (0, 5):
        few, many = (NoisedCounts(0.7, cells, capacity) for cells in (8, 16))
        assert (few.sensitivity, few.scale) == (many.sensitivity, many.scale)
        assert math.isclose(few.variance, many.variance)
