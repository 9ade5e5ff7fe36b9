"""`fedprune sweep` as people use it: one sentence for what is wrong, and a table for the rest."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import SMALL

from fedprune.cli import main

FEW = [part for override in (*SMALL, "evaluate.baselines=false") for part in ("--set", override)]


def inside(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; give its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedprune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ([], "a sweep needs at least one --over key=value,value,..."),
        (["privacy.epslon=1,2"], "unknown key privacy.epslon; did you mean privacy.epsilon?"),
        (["privacy.epsilon=1,x"], "privacy.epsilon must be a number in [1e-6, 64], got 'x'"),
        (["privacy.epsilon="], "--over privacy.epsilon must list at least one value"),
        (["privacy.epsilon=1", "privacy.epsilon=2"], "--over names privacy.epsilon 2 times"),
        (["evaluate.seeds=1,2"], "contradict each other"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_before_anything_starts(
    over: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overs = [part for text in over for part in ("--over", text)]
    assert inside(["sweep", "--out", str(tmp_path / "s"), *FEW, *overs], monkeypatch) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "s").exists()


def test_a_failed_cell_is_named_in_the_end_and_the_table_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    command = ["sweep", "--out", str(out), *FEW, "--over", "prune.keep_units=.01,.5"]
    assert inside(command, monkeypatch) == 1
    said = capsys.readouterr()
    assert "1 of 2 cells failed: 001_keep_units-0.01" in said.err.splitlines()[-1]
    assert "keeps 0 of 96 units" in said.out
    assert "alternatives" in said.out
    with open(out / "sweep.csv", newline="") as file:
        assert [line["status"] for line in csv.DictReader(file)] == ["failed", "done"]
    assert (out / "sweep.svg").is_file()
    assert inside(["resume", str(out), "--json"], monkeypatch) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["cells"]["failed"] == ["001_keep_units-0.01"]


def test_an_interrupted_sweep_says_how_to_go_on_and_the_same_command_does(tmp_path: Path) -> None:
    out = tmp_path / "s"
    command = [
        sys.executable, "-m", "fedprune", "sweep", "--json", "--out", str(out), *FEW,
        "--over", "privacy.epsilon=1,8",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for _ in range(12000):
        if list(out.glob("cells/*/events.jsonl")) or process.poll() is not None:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == f"fedprune: interrupted; `fedprune resume {out}` does what is left\n"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["cells"]["done"]) == 2
