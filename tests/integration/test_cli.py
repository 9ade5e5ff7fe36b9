"""The command line as people use it: outputs, exit codes, one-sentence errors."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SMALL
from typer.testing import CliRunner

from fedprune.cli import app, main

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
    "report", "report_hash", "previous", "hash",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_an_audit_exits_1_and_names_the_row_after_any_column_was_changed(
    run: Path, column: str
) -> None:
    row = 71  # a stored report
    value = {"seq": 9999, "report": b"\x00\x01", "epsilon": (0.5).hex()}.get(column, "ab")
    with sqlite3.connect(run / "ledger.sqlite") as raw:
        assert raw.execute("SELECT stage FROM entries WHERE seq = ?", (row,)).fetchone() == (
            "stored",
        )
        raw.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (value, row))
    raw.close()
    found = CliRunner().invoke(app, ["audit", str(run), "privacy"])
    assert found.exit_code == 1
    assert "BROKEN  privacy" in found.output
    assert ("row number 71 is missing" if column == "seq" else "ledger row 71:") in found.output


def test_an_audit_notices_a_ledger_that_was_cut_off(run: Path) -> None:
    with sqlite3.connect(run / "ledger.sqlite") as raw:
        raw.execute("DELETE FROM entries WHERE seq > 100")
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
