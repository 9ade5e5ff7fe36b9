"""The command line as people use it: outputs, exit codes, one-sentence errors."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedprune.cli import app, main
from fedprune.runs import RunFolder

SETS = [part for override in SMALL for part in ("--set", override)]


def fedprune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedprune", *arguments], capture_output=True, text=True, check=False
    )


def inside(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; give its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedprune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    return copy


def test_simulate_prints_json_alone_and_a_report_that_stands_alone(tmp_path: Path) -> None:
    done = fedprune("simulate", "--json", "--out", str(tmp_path / "r"), *SETS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 1
    assert done.stderr == ""
    page = (tmp_path / "r" / "report.html").read_text()
    assert "ε" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_a_user_error_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    done = fedprune("simulate", "--set", "prune.keep_units=1.3", "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert done.stderr.startswith("fedprune: prune.keep_units must be a number in (0, 1], got 1.3")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["audit", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["export", "nowhere"], "nowhere is not a run folder"),
        (["plan", "missing.toml"], "cannot read the configuration missing.toml"),
        (["simulate", "--set", "data.dataset=mnistt"], "data.dataset must be one of"),
        (["simulate", "--set", "model.name=vgg"], "lenet"),
        (["simulate", "--set", "data.clients=100000"], "100000"),
        (["simulate", "--set", "data.groups=sex"], "data.groups must be one of class"),
        (["simulate", "--set", "data.partition=natural"], "natural"),
        (["simulate", "--set", "model.weights=no.th"], "no.th"),
        (["simulate", "--set", "data.dataset=cifar10"], "cifar-10-batches-py"),
        (["simulate", "--set", "seed=99999999999999999999999"], "seed must be a whole number"),
        (["simulate", "--set", "privacy.epsilon=1e-200"], "privacy.epsilon must be"),
        (["simulate", "--set", "evaluate.confidence=0.99999999"], "evaluate.confidence must be"),
        (["simulate", "--set", "prune.keep_units=0.0003"], "keep"),
        (["simulate", "--set", "prune.keep_macs=1e-9"], "keep_macs"),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside(arguments, monkeypatch) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert sentence in printed[-1]
    assert printed[-1].startswith("fedprune: ")
    assert not any(path.suffix == ".json" for path in tmp_path.rglob("*"))


def test_plan_warns_and_goes_on_but_strict_stops_before_anything_is_spent(tmp_path: Path) -> None:
    runner = CliRunner()
    hopeless = ["--set", "data.clients=5", "--set", "privacy.epsilon=0.5"]
    warned = runner.invoke(app, ["plan", *hopeless])
    assert warned.exit_code == 0
    assert "nearly useless" in warned.output
    assert runner.invoke(app, ["plan", "--strict", *hopeless]).exit_code == 1
    out = tmp_path / "r"
    stopped = runner.invoke(app, ["simulate", "--strict", "--out", str(out), *hopeless])
    assert stopped.exit_code == 1
    assert not out.exists()
    fine = runner.invoke(app, ["plan", "--strict", "--json"])
    assert fine.exit_code == 0
    assert json.loads(fine.output)["useful"]


def test_an_audit_of_a_good_run_holds(run: Path) -> None:
    found = CliRunner().invoke(app, ["audit", str(run)])
    assert found.exit_code == 0, found.output
    assert "every claim checked holds" in found.output
    assert "BROKEN" not in found.output


COLUMNS = [
    "seq", "client", "run", "round", "kind", "stage", "question", "relation", "epsilon", "delta",
    "event", "report_hash", "previous", "hash", "clients", "report",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_an_audit_exits_1_and_names_the_row_after_any_column_was_changed(
    run: Path, column: str
) -> None:
    blob = b"\x00\x01\x02\x03"
    other = {"seq": 9999, "report": blob, "clients": blob, "epsilon": (0.5).hex()}
    value = other.get(column, "ab")
    with sqlite3.connect(run / "ledger.sqlite") as raw:
        (row,) = raw.execute("SELECT seq FROM entries WHERE stage = 'stored'").fetchone()
        raw.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (value, row))
    raw.close()
    found = CliRunner().invoke(app, ["audit", str(run), "privacy"])
    assert found.exit_code == 1
    assert "BROKEN  privacy" in found.output
    named = f"row number {row} is missing" if column == "seq" else f"ledger row {row}:"
    assert named in found.output


def test_an_audit_notices_a_ledger_that_was_cut_off(run: Path) -> None:
    with sqlite3.connect(run / "ledger.sqlite") as raw:
        raw.execute("DELETE FROM entries WHERE seq > 4")
    raw.close()
    found = CliRunner().invoke(app, ["audit", str(run), "privacy"])
    assert found.exit_code == 1
    assert "is not the one that phase" in found.output


@pytest.mark.parametrize(
    ("file", "key", "part", "broken"),
    [
        ("summary.json", ("privacy", "max_epsilon_spent"), "privacy", "max_epsilon_spent"),
        ("summary.json", ("privacy", "overall_client_epsilon"), "privacy", "overall_client"),
        ("summary.json", ("accuracy", "pruned"), "fairness", "accuracy.pruned"),
        ("summary.json", ("fairness", "gap_pruned"), "fairness", "gap_pruned"),
        ("summary.json", ("robustness", "upper_pruned"), "robustness", "upper_pruned"),
        ("summary.json", ("certified_accuracy", "pruned"), "robustness", "certified_accuracy"),
        ("summary.json", ("cost", "pruned", "macs"), "model", "cost.pruned"),
    ],
)
def test_an_audit_notices_every_figure_that_was_prettied_up(
    run: Path, file: str, key: tuple[str, ...], part: str, broken: str
) -> None:
    content = json.loads((run / file).read_text())
    table = content
    for name in key[:-1]:
        table = table[name]
    table[key[-1]] = 0.123
    (run / file).write_text(json.dumps(content))
    found = CliRunner().invoke(app, ["audit", str(run), part])
    assert found.exit_code == 1
    assert broken in found.output


def change_json(path: Path, key: tuple[str, ...], value: object) -> None:
    content = json.loads(path.read_text())
    table = content
    for name in key[:-1]:
        table = table[name]
    table[key[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("privacy", "statement"), "epsilon = 0.01 for everything"),
        (("privacy", "not_covered"), []),
        (("mask_recall",), 0.99),
        (("baselines", "magnitude", "accuracy"), 0.01),
        (("paired_difference", "mean"), 0.3),
        (("config", "train", "rounds"), 0),
    ],
)
def test_an_audit_notices_words_and_comparisons_that_were_changed(
    run: Path, key: tuple[str, ...], value: object
) -> None:
    change_json(run / "summary.json", key, value)
    found = CliRunner().invoke(app, ["audit", str(run)])
    assert found.exit_code == 1
    assert key[-1] in found.output


@pytest.mark.parametrize(
    "name",
    [
        "tables.json", "margins.safetensors", "votes.safetensors", "layout.json",
        "dense.safetensors", "model.safetensors", "ledger.sqlite", "architecture.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["removed", "emptied"])
def test_an_audit_notices_evidence_that_is_gone(run: Path, name: str, what: str) -> None:
    (run / name).unlink()
    if what == "emptied":
        (run / name).write_text("{}")
    found = CliRunner().invoke(app, ["audit", str(run)])
    assert found.exit_code == 1, found.output
    assert "BROKEN" in found.output


def test_an_audit_notices_votes_and_models_that_were_replaced(run: Path) -> None:
    votes = load_file(run / "votes.safetensors")
    for name, value in (
        ("step1.mean", votes["step1.mean"] * float("nan")),
        ("step1.variance", votes["step1.variance"] * 1e-9),
        ("step1.posterior", -votes["step1.posterior"]),
        ("step1.mask", ~votes["step1.mask"]),
    ):
        save_file({**votes, name: value}, run / "votes.safetensors")
        assert CliRunner().invoke(app, ["audit", str(run), "privacy"]).exit_code == 1, name
    save_file(votes, run / "votes.safetensors")
    weights = load_file(run / "model.safetensors")
    last = list(weights)[-1]
    save_file({**weights, last: weights[last].flip(0)}, run / "model.safetensors")
    found = CliRunner().invoke(app, ["audit", str(run), "record"])
    assert found.exit_code == 1
    assert "model.safetensors" in found.output


def test_an_audit_notices_another_configuration_and_missing_seeds(run: Path) -> None:
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("rounds = 3", "rounds = 9"))
    assert CliRunner().invoke(app, ["audit", str(run), "record"]).exit_code == 1
    assert CliRunner().invoke(app, ["audit", str(run), "privacy"]).exit_code == 1
    (run / "config.toml").write_text(config.replace("seeds = 1", "seeds = 2"))
    found = CliRunner().invoke(app, ["audit", str(run), "record"])
    assert found.exit_code == 1
    assert "seed-2" in found.output


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{}"),
        ("events.jsonl", "3\n"),
        ("tables.json", '{"test": [[1], [2, 3]]}'),
        ("audit.json", "]"),
    ],
)
def test_damaged_evidence_is_a_sentence_not_a_traceback(
    run: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / name).write_text(content)
    code = inside(["audit", str(run)], monkeypatch)
    assert code == (0 if name == "audit.json" else 1) or code == 2


def test_an_audit_of_a_read_only_copy_works_and_changes_nothing(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for part in ("privacy", "fairness", "robustness", "model", "record"):
        assert CliRunner().invoke(app, ["audit", str(run), part]).exit_code == 0
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_configuration_that_was_changed_in_mid_run_stops_the_resume(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('prior = "magnitude"', 'prior = "none"'))
    (run / "summary.json").unlink()
    assert inside(["resume", str(run)], monkeypatch) == 2
    assert "was changed after the run had begun" in capsys.readouterr().err


def test_export_and_report_write_where_they_are_told(run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["export", str(run), "--out", str(tmp_path / "e")]).exit_code == 0
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        "model.safetensors",
        "architecture.json",
    }
    page = tmp_path / "page.html"
    assert runner.invoke(app, ["report", str(run), "--out", str(page)]).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")


def test_pt2_runs_without_fedprune_and_gives_the_pruned_model_s_outputs(run: Path) -> None:
    done = fedprune("export", str(run), "--format", "pt2", "--json")
    assert done.returncode == 0, done.stderr
    path = json.loads(done.stdout)["path"]
    model, architecture = RunFolder.open(run).load_pruned()
    inputs = torch.randn(5, *architecture.input_shape)
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(inputs), model(inputs))


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_ledger_is_shown_and_verified_as_lines_and_as_json(run: Path, command: str) -> None:
    ledger = str(run / "ledger.sqlite")
    lines, machine = (fedprune("ledger", command, ledger, *more) for more in ([], ["--json"]))
    assert (lines.returncode, machine.returncode) == (0, 0), lines.stderr + machine.stderr
    assert isinstance(json.loads(machine.stdout), dict)
    missing = fedprune("ledger", command, str(run / "nowhere.sqlite"))
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1


def test_every_command_that_finds_something_out_says_it_in_json(run: Path, tmp_path: Path) -> None:
    commands = [
        ["report", str(run), "--out", str(tmp_path / "page.html")],
        ["export", str(run)],
        ["resume", str(run)],
        ["deploy", "certificates", str(tmp_path / "certificates")],
        ["deploy", "keys", str(tmp_path / "keys"), "one", "two"],
    ]
    for command in commands:
        done = fedprune(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict), command
    again = fedprune("deploy", "keys", str(tmp_path / "keys"), "one")
    assert again.returncode == 2


def test_the_shell_completes_configuration_keys() -> None:
    environment = {
        "_FEDPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": "fedprune simulate --set privacy.e",
        "COMP_CWORD": "3",
    }
    script = "from fedprune.cli import app; app(prog_name='fedprune')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "privacy.epsilon=" in done.stdout


def test_a_client_with_an_impossible_budget_is_refused_at_once(
    tmp_path: Path,
) -> None:
    done = fedprune(
        *("deploy", "supernode", "--superlink", "127.0.0.1:1", "--client", "0"),
        *("--data-root", str(tmp_path), "--ledger", str(tmp_path / "l.sqlite"), "--epsilon", "-1"),
    )
    assert done.returncode == 2
    assert "epsilon must be a number above 0" in done.stderr
