"""The study of what pruning does to groups runs from a command to results and a picture."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

SIMULATIONS = Path(__file__).resolve().parent.parent.parent / "simulations"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SIMULATIONS))
    return importlib.import_module("fairness_pruning")


def test_the_small_setting_answers_for_every_keep_fraction_and_mitigation(
    study, data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = replace(
        study.SMALL[0], groupings=("sex",), clients=4, train_rows=1200, test_rows=500, rounds=1,
        dense_epochs=1, resamples=100,
    )  # fmt: skip
    monkeypatch.setattr(study, "SMALL", (tiny,))
    out = tmp_path / "new" / "result.json"
    study.main(["--root", str(data_root), "--small", "--only", "adult", "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["question"].endswith("?")
    cut = {row["keep"] for row in result["rows"] if row["what"] == "pruning"}
    assert cut == set(study.KEEPS)
    tried = {row["mitigation"] for row in result["rows"] if row["what"] == "mitigation"}
    assert set(study.MITIGATIONS) <= tried
    judged = [row["outcomes"] for row in result["rows"] if row.get("stage") == "fine-tuned"]
    assert all("demographic_parity" in found for found in judged)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for row in result["rows"]:
        if row["what"] == "mitigation" and row["closed"] is not None:
            assert row["gap_change_without"] > 0  # of nothing, no share is taken back
    study.main(["--root", str(data_root), "--small", "--only", "adult", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8")) == result  # all of it was known


def test_the_study_refuses_what_it_has_no_data_for(study, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        study.main(["--root", str(tmp_path), "--only", "mnist", "--out", str(tmp_path / "a.json")])
    assert ended.value.code == 2
