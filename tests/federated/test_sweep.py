"""A sweep's cell is the run that its configuration gives alone; what is shared changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL, run_small
from safetensors.torch import load_file, save_file

from fedprune.audit import audit, write_report
from fedprune.errors import PrivacyError, RefusedInDeploymentError, RunError
from fedprune.federated.kept import Kept
from fedprune.federated.sweep import check, run_sweep, share, summarize
from fedprune.federated.sweep_folder import Sweep
from fedprune.privacy import Ledger
from fedprune.progress import Quiet
from fedprune.study.grid import make_grid

SAME_FILES = (
    "votes.safetensors", "model.safetensors", "dense.safetensors", "tables.json",
    "margins.safetensors", "layout.json", "architecture.json",
)  # fmt: skip
SAME_FIGURES = (
    "accuracy", "baselines", "mask_recall", "mask_recall_without_prior", "paired_difference",
    "kept", "privacy", "fairness", "robustness", "certified_accuracy", "traffic", "missing",
)  # fmt: skip
OVER = ("privacy.epsilon=1,8", "prune.keep_units=.4,.6")


def swept(
    out: Path, over: Sequence[str] = OVER, overrides: Sequence[str] = (), engine: str = "local"
) -> dict[str, Any]:
    grid = make_grid(None, [*SMALL, *overrides], over)
    sweep = Sweep.of(grid, out)
    sharing = share(sweep, engine)
    run_sweep(sweep, sharing, Quiet(), check(sweep, sharing, Quiet()), write_report)
    return summarize(sweep)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep; tests must not change it."""
    out = tmp_path_factory.mktemp("sweeps") / "finished"
    summary = swept(out)
    assert len(summary["cells"]["done"]) == 4
    return out


def cells(sweep: Path) -> list[Path]:
    return sorted((sweep / "cells").iterdir())


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def taken_over(run: Path) -> set[str]:
    return {event["phase"] for event in events(run) if "reused_from" in event}


def assert_same(run: Path, other: Path) -> None:
    for name in SAME_FILES:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    one, two = (json.loads((path / "summary.json").read_text()) for path in (run, other))
    for key in SAME_FIGURES:
        assert one[key] == two[key], key
    for size in ("params", "macs"):
        assert one["cost"]["pruned"][size] == two["cost"]["pruned"][size]
    assert [event["phase"] for event in events(run)] == [event["phase"] for event in events(other)]


def test_every_cell_equals_the_same_configuration_run_alone(finished: Path, tmp_path: Path) -> None:
    for cell in (cells(finished)[0], cells(finished)[3]):  # one did the work, one took it over
        settings = json.loads((cell / "summary.json").read_text())["config"]
        alone = tmp_path / cell.name
        run_small(
            alone,
            [
                f"privacy.epsilon={settings['privacy']['epsilon']}",
                f"prune.keep_units={settings['prune']['keep_units']}",
            ],
        )
        assert_same(cell, alone)
    assert "train-3" in taken_over(cells(finished)[3])
    assert "magnitude/evaluate-after" in taken_over(cells(finished)[3])


def test_every_cell_passes_its_audit(finished: Path) -> None:
    for cell in cells(finished):
        assert audit(cell).holds, [f for f in audit(cell).findings if not f.holds]


def test_votes_are_never_taken_over_and_every_ledger_has_a_run_of_its_own(finished: Path) -> None:
    runs = set()
    for cell in cells(finished):
        assert not {"vote-1", "evaluate-1-before", "cost", "seal"} & taken_over(cell)
        with Ledger.open(cell / "ledger.sqlite", read_only=True) as ledger:
            entries = list(ledger.entries())
        assert (
            sum(entry.kind == "mask-report" and entry.stage == "stored" for entry in entries) == 40
        )
        assert sum(entry.kind == "model-update" for entry in entries) == (3 + 1) * 10
        assert len({entry.run for entry in entries}) == 1
        runs.add(entries[0].run)
    assert len(runs) == 4


def test_an_event_names_the_run_that_did_the_work(finished: Path) -> None:
    for cell in cells(finished):
        for event in events(cell):
            if "reused_from" not in event:
                continue
            there = events(finished / event["reused_from"])
            names = {e["phase"].rpartition("/")[2]: e["result"] for e in there}
            assert names.keys() >= {event["phase"].rpartition("/")[2]}
            same = [e for e in there if e["result"] == event["result"]]
            assert same, event["phase"]


