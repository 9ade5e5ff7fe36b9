"""Every run shows how loose its certificates are: what attacks left standing, beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_small
from safetensors.torch import load_file, save_file

from fedprune import audit as auditing
from fedprune import robustness, study
from fedprune.audit.report import render
from fedprune.runs import ATTACK_STEPS, ATTACKED, CURVE, RunFolder

RADIUS = 0.3
OPTIONS = [
    "evaluate.baselines=false",
    "evaluate.confidence=0.9",
    f"evaluate.certified_radius={RADIUS}",
    "train.rounds=6",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attacked") / "run"
    run_small(path, [*OPTIONS, "evaluate.attacked_rows=60"])
    return path


def certified_of(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = summary["certified_accuracy"]
    return found


def test_the_truth_lies_between_what_is_certified_and_what_attacks_left(run: Path) -> None:
    certified = certified_of(run)
    attacked = certified["attacked"]
    assert 60 <= attacked["rows"] < certified["rows"]
    assert attacked["radii"] == [factor * RADIUS for factor in CURVE]
    for side in ("dense", "pruned"):
        sure, standing = (np.array(attacked[side][key]) for key in ("certified", "standing"))
        assert np.all(sure <= standing)
        assert np.all(np.diff(standing) <= 0)
        assert standing[0] > standing[-1]  # the attack does break what a large ball holds
        assert np.all(np.array(attacked[side]["low"]) <= standing)
        assert np.all(standing <= np.array(attacked[side]["high"]))
        assert attacked[f"broken_{side}"] == 0


def test_at_radius_0_what_stands_is_what_is_right(run: Path) -> None:
    folder = RunFolder.open(run)
    told = folder.read_tensors("margins.safetensors")
    for side in ("dense", "pruned"):
        right = told[f"{side}_attacked"] > 0
        assert torch.equal(told[f"{side}_attacked_distances"] > 0, right)
        own, known = (told[name].numpy() for name in (f"{side}_attacked", side))
        # Rows among those with margins, computed in other batches.
        assert np.isclose(own[:, None], known, rtol=1e-9, atol=1e-12).any(axis=1).all()


def test_distances_are_those_of_an_attack_on_the_stored_model(run: Path) -> None:
    folder = RunFolder.open(run)
    model, _ = folder.load_pruned()
    rows = (dataset := study.load_dataset(folder.config)).test
    places = np.arange(len(rows))
    found = robustness.attack_distances(
        model,
        rows.inputs(places),
        rows.targets(places),
        [factor * RADIUS for factor in ATTACKED],
        steps=ATTACK_STEPS,
        input_std=dataset.input_std,
    )
    told = folder.read_tensors("margins.safetensors")["pruned_attacked_distances"].numpy()
    assert np.isclose(told[:, None], found, rtol=1e-9, atol=0).any(axis=1).all()
    assert np.isfinite(told).any()


def test_the_audit_redoes_it_and_sees_a_broken_certificate(run: Path, tmp_path: Path) -> None:
    found = auditing.audit(run, "robustness")
    assert found.holds
    assert "no attack broke a certificate" in {finding.claim for finding in found.findings}
    other = Path(shutil.copytree(run, tmp_path / "run"))
    path = other / "margins.safetensors"
    told = load_file(path)
    told["dense_attacked_distances"][told["dense_attacked"].argmax()] = 1e-9
    save_file(told, path)
    summary = json.loads((other / "summary.json").read_text(encoding="utf-8"))
    summary["certified_accuracy"]["attacked"]["broken_dense"] = 1
    (other / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    broken = {f.claim for f in auditing.audit(other, "robustness").findings if not f.holds}
    assert "no attack broke a certificate" in broken


def test_the_report_shows_what_attacks_left(run: Path) -> None:
    page = render(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    assert "Not broken by an attack" in page
    assert "no attack of the radius broke" in page


def test_no_rows_are_attacked_where_none_are_wanted(tmp_path: Path) -> None:
    run_small(tmp_path / "run", [*OPTIONS, "evaluate.attacked_rows=0", "train.rounds=1"])
    assert "attacked" not in certified_of(tmp_path / "run")
    told = RunFolder.open(tmp_path / "run").read_tensors("margins.safetensors")
    assert set(told) == {"dense", "pruned"}
    assert auditing.audit(tmp_path / "run", "robustness").holds
