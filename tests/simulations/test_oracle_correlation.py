"""The correlation study: one command, results and picture; it goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SIMULATIONS = str(Path(__file__).parents[2] / "simulations")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SIMULATIONS)
    torch.set_num_threads(1)
    module = importlib.import_module("oracle_correlation")
    tiny = replace(module.SMALL, clients=30, epochs=2, cost_repeats=1, cost_images=20)
    monkeypatch.setattr(module, "SMALL", tiny)
    yield module
    for name in ("oracle_correlation", "_oracle_correlation", "_study"):
        sys.modules.pop(name, None)


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> dict:
    command = ["oracle_correlation.py", "--small", "--images", "60", "--draws", "2", *more]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    script.main()
    return json.loads(out.read_text())


def test_one_command_writes_results_and_a_picture_and_goes_on_from_what_is_kept(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = ("--work", str(tmp_path / "work"), "--criteria", "random", "taylor", "linear_logits")
    first = run(script, monkeypatch, tmp_path / "first.json", *more)
    kept = sorted((tmp_path / "work").iterdir())
    assert len(kept) == 4  # two draws of units and of gates
    assert (tmp_path / "first.png").stat().st_size > 10_000
    before = [path.stat().st_mtime_ns for path in kept]
    again = run(script, monkeypatch, tmp_path / "again.json", *more)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again["networks"] == first["networks"]
    assert again["federated"] == first["federated"]
    (units, _) = first["networks"]
    by_name = {row["criterion"]: row for row in units["criteria"]}
    best, chance = (by_name[n]["all spearman"]["mean"] for n in ("linear_logits", "random"))
    assert best > 0.8 > 0.4 > chance
    assert first["config"]["images"] == 60
    assert {"question", "command", "date", "seed", "versions", "machine"} <= first.keys()


@pytest.mark.usefixtures("script")
def test_intervals_of_correlations_stay_between_minus_one_and_one() -> None:
    over_draws = sys.modules["_oracle_correlation"].over_draws
    found = over_draws([0.99, 0.999])
    assert found["low"] < 0.99 < found["mean"] < 0.999 < found["high"] <= 1
    assert np.isnan(over_draws([0.5])["low"])


def test_wrong_options_are_one_sentence_and_leave_nothing(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for more in (("--network", "resnet21"), ("--images", "0"), ("--dataset", "cifar11")):
        with pytest.raises(SystemExit) as stopped:
            run(script, monkeypatch, tmp_path / "out.json", *more)
        assert isinstance(stopped.value.code, str)
        assert "\n" not in stopped.value.code
    assert list(tmp_path.iterdir()) == []
