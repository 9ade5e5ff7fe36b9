"""Every trust setting, phase plan and DP-SGD: a whole run each, and its audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import run_small
from safetensors.torch import load_file, save_file

from fedprune.audit import audit, write_report
from fedprune.errors import ConfigError, FederationError
from fedprune.privacy import Ledger
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT
from fedprune.runs import RunFolder

FAST = ("evaluate.baselines=false", "evaluate.certified_rows=10", "train.rounds=1")
RUNS = {
    "phases": ["privacy.phases=3"],
    "phases in steps": ["privacy.phases=2", "prune.schedule=geometric", "prune.steps=2"],
    "k-ary": ["privacy.mechanism=k-ary"],
    "duchi": ["privacy.mechanism=duchi", "privacy.epsilon=1"],
    "shuffle": ["privacy.trust=shuffle", "privacy.delta=1e-6"],
    "aggregate": ["privacy.trust=aggregate", "privacy.delta=1e-6"],
    "record": ["privacy.trust=record", "privacy.delta=1e-5"],
    "dp-sgd": ["train.private=all", "train.dp_epsilon=10", "train.sample_rate=0.5"],
    "dp-sgd and record": [
        "train.private=fine-tune", "train.sample_rate=0.5", "privacy.trust=record",
        "privacy.delta=1e-5",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    return {}


def finished_run_of(finished: dict[str, Path], name: str, root: Path) -> Path:
    if name not in finished:
        run_small(root / "run", [*FAST, *RUNS[name]])
        finished[name] = root / "run"
    return finished[name]


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_a_run_under_any_trust_setting_ends_and_its_audit_holds(
    finished: dict[str, Path], name: str, tmp_path: Path
) -> None:
    run = finished_run_of(finished, name, tmp_path)
    assert [f.detail for f in audit(run).findings if not f.holds] == []
    page = write_report(run).read_text()
    privacy = summary_of(run)["privacy"]
    assert privacy["statement"].count("must be trusted") == 1
    for total in privacy["totals"]:
        for words in ("neighbouring relation", "must be trusted", f"per {total['unit']}"):
            assert words in total["sentence"]
    assert "What this ε does not cover" in page


@pytest.mark.parametrize("name", ["phases", "phases in steps", "shuffle", "record", "aggregate"])
def test_a_changed_vote_does_not_follow_from_the_answers(
    finished: dict[str, Path], name: str, tmp_path: Path
) -> None:
    run = finished_run_of(finished, name, tmp_path)
    votes, path = load_file(run / "votes.safetensors"), run / "votes.safetensors"
    before = path.read_bytes()
    save_file(votes | {"step1.mean": votes["step1.mean"] + 0.01}, path)
    try:
        broken = [f.detail for f in audit(run, "privacy").findings if not f.holds]
    finally:
        path.write_bytes(before)
    assert any("the vote of unit 0 in step 1 does not follow" in words for words in broken)


def test_every_client_answers_in_one_phase_only_and_later_phases_ask_about_fewer_units(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    run = finished_run_of(finished, "phases", tmp_path)
    with Ledger.open(run / "ledger.sqlite") as ledger:
        asked = [e.client for e in ledger.entries() if e.stage == "stored"]
        assert len(asked) == len(set(asked)) == 40
        assert {float(ledger.spent(client)) for client in asked} == {4.0}
    phases = summary_of(run)["plan"], RunFolder.open(run).events()
    told = next(e["result"]["phases"] for e in phases[1] if e["phase"] == "vote-1")
    assert sum(phase["asked"] for phase in told) == 40
    units = [phase["units"] for phase in told]
    assert units == sorted(units, reverse=True)
    assert units[-1] < units[0] == 96
    assert all("one client changes one unit's vote" in phase["influence"] for phase in told)
    assert not any(phase["suspicious"] for phase in told)


def test_a_secure_sum_comes_out_as_the_same_numbers_added_in_plain_sight(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    masked = finished_run_of(finished, "aggregate", tmp_path / "masked")
    run_small(tmp_path / "plain", [*FAST, *RUNS["aggregate"], "privacy.masking=false"])
    ours, others = (load_file(r / "votes.safetensors") for r in (masked, tmp_path / "plain"))
    assert torch.equal(ours["step1.sum"], others["step1.sum"])
    assert torch.equal(ours["step1.mask"], others["step1.mask"])


def test_what_is_charged_at_record_level_is_no_client_level_claim(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    run = finished_run_of(finished, "dp-sgd", tmp_path)
    privacy = summary_of(run)["privacy"]
    client, record = privacy["totals"]
    assert (client["relation"], record["relation"]) == (REPLACEMENT, ADD_REMOVE_RECORD)
    assert (client["epsilon"], client["covers"]) == (4.0, ["mask-report"])
    assert record["covers"] == ["dp-update", "mask-report"]
    assert record["overall_epsilon"] == record["epsilon"] <= 10.0
    assert privacy["overall_client_epsilon"] is None
    assert any("single records only" in words for words in privacy["not_covered"])
    with Ledger.open(run / "ledger.sqlite") as ledger:
        kinds = {entry.kind for entry in ledger.entries()}
        assert kinds == {"mask-report", "dp-update"}
        budget = ledger.budgets[ADD_REMOVE_RECORD]
        spent = max(ledger.epsilon_spent(str(c), ADD_REMOVE_RECORD) for c in range(40))
    assert budget.epsilon == 10.0
    assert spent == record["epsilon"]


def test_a_shuffled_run_states_what_the_reports_that_came_amount_to(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    run = finished_run_of(finished, "shuffle", tmp_path)
    told = next(e["result"] for e in RunFolder.open(run).events() if e["phase"] == "vote-1")
    central = told["phases"][0]["central"]
    assert central["reports"] == 40
    assert central["epsilon"] <= 4.0 + 1e-5
    assert central["local_epsilon"] >= 4.0
    with Ledger.open(run / "ledger.sqlite") as ledger:  # what a client enforces is its own part
        assert float(ledger.spent("0")) == central["local_epsilon"]


def test_too_few_reports_never_leave_the_shuffler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedprune.federated import client

    whole = client.ANSWERERS["query.report"]

    def half(station, question, clients):
        answers = whole(station, question, clients).outcomes(clients)
        return [FederationError("gone") if i % 2 else a for i, a in enumerate(answers)]

    monkeypatch.setitem(client.ANSWERERS, "query.report", half)
    settings = [*FAST, *RUNS["shuffle"], "federation.quorum=0.3", "privacy.min_reports=30"]
    with pytest.raises(FederationError, match=r"20 reports came to the shuffler.*30 are needed"):
        run_small(tmp_path / "run", settings)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["privacy.trust=record", "privacy.delta=1e-5", "privacy.phases=2"], "phases must be 1"),
        (["privacy.trust=aggregate"], "delta must be above 0"),
        (["privacy.phases=9", "prune.schedule=cubic", "prune.steps=5"], "answers once only"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run_small(tmp_path / "run", overrides)
