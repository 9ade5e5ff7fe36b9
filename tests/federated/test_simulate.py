"""Laws of whole runs: complete, reproducible, resumable, budget kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SMALL, run_small
from safetensors.torch import load_file

from fedprune import audit, pruning
from fedprune.errors import ConfigError, FederationError, RunError
from fedprune.federated.simulate import resume
from fedprune.privacy import Ledger
from fedprune.privacy.ledgers.chain import STORED
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

KEYS = {
    "accuracy": {"dense", "pruned"},
    "baselines": {"votes_without_noise", "magnitude", "random", "pooled"},
    "cost": {"dense", "pruned"},
    "privacy": {
        "trust", "unit", "relation", "epsilon", "delta", "mechanism", "variance_per_vote",
        "reports", "max_epsilon_spent", "not_covered",
    },
    "fairness": {"gap_dense", "gap_pruned", "gap_change", "gap_change_interval", "worst_group"},
    "robustness": {"upper_dense", "upper_pruned", "lower_dense", "lower_pruned"},
    "certified_accuracy": {"radius", "dense", "pruned"},
    "traffic": {"up_bytes_per_client", "down_bytes_per_client", "dense_upload_bytes"},
}  # fmt: skip
FILES = (
    "config.toml", "events.jsonl", "dense.safetensors", "model.safetensors", "architecture.json",
    "layout.json", "votes.safetensors", "tables.json", "margins.safetensors", "summary.json",
    "ledger.sqlite",
)  # fmt: skip


def reports(run: Path) -> list[tuple[str, str, bytes]]:
    with Ledger.open(run / "ledger.sqlite") as ledger:
        assert list(ledger.verify()) == []
        return [(e.client, e.round, e.report) for e in ledger.entries() if e.stage == STORED]


def test_a_run_leaves_every_file_and_key_of_the_contract(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for name in FILES:
        assert (finished_run / name).is_file(), name
    for key, inner in KEYS.items():
        assert inner <= summary[key].keys(), key
    for name in ("mask_recall", "seconds", "seed", "versions"):
        assert summary[name] is not None
    for name, parts in summary["baselines"].items():
        assert 0 <= parts["mask_recall"] <= 1, name
        assert 0 <= parts["accuracy"] <= 1, name
    for kind in ("dense", "pruned"):
        assert summary["cost"][kind].keys() >= {"params", "macs", "latency_ms"}
    assert summary["baselines"]["votes_without_noise"]["mask_recall"] == 1.0
    assert summary["kept"]["units"] == summary["kept"]["of"] // 2
    assert summary["cost"]["pruned"]["macs"] < summary["cost"]["dense"]["macs"]


def test_every_client_spent_exactly_its_budget_once_and_updates_are_on_record(
    finished_run: Path,
) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    sent = reports(finished_run)
    assert sorted(int(client) for client, _, _ in sent) == list(range(40))
    assert summary["privacy"]["max_epsilon_spent"] == 4.0
    assert summary["privacy"]["overall_client_epsilon"] is None
    assert any("model updates" in sentence for sentence in summary["privacy"]["not_covered"])
    with Ledger.open(finished_run / "ledger.sqlite") as ledger:
        updates = [e for e in ledger.entries() if e.kind == "model-update"]
    assert len(updates) == (3 + 1) * 10  # the baselines' updates exist in simulation only
    assert {e.relation for e in updates} == {"unprotected"}


def test_the_same_seed_gives_the_same_reports_and_masks_and_another_seed_others(
    finished_run: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "again", ["evaluate.baselines=false"])
    run_small(tmp_path / "other", ["evaluate.baselines=false", "seed=2"])
    assert reports(tmp_path / "again") == reports(finished_run)
    first, again, other = (
        load_file(path / "votes.safetensors")["step1.mask"]
        for path in (finished_run, tmp_path / "again", tmp_path / "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert reports(tmp_path / "other") != reports(finished_run)


def test_stored_models_reload_to_identical_outputs(finished_run: Path) -> None:
    folder = RunFolder.open(finished_run)
    inputs = torch.rand(16, 1, 8, 8)
    for load in (folder.load_dense, folder.load_pruned):
        (first, _), (second, _) = load(), load()
        assert torch.equal(first(inputs), second(inputs))
    exported = folder.export_safetensors(finished_run.parent / "exported")
    copy = RunFolder(exported).load_pruned()[0]
    assert torch.equal(copy(inputs), folder.load_pruned()[0](inputs))


def test_several_steps_ask_disjoint_cohorts_once_each(tmp_path: Path) -> None:
    summary = run_small(
        tmp_path / "steps",
        ["prune.schedule=geometric", "prune.steps=2", "prune.keep_units=0.4"],
    )
    by_round: dict[str, set[str]] = {}
    for client, round_, _ in reports(tmp_path / "steps"):
        by_round.setdefault(round_, set()).add(client)
    assert by_round.keys() == {"report-1", "report-2"}
    assert not by_round["report-1"] & by_round["report-2"]
    assert len(by_round["report-1"] | by_round["report-2"]) == 40
    assert summary["privacy"]["max_epsilon_spent"] == 4.0
    assert summary["kept"]["units"] == int(0.4 * summary["kept"]["of"] + 1e-9)


@pytest.mark.parametrize("key", ["keep_macs", "keep_params"])
def test_a_budget_in_macs_or_parameters_is_met(tmp_path: Path, key: str) -> None:
    summary = run_small(tmp_path / "run", [f"prune.{key}=0.4", "evaluate.baselines=false"])
    cost, name = summary["cost"], key.removeprefix("keep_")
    assert cost["pruned"][name] <= 0.4 * cost["dense"][name]
    assert cost["pruned"][name] >= 0.3 * cost["dense"][name]


def test_a_budget_may_be_filled_by_value(tmp_path: Path) -> None:
    wanted = ["prune.keep_macs=0.4", "evaluate.baselines=false"]
    posterior = {}
    for fill in ("ranking", "value"):
        run_small(tmp_path / fill, [*wanted, f"prune.fill={fill}"])
        votes = load_file(tmp_path / fill / "votes.safetensors")
        posterior[fill] = float(votes["step1.posterior"][votes["step1.mask"]].sum())
        assert audit.audit(tmp_path / fill).holds
    assert posterior["value"] > posterior["ranking"]
    with pytest.raises(ConfigError, match=r"prune\.fill must not be 'value' with prune\.scope"):
        run_small(tmp_path / "no", ["prune.fill=value", "prune.scope=layer"])


def test_more_clients_than_test_rows_are_no_trouble(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", ["data.clients=1100", "evaluate.baselines=false"])
    assert summary["privacy"]["reports"] == 1100
    assert summary["accuracy"]["pruned"] is not None


def test_trust_none_claims_nothing(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", ["privacy.trust=none"])
    assert summary["privacy"]["epsilon"] is None
    assert "masks are sent without noise" in summary["privacy"]["not_covered"]
    assert summary["mask_recall"] == 1.0


def test_several_seeds_are_compared_in_pairs(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", ["evaluate.seeds=2"])
    difference = summary["paired_difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    rows = difference["by_seed"]
    assert [row["seed"] for row in rows] == [1, 2]
    by_hand = sum(row["private"] - row["magnitude"] for row in rows) / 2
    assert difference["mean"] == pytest.approx(by_hand)
    assert (tmp_path / "run" / "seeds" / "seed-2" / "summary.json").is_file()


def test_a_finished_run_is_left_as_it_is_by_resume(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    resume(copy, Quiet())
    for path, content in before.items():
        if not path.name.startswith((".", "ledger")):
            assert path.read_bytes() == content, path


def test_a_run_that_was_moved_and_lost_its_last_phases_resumes_to_the_same_end(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(finished_run, copy)
    events = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    vote = next(i for i, line in enumerate(events) if b'"vote-1"' in line)
    (copy / "events.jsonl").write_bytes(b"".join(events[: vote + 1]) + events[vote + 1][:20])
    (copy / "summary.json").unlink()
    resume(copy, Quiet())
    old, new = (json.loads((run / "summary.json").read_text()) for run in (finished_run, copy))
    for key in ("accuracy", "baselines", "mask_recall", "fairness", "kept"):
        assert old[key] == new[key], key


KILLS = 3  # simulations/kill_resume.py does the same any number of times


def test_killed_in_a_report_round_and_resumed_no_client_spends_twice(
    finished_run: Path, tmp_path: Path
) -> None:
    expected = reports(finished_run)
    mask = load_file(finished_run / "votes.safetensors")["step1.mask"]
    sets = [part for override in SMALL for part in ("--set", override)]
    for number in range(KILLS):
        out = tmp_path / f"killed-{number}"
        process = subprocess.Popen(
            [sys.executable, "-m", "fedprune", "simulate", "--json", "--out", str(out), *sets],
            stdout=subprocess.DEVNULL,
        )
        _wait_for_ledger(out, rows=4 + number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        resume(out, Quiet())
        assert reports(out) == expected
        assert torch.equal(load_file(out / "votes.safetensors")["step1.mask"], mask)


def _wait_for_ledger(out: Path, rows: int) -> None:
    """Wait until the ledger has so many rows; training rounds leave the first 3, then cohorts."""
    from fedprune.errors import LedgerError

    for _ in range(6000):
        try:
            with Ledger.open(out / "ledger.sqlite") as ledger:
                if ledger.head[0] >= rows:
                    return
        except LedgerError:
            pass
        time.sleep(0.01)
    pytest.fail("the simulation did not reach its report round in a minute")


def test_folders_that_are_not_runs_or_not_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.toml"):
        resume(tmp_path, Quiet())
    (tmp_path / "something").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        run_small(tmp_path)


def test_a_diverging_run_ends_with_a_sentence_and_no_summary(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"client \d+ .*training diverged: the loss is"):
        run_small(tmp_path / "run", ["train.learning_rate=1e30"])
    assert not (tmp_path / "run" / "summary.json").exists()


def test_two_processes_cannot_work_on_one_run(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    script = (
        "import sys\nfrom fedprune.runs import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).locked(): pass"
    )
    command = [sys.executable, "-c", script, str(copy)]
    with RunFolder.open(copy).locked():
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "in use by another process" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_scoring_in_bfloat16_is_decided_on_a_sample_and_told(tmp_path: Path) -> None:
    run_small(tmp_path / "run", ["engine.precision=bfloat16", "evaluate.baselines=false"])
    [vote] = [e for e in RunFolder.open(tmp_path / "run").events() if e["phase"] == "vote-1"]
    assert "bfloat16" in vote["result"]["precision"]


def test_where_the_sample_speaks_against_bfloat16_votes_are_those_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network here loses so much by it: the check alone is made stricter than it can be."""
    check = pruning.check_precision
    monkeypatch.setattr(
        pruning,
        "check_precision",
        lambda *given, **named: replace(check(*given, **named), used="float32"),
    )
    overrides = ["evaluate.baselines=false", "train.rounds=0", "train.fine_tune_rounds=0"]
    run_small(tmp_path / "plain", overrides)
    run_small(tmp_path / "asked", [*overrides, "engine.precision=bfloat16"])
    votes = [load_file(tmp_path / name / "votes.safetensors") for name in ("plain", "asked")]
    assert all(torch.equal(votes[0][name], votes[1][name]) for name in votes[0])
