"""Rows on which a run's models disagree: found, counted, listed for their owner."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune import study
from fedprune.cli import main
from fedprune.errors import DataError
from fedprune.runs import RunFolder
from fedprune.study.exemplars import COLUMNS, find_exemplars


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedprune", "exemplars", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_they_are_the_rows_where_predictions_differ(finished_run: Path) -> None:
    folder = RunFolder.open(finished_run)
    rows = study.load_dataset(folder.config).test
    inputs = rows.inputs(np.arange(len(rows)))
    with torch.no_grad():
        dense, pruned = (
            load()[0](inputs).argmax(1) for load in (folder.load_dense, folder.load_pruned)
        )
    found = find_exemplars(finished_run)
    wanted = (dense != pruned).nonzero().flatten().tolist()
    assert wanted
    assert sorted(found.rows[found.found.indices].tolist()) == wanted
    assert found.found.counts.sum() == len(rows)


def test_clients_rows_are_parts_of_the_whole(finished_run: Path) -> None:
    clients = RunFolder.open(finished_run).config.data.clients
    whole = find_exemplars(finished_run, split="train").found.counts
    parts = [
        find_exemplars(finished_run, split="train", client=client).found.counts
        for client in range(clients)
    ]
    assert np.array_equal(sum(parts), whole)
    with pytest.raises(DataError, match=f"client must be from 0 to {clients - 1}"):
        find_exemplars(finished_run, client=clients)


def test_the_command_prints_counts_and_lists_rows_in_a_file_alone(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "rows.csv"
    assert call(monkeypatch, str(finished_run), "--out", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    with out.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert tuple(listed[0]) == COLUMNS
    assert len(listed) == told["disagree"]
    falls = [float(row["fall"]) for row in listed]
    assert falls == sorted(falls, reverse=True)
    assert all(row["dense"] != row["pruned"] for row in listed)
    assert call(monkeypatch, str(finished_run)) == 0
    said = capsys.readouterr().out
    assert f"disagree on {told['disagree']} of {told['rows']} test rows" in said
    assert "row," not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--client", "-1"], "client must be from 0"),
        (["RUN", "--out", "FILE/x.csv"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    options: list[str],
    sentence: str,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    places = {"RUN": str(finished_run), "FILE": str(tmp_path / "file")}
    for name, place in places.items():
        options = [option.replace(name, place) for option in options]
    assert call(monkeypatch, *options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
