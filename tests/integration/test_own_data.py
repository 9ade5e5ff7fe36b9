"""The example of a user's own data, run as its first line says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
EXAMPLES = REPOSITORY / "simulations" / "examples"
SETTINGS = (
    "train.rounds=10",
    "train.fine_tune_rounds=2",
    "evaluate.resamples=200",
)


def test_the_example_of_own_data_runs_to_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    found_first = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fedprune", "simulate", "own_data.toml", "--out", str(run), *sets],
        cwd=EXAMPLES,
        env=os.environ | {"PYTHONPATH": found_first, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["config"]["data"]["dataset"] == "own_data:load"
    assert summary["accuracy"]["dense"] > 0.85
    assert summary["accuracy"]["pruned"] > 0.85
    assert summary["cost"]["pruned"]["params"] < summary["cost"]["dense"]["params"]
    assert summary["fairness"]["group"] == "size"
    assert [group["name"] for group in summary["fairness"]["groups"]] == [
        "small",
        "medium",
        "large",
    ]


def test_the_example_of_own_data_is_short() -> None:
    assert len((EXAMPLES / "own_data.py").read_text().splitlines()) < 40