def test_the_summary_pairs_the_seeds_and_says_that_epsilons_are_alternatives(
    tmp_path: Path,
) -> None:
    summary = swept(tmp_path / "s", ["privacy.epsilon=2,8"], ["evaluate.seeds=2"])
    cell = json.loads((cells(tmp_path / "s")[0] / "summary.json").read_text())
    found, paired = summary["groups"][0]["private_minus_magnitude"], cell["paired_difference"]
    assert {key: found[key] for key in ("mean", "low", "high")} == {
        key: paired[key] for key in ("mean", "low", "high")
    }
    table = (tmp_path / "s" / "sweep.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 2
    epsilons = summary["epsilons"]
    assert epsilons["of_cells"] == "alternatives"
    total = {one["relation"]: one for one in epsilons["if_the_same_clients_answered_all"]}
    assert total["replacement"]["epsilon"] == 2 * 2 + 2 * 8
    assert all(audit(path).holds for path in cells(tmp_path / "s"))


def test_private_training_is_charged_in_every_run_and_nothing_of_it_is_shared(
    tmp_path: Path,
) -> None:
    private = [
        "train.private=all", "train.rounds=1", "train.sample_rate=0.5", "train.local_epochs=1",
        "evaluate.baselines=true",
    ]  # fmt: skip
    swept(tmp_path / "s", ["privacy.epsilon=1,8"], private)
    for cell in cells(tmp_path / "s"):
        assert taken_over(cell) == set()
        with Ledger.open(cell / "ledger.sqlite", read_only=True) as ledger:
            charged = [e for e in ledger.entries() if e.kind == "dp-update" and e.stage == "stored"]
        assert len(charged) == 2 * 10


@pytest.mark.parametrize(
    ("overrides", "over"),
    [
        (["privacy.phases=2", "data.clients=60"], ["privacy.epsilon=1,8"]),
        (["prune.schedule=geometric", "prune.steps=2"], ["prune.keep_units=0.4,0.6"]),
        (["train.fine_tune_rounds=0", "train.rounds=0"], ["privacy.prior=magnitude,none"]),
        (["evaluate.tables=unprotected"], ["privacy.epsilon=1,8"]),
        (["evaluate.tables=off"], ["privacy.mechanism=warner,threshold"]),
        ([], ["privacy.phases=1,2"]),
        ([], ["prune.criterion=taylor,magnitude_l2"]),
        (["evaluate.baselines=false"], ["data.partition=iid,dirichlet"]),
        ([], ["evaluate.split=test,validation"]),
        (["privacy.delta=1e-6", "privacy.masking=false"], ["privacy.trust=aggregate,record"]),
    ],
)  # fmt: skip
def test_whatever_is_swept_over_the_last_cell_equals_the_run_alone(
    tmp_path: Path, overrides: list[str], over: list[str]
) -> None:
    swept(tmp_path / "s", over, overrides)
    key, _, values = over[0].partition("=")
    cell = cells(tmp_path / "s")[-1]
    run_small(tmp_path / "alone", [*overrides, f"{key}={values.split(',')[-1]}"])
    ours = json.loads((cell / "summary.json").read_text())
    alone = json.loads((tmp_path / "alone" / "summary.json").read_text())
    for figure in SAME_FIGURES:
        assert ours[figure] == alone[figure], figure
    for name in ("votes.safetensors", "model.safetensors"):
        assert (cell / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert audit(cell).holds


def test_a_cell_that_the_plan_refuses_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    summary = swept(tmp_path / "s", ["prune.keep_units=.01,.5"])
    (failed,) = summary["cells"]["failed"]
    assert "prune.keep_units = 0.01 keeps 0 of 96 units" in summary["errors"][failed]
    assert len(summary["cells"]["done"]) == 1
    table = (tmp_path / "s" / "sweep.csv").read_text()
    assert "failed" in table
    assert "keeps 0 of 96 units" in table


def test_training_that_diverges_fails_its_cell_alone(tmp_path: Path) -> None:
    summary = swept(tmp_path / "s", ["train.learning_rate=1e30,0.2"])
    (failed,) = summary["cells"]["failed"]
    assert failed.startswith("001")
    assert "diverged" in summary["errors"][failed]
    assert [name[:3] for name in summary["cells"]["done"]] == ["002"]


def test_a_sweep_whose_cells_are_all_refused_begins_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="keeps 0 of 96 units"):
        swept(tmp_path / "s", ["prune.keep_units=.01,.001"])
    assert not (tmp_path / "s").exists()


def test_a_failed_cell_is_tried_again_and_a_finished_one_left_alone(tmp_path: Path) -> None:
    grid = make_grid(None, [*SMALL, "evaluate.baselines=false"], ["privacy.epsilon=1,8"])
    sweep = Sweep.of(grid, tmp_path / "s")
    first, second = grid.cells()
    run_sweep(sweep, share(sweep, "local"), Quiet(), {first.name: "no room"}, write_report)
    assert summarize(sweep)["errors"] == {first.name: "no room"}
    before = (sweep.cell_path(second) / "events.jsonl").read_bytes()
    again = Sweep.open(tmp_path / "s")
    run_sweep(again, share(again, "local"), Quiet(), {}, write_report)
    assert summarize(again)["errors"] == {}
    assert (sweep.cell_path(second) / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("moment", ["train-2", "vote-1", "pooled/tune-1-1", "magnitude/evaluate-"])
def test_killed_at_any_time_and_taken_up_again_the_cells_are_the_same(
    finished: Path, tmp_path: Path, moment: str
) -> None:
    out, last = tmp_path / "s", cells(finished)[3].name
    sets = [part for override in SMALL for part in ("--set", override)]
    overs = [part for text in OVER for part in ("--over", text)]
    command = [
        sys.executable,
        "-m",
        "fedprune",
        "sweep",
        "--json",
        "--out",
        str(out),
        *sets,
        *overs,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _wait_for(out / "cells" / last / "events.jsonl", moment, process)
    process.kill()
    process.wait()
    swept(out)
    for cell, expected in zip(cells(out), cells(finished), strict=True):
        assert_same(cell, expected)
        assert not list(cell.glob("checkpoints/*.reused.json"))
        assert audit(cell).holds


def _wait_for(path: Path, phase: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(12000):
        if path.is_file() and f'"phase": "{phase}' in path.read_text():
            return
        if process.poll() is not None:
            return  # it was too quick for us
        time.sleep(0.01)
    pytest.fail(f"the sweep did not reach {phase} in two minutes")


def test_a_cell_half_taken_over_goes_on_without_the_sweep(finished: Path, tmp_path: Path) -> None:
    from fedprune.federated.simulate import resume

    shutil.copytree(finished, tmp_path / "s")
    cell = cells(tmp_path / "s")[3]
    lines = (cell / "events.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b"magnitude/tune-1-1" in line)
    note = {
        "from": "elsewhere",
        "events": [
            {"phase": e["phase"].removeprefix("magnitude/"), "result": e["result"], "seconds": 1.0}
            for e in events(cell)
            if e["phase"].startswith("magnitude/")
        ],
    }
    (cell / "events.jsonl").write_bytes(b"".join(lines[:at]))
    (cell / "checkpoints" / "magnitude-tune-1-1.reused.json").write_text(json.dumps(note))
    (cell / "summary.json").unlink()
    shutil.move(cell, tmp_path / "alone")
    shutil.rmtree(tmp_path / "s")
    resume(tmp_path / "alone", Quiet())
    assert_same(tmp_path / "alone", cells(finished)[3])


def test_results_that_were_changed_since_are_not_taken_over(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "s")
    first, *_, last = cells(tmp_path / "s")
    model = first / "checkpoints" / "train-3.safetensors"
    save_file({"weights": load_file(model)["weights"] + 1}, model)
    shutil.rmtree(last)
    (tmp_path / "s" / "cells" / "002_epsilon-1_keep_units-0.6" / "checkpoints").rename(
        tmp_path / "gone"
    )
    swept(tmp_path / "s")
    assert "train-3" not in taken_over(last)
    assert_same(last, cells(finished)[3])


def test_a_sweep_that_was_moved_goes_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "elsewhere")
    last = cells(tmp_path / "elsewhere")[3]
    shutil.rmtree(last)
    swept(tmp_path / "elsewhere")
    assert "train-3" in taken_over(last)
    assert_same(last, cells(finished)[3])


def test_another_sweep_s_folder_and_a_folder_in_use_are_refused(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="holds another sweep"):
        swept(finished, ["privacy.epsilon=1,2"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a sweep"):
        swept(tmp_path / "full")
    shutil.copytree(finished, tmp_path / "s")
    sweep = Sweep.open(tmp_path / "s")
    with sweep.files.locked(), pytest.raises(RunError, match="in use by another process"):
        run_sweep(sweep, share(sweep, "local"), Quiet(), {}, write_report)


def test_what_is_kept_in_memory_stays_within_its_bound() -> None:
    kept, sizes = Kept(most_bytes=100), []
    for number in range(20):
        value = kept.get(("scores", number), lambda: torch.zeros(10), lambda found: found.nbytes)
        assert len(value) == 10
        sizes.append(kept.bytes)
    assert max(sizes) == 80
    assert (kept.found, kept.made) == (0, 20)
    kept.get(("scores", 19), lambda: torch.ones(10), lambda found: found.nbytes)
    assert (kept.found, kept.made) == (1, 20)
    kept.get(("large",), lambda: torch.zeros(1000), lambda found: found.nbytes)
    assert kept.bytes == 80


def test_a_deployed_client_writes_down_no_update_that_it_did_not_make() -> None:
    from fedprune.federated.again_answers import answer_train_again

    class Deployed:
        def simulation_only(self, what: str) -> None:
            raise RefusedInDeploymentError(f"a deployed client refuses {what}")

    with pytest.raises(RefusedInDeploymentError, match="did not compute"):
        answer_train_again(Deployed(), None, [0])  # type: ignore[arg-type]
    assert issubclass(RefusedInDeploymentError, PrivacyError)


def test_cells_whose_removed_units_may_come_back_share_their_baselines_too(tmp_path: Path) -> None:
    steps = ("prune.regrow=true", "prune.schedule=geometric", "prune.steps=3")
    summary = swept(tmp_path / "sweep", ["privacy.epsilon=2,8"], steps)
    assert len(summary["cells"]["done"]) == 2
    first, second = cells(tmp_path / "sweep")
    assert any(phase.startswith("magnitude/") for phase in taken_over(second))
    assert audit(first).holds
    assert audit(second).holds
