"""Figures recomputed from a run folder: a ledger's in simulation, receipts' in deployment."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from deployed_run import Deployed, deploy

from fedprune.errors import LedgerError, RunError
from fedprune.privacy.budgets.events import REPLACEMENT, UNPROTECTED
from fedprune.runs import (
    RunFolder,
    is_run_of,
    ledger_contradiction,
    ledger_totals,
    privacy_figures,
    read_receipts,
    receipt_lines,
    receipts_head,
    run_id,
    seal,
)


@pytest.fixture(scope="module")
def original(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    return deploy(finished_run, tmp_path_factory.mktemp("deployed") / "run")


@pytest.fixture
def run(original: Deployed, tmp_path: Path) -> Deployed:
    shutil.copytree(original.path, tmp_path / "run")
    return replace(original, path=tmp_path / "run")


def test_receipts_add_up_to_what_the_simulations_ledger_does(
    run: Deployed, finished_run: Path
) -> None:
    told = ledger_totals(RunFolder.open(run.path))
    assert told == ledger_totals(RunFolder.open(finished_run))
    assert (told.stored, told.answers, told.clients) == (40, 40, 40)
    for history in told.histories:
        assert history.epsilon(REPLACEMENT, 0.0) == pytest.approx(4.0)
    assert told.kinds == {"mask-report", "model-update"}


def test_a_line_that_occurs_twice_counts_once(run: Deployed) -> None:
    folder = RunFolder.open(run.path)
    before = ledger_totals(folder)
    lines = run.lines()
    run.write_lines([*lines, *lines])
    assert ledger_totals(folder) == before
    assert len(receipt_lines(folder)) == 2 * len(lines)
    assert len(read_receipts(folder)) == len(lines)


def test_the_figures_of_a_deployed_run_say_what_they_rest_on(
    run: Deployed, finished_run: Path
) -> None:
    folder, simulation = RunFolder.open(run.path), RunFolder.open(finished_run)
    deployed = privacy_figures(folder, folder.config, False)
    simulated = privacy_figures(simulation, simulation.config, True)
    assert deployed.keys() - simulated.keys() == {"basis"}
    assert "signed receipts of 40 clients" in deployed["basis"]
    assert "stands in its own ledger only" in deployed["basis"]
    assert "must be trusted: nobody" in deployed["statement"]
    assert deployed["overall_client_epsilon"] is None
    (gap,) = deployed["not_covered"]
    assert "model updates" in gap
    assert not any("simulation" in words for words in deployed["not_covered"])
    assert any("simulation" in words for words in simulated["not_covered"])


def test_without_unprotected_receipts_the_epsilon_covers_the_run(run: Deployed) -> None:
    folder = RunFolder.open(run.path)
    run.write_lines([r.to_line() for r in run.receipts() if r.relation != UNPROTECTED])
    figures = privacy_figures(folder, folder.config, False)
    assert (figures["overall_client_epsilon"], figures["not_covered"]) == (4.0, [])


def test_a_folder_without_ledger_and_receipts_adds_up_to_nothing(run: Deployed) -> None:
    (run.path / "receipts.jsonl").unlink()
    folder = RunFolder.open(run.path)
    for look in (ledger_totals, receipt_lines, read_receipts):
        with pytest.raises(RunError, match=r"receipts\.jsonl is missing"):
            look(folder)
    assert receipts_head(folder) == {}


def test_a_line_that_is_no_receipt_is_named_by_its_number(run: Deployed) -> None:
    run.write_lines([*run.lines()[:2], "{}"])
    with pytest.raises(LedgerError, match=r"receipts\.jsonl, line 3: a receipt has schema None"):
        read_receipts(RunFolder.open(run.path))
    (run.path / "receipts.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(RunError, match=r"receipts\.jsonl is damaged"):
        receipt_lines(RunFolder.open(run.path))


def test_receipts_that_came_after_the_last_event_are_no_contradiction(run: Deployed) -> None:
    folder, path = RunFolder.open(run.path), run.path / "receipts.jsonl"
    assert ledger_contradiction(folder) is None
    head = receipts_head(folder)
    assert head == {k: folder.events()[-1][k] for k in ("receipt_lines", "receipts_sha256")}
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0] + "\n" + "torn by a crash")
    assert ledger_contradiction(folder) is None
    assert receipts_head(folder)["receipt_lines"] == head["receipt_lines"] + 1


def test_receipts_that_were_cut_reordered_or_removed_contradict_the_events(run: Deployed) -> None:
    folder, path = RunFolder.open(run.path), run.path / "receipts.jsonl"
    lines = run.lines()
    for changed in (lines[:-1], lines[::-1], []):
        path.write_text("".join(line + "\n" for line in changed))
        assert "is not the one that phase" in str(ledger_contradiction(folder))
    path.unlink()
    with pytest.raises(RunError, match="is missing"):
        ledger_contradiction(folder)


def test_the_seal_covers_the_receipts(run: Deployed, finished_run: Path) -> None:
    assert "receipts.jsonl" in seal(RunFolder.open(run.path))
    assert "receipts.jsonl" not in seal(RunFolder.open(finished_run))


def test_a_deployed_run_is_named_by_its_configuration_and_a_nonce(run: Deployed) -> None:
    config = RunFolder.open(run.path).config
    stem = run_id(config)
    assert is_run_of(stem, config, simulated=True)
    assert is_run_of(f"{stem}-0123abcd", config, simulated=False)
    other = config.model_copy(update={"seed": 99})
    for name in (stem, f"{stem}-", f"{stem}-0123abc", f"{stem}-0123ABCD", f"{stem}-0123abcd0",
                 f"{stem}-0123abcd\n", f"{run_id(other)}-0123abcd", None, 7):  # fmt: skip
        assert not is_run_of(name, config, simulated=False)
    assert not is_run_of(f"{stem}-0123abcd", config, simulated=True)
    first = json.loads((run.path / "events.jsonl").read_text().splitlines()[0])
    assert is_run_of(first["result"]["run"], config, simulated=False)
