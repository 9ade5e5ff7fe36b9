"""A budget of measured time, from the table that a command measures to the audit of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import run_small, small_config
from typer.testing import CliRunner

from fedprune import audit
from fedprune.cli import app
from fedprune.errors import ConfigError, PruningError
from fedprune.federated.simulate import resume
from fedprune.hardware.layer_times import Grid
from fedprune.progress import Quiet
from fedprune.pruning import LatencyTable
from fedprune.runs import LATENCY, RunFolder, latency_table


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of this machine with made-up times: what is tested must not depend on the machine."""
    path = tmp_path_factory.mktemp("times") / "table.json"
    done = CliRunner().invoke(
        app, ["latency", "--set", "model.name=mlp", "--out", str(path), "--repeats", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["table"] == str(path)
    found = LatencyTable.load(path)
    assert len(found.calibration) == 3
    grids = {
        name: Grid(grid.ins, grid.outs, 1.0 + grid.ins[:, None] * grid.outs[None, :])
        for name, grid in found.grids.items()
    }
    LatencyTable(found.machine, 1, 1, 1, found.shape_of, grids, 5.0, 0.5, found.calibration).save(
        path
    )
    return path


def overrides(table: Path, keep: float) -> list[str]:
    return [
        "prune.keep_units=",
        f"prune.keep_latency={keep}",
        f"prune.latency_table={table}",
        "evaluate.baselines=false",
    ]


def test_a_run_keeps_to_a_budget_of_time_and_its_audit_redoes_it(
    tmp_path: Path, measured: Path
) -> None:
    out = tmp_path / "run"
    steps = ["prune.schedule=geometric", "prune.steps=2", "data.clients=40"]
    run_small(out, [*overrides(measured, 0.5), *steps])
    folder = RunFolder.open(out)
    table = LatencyTable.load(out / LATENCY)
    assert (out / LATENCY).read_bytes() == measured.read_bytes()
    _, dense = folder.load_dense()
    whole = table.predict(dense.dense_layout, torch.ones(len(dense.dense_layout)).bool())
    _, small = folder.load_pruned()
    spent = table.predict(small.dense_layout, small.mask)
    assert 0.45 * whole <= spent <= 0.5 * whole
    told = [event["result"]["predicted_ms"] for event in folder.events()
            if event["phase"].startswith("vote-")]  # fmt: skip
    assert told == pytest.approx([whole * 0.5**0.5, spent], rel=0.05)
    assert audit.audit(out).holds
    changed = json.loads((out / LATENCY).read_text())
    changed["overhead_ms"] += 0.2 * whole  # so more of the rest would have had to go
    (out / LATENCY).write_text(json.dumps(changed))
    assert not audit.audit(out).holds


def test_a_run_goes_on_with_its_own_copy_of_the_table(tmp_path: Path, measured: Path) -> None:
    own = tmp_path / "table.json"
    own.write_bytes(measured.read_bytes())
    out = tmp_path / "run"
    first = run_small(out, overrides(own, 0.6))
    own.unlink()
    (out / "summary.json").unlink()
    assert resume(out, Quiet())["kept"] == first["kept"]


def test_what_is_no_table_stops_a_run_before_it_begins(tmp_path: Path, measured: Path) -> None:
    missing = overrides(tmp_path / "nowhere.json", 0.6)
    with pytest.raises(PruningError, match=r"cannot read the latency table .*nowhere"):
        run_small(tmp_path / "run", missing)
    with pytest.raises(ConfigError, match="both or neither"):
        small_config("prune.keep_units=", "prune.keep_latency=0.5")
    with pytest.raises(ConfigError, match="both or neither"):
        small_config(f"prune.latency_table={measured}")
    assert latency_table(small_config()) is None
