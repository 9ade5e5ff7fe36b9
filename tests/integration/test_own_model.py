"""The example of a user's own network runs as its first line says, and its run can be audited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
EXAMPLES = REPOSITORY / "simulations" / "examples"
SMALL = (
    "data.clients=20",
    "train.rounds=2",
    "train.fine_tune_rounds=1",
    "train.clients_per_round=5",
    "train.local_epochs=1",
    "evaluate.seeds=1",
    "evaluate.resamples=100",
    "evaluate.certified_rows=20",
)


def fedprune(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fedprune", *arguments],
        cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_example_runs_to_its_end_and_every_claim_of_its_audit_holds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = [part for override in SMALL for part in ("--set", override)]
    done = fedprune("simulate", "own_model.toml", "--out", str(run), *sets)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    dense, pruned = summary["cost"]["dense"], summary["cost"]["pruned"]
    # 16 channels that two skips tie together and 16 inside each block; 10 logits of 2 x 2 maps.
    assert dense["params"] == (9 + 1) * 16 + 4 * (16 * 9 + 1) * 16 + (16 * 4 + 1) * 10
    assert pruned["params"] < dense["params"]
    assert pruned["macs"] < dense["macs"]
    assert summary["robustness"]["lower_pruned"] <= summary["robustness"]["upper_pruned"]
    audit = fedprune("audit", str(run))
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "every claim checked holds" in audit.stdout


def test_the_example_is_short_enough_to_be_read_at_a_glance() -> None:
    assert len((EXAMPLES / "own_model.py").read_text().splitlines()) < 40
