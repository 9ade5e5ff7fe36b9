"""The studies of bounds and certificates do what they say, on a few networks."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

SIMULATIONS = Path(__file__).resolve().parent.parent.parent / "simulations"


@pytest.fixture(autouse=True)
def _what_studies_share_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SIMULATIONS))


@cache
def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SIMULATIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def tiny() -> Any:
    return script("certified_soundness").Setting(
        linear=2, nonlinear=1, pairs=4, ascent_steps=5, classifiers=1, points=6, digits_points=5,
        pgd_steps=3, restarts=1, direct_steps=3,
    )  # fmt: skip


def test_the_explicit_norm_of_the_study_is_that_of_the_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    wanted = np.linalg.norm(layer.weight.detach().double().numpy(), 2)
    assert script("certified_soundness").explicit_norm(layer, (5,)) == pytest.approx(wanted)


def test_the_search_for_a_steep_pair_finds_the_slope_of_a_linear_network() -> None:
    torch.manual_seed(0)
    study = script("certified_soundness")
    layer = nn.Linear(4, 3)
    truth = study.explicit_norm(layer, (4,))
    found = study.steepest_pair(layer, (4,), study.Setting(pairs=8, ascent_steps=200))
    assert truth * 0.99 <= found <= truth * (1 + 1e-9)


def test_the_soundness_study_runs_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("certified_soundness")
    monkeypatch.setattr(study, "SMALL", tiny())
    monkeypatch.setattr(study, "DIGITS", {})
    out = tmp_path / "new" / "soundness.json"
    monkeypatch.setattr(sys, "argv", ["certified_soundness.py", "--small", "--out", str(out)])
    study.main()
    result = json.loads(out.read_text())
    assert result["summary"]["networks_bounded"] == 3
    assert result["summary"]["attacked_points"] == 6
    assert result["summary"]["holds"]
    assert out.with_suffix(".png").is_file()
    del result["rows"]["nonlinear 0"]
    kept = result["rows"]["linear 0"]["seconds"] = -1.0
    out.write_text(json.dumps(result))
    study.main()
    again = json.loads(out.read_text())
    assert again["rows"]["linear 0"]["seconds"] == kept
    assert "nonlinear 0" in again["rows"]


def test_a_bound_below_the_truth_fails_the_soundness_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("certified_soundness")
    monkeypatch.setattr(study, "SMALL", tiny())
    monkeypatch.setattr(study, "DIGITS", {})
    monkeypatch.setattr(study, "explicit_norm", lambda *_: 1e9)
    monkeypatch.setattr(sys, "argv", ["x", "--small", "--out", str(tmp_path / "s.json")])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 1
    summary = json.loads((tmp_path / "s.json").read_text())["summary"]
    assert summary["bounds_below_what_was_found"] == 2


def test_two_routes_to_the_true_norm_agree_and_no_bound_is_below_it() -> None:
    study = script("certified_norms")
    weight = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    layer = study.Layer("test", weight, study.square_map(9, 3, 1, 2))
    truth = study.true_norm(layer, 500)
    assert truth["lanczos"] == pytest.approx(truth["explicit_svd"], rel=1e-9)
    row = study.measure(layer, 500)
    for name, found in row["methods"].items():
        if found["is_bound"]:
            assert found["ratio"] >= 1 - 1e-12, name
    assert row["methods"]["power iteration, 10 steps"]["ratio"] <= 1 + 1e-12


def test_the_independent_blocks_have_the_largest_singular_value_of_the_torus() -> None:
    study = script("certified_norms")
    weight = np.random.default_rng(1).standard_normal((3, 2, 3, 3))
    layer = study.Layer("test", weight, study.square_map(9, 3, 1))
    untwisted = study.methods(layer)["torus n + p"][1]()
    assert study.blocks_by_fft(layer) == pytest.approx(untwisted, rel=1e-8)
