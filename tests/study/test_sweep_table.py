"""A sweep's table says what its runs' summaries say, and adds nothing up that is no sum."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import SMALL
from scipy import stats

from fedprune.runs import RunFolder
from fedprune.study.grid import make_grid
from fedprune.study.sweep_plot import draw
from fedprune.study.sweep_privacy import all_answered, in_words
from fedprune.study.sweep_table import COLUMNS, SeedRow, of_groups, rows_of, to_csv


def row(cell: str, seed: int, private: float, magnitude: float, recall: float = 0.9) -> SeedRow:
    summary = {
        "seed": seed,
        "mask_recall": recall,
        "mask_recall_without_prior": recall,
        "accuracy": {"dense": 0.9, "pruned": private},
        "baselines": {"magnitude": {"accuracy": magnitude, "mask_recall": 0.5}},
        "privacy": {"relation": "replacement", "epsilon": 1.0},
    }
    return SeedRow(cell, seed, {"privacy.epsilon": 1.0}, "done", "", summary, 1.5)


def test_the_table_is_csv_whose_figures_are_the_summary_s(finished_run: Path) -> None:
    cells = make_grid(None, SMALL, ["privacy.epsilon=4,8"]).cells()
    rows = rows_of(cells[0], RunFolder(finished_run)) + rows_of(
        cells[1], None, 'it said "no",\nand stopped'
    )
    lines = list(csv.DictReader(io.StringIO(to_csv(rows, {"replacement": 12.0}), newline="")))
    summary = json.loads((finished_run / "summary.json").read_text())
    assert len(lines) == 2
    assert lines[0].keys() >= {"cell", "seed", "privacy.epsilon", "status", *COLUMNS}
    assert float(lines[0]["accuracy_private"]) == summary["accuracy"]["pruned"]
    assert float(lines[0]["accuracy_random"]) == summary["baselines"]["random"]["accuracy"]
    assert (
        float(lines[0]["fairness_gap_change_low"])
        == (summary["fairness"]["gap_change_interval"][0])
    )
    assert (lines[0]["trust"], lines[0]["unit"]) == ("local", "client")
    assert lines[0]["epsilon_is"] == "an alternative to the other cells'"
    assert float(lines[0]["epsilon_if_all_answered"]) == 12.0
    assert (lines[1]["status"], lines[1]["mask_recall"]) == ("failed", "")
    assert lines[1]["error"] == 'it said "no",\nand stopped'


def test_differences_of_two_classes_stand_in_the_table_with_the_followed_pair_s_interval() -> None:
    change = {"change": 0.03, "interval": [0.01, 0.05]}
    parity = {"difference_dense": 0.2, "difference_pruned": 0.26, "pair": change}
    outcomes = {"demographic_parity": parity, "equalized_odds": None}
    summary = {"fairness": {"outcomes": outcomes, "pair": {"change": -0.02}}}
    made = SeedRow("1", 1, {}, "done", "", summary, 1.0)
    (line,) = csv.DictReader(io.StringIO(to_csv([made], {}), newline=""))
    names = ("dense", "pruned", "pair_change", "pair_change_low", "pair_change_high")
    found = [line[f"demographic_parity_{name}"] for name in names]
    assert found == ["0.2", "0.26", "0.03", "0.01", "0.05"]
    assert {line[f"equalized_odds_{name}"] for name in names} == {""}
    assert line["fairness_pair_change"] == "-0.02"


def test_private_minus_magnitude_is_paired_by_seed() -> None:
    rows = [row("1", s, p, m) for s, p, m in ((1, 0.8, 0.7), (2, 0.6, 0.55), (3, 0.9, 0.7))]
    (group,) = of_groups(rows, 0.95)
    expected = stats.ttest_rel([0.8, 0.6, 0.9], [0.7, 0.55, 0.7]).confidence_interval(0.95)
    found = group["private_minus_magnitude"]
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert group["means"]["accuracy_private"]["mean"] == pytest.approx(2.3 / 3)
    assert group["means"]["accuracy_pooled"] is None


def test_seeds_that_are_swept_over_are_seeds_of_one_group() -> None:
    rows = [
        SeedRow(f"{s}", s, {"seed": s, "privacy.epsilon": 1.0}, "done", "", row("", s, 0.5, 0.4)
                .summary, 1.0)
        for s in (1, 2, 3)
    ]  # fmt: skip
    (group,) = of_groups(rows, 0.95)
    assert group["seeds"] == [1, 2, 3]
    assert group["settings"] == {"privacy.epsilon": 1.0}


def test_pure_epsilons_of_runs_that_the_same_clients_answered_add_up(
    finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "copy")
    found = {one["relation"]: one for one in all_answered([RunFolder(finished_run)])}
    both = {
        one["relation"]: one
        for one in all_answered([RunFolder(finished_run), RunFolder(tmp_path / "copy")])
    }
    assert found["replacement"]["epsilon"] == 4.0
    assert both["replacement"]["epsilon"] == 8.0
    assert both["replacement"]["delta"] == 0.0
    (sentence,) = in_words(list(both.values()))
    assert "alternatives" in sentence
    assert "epsilon = 8" in sentence


def test_the_picture_stands_alone_and_shows_every_swept_value() -> None:
    rows = [
        SeedRow("c", seed, {"privacy.epsilon": e, "prune.keep_units": k, "privacy.prior": p},
                "done", "", row("", seed, 0.5 + k / 10 + seed / 100, 0.4).summary, 1.0)
        for e in (1.0, 2.0) for k in (0.3, 0.5) for p in ("magnitude", "none") for seed in (1, 2)
    ]  # fmt: skip
    text = draw(of_groups(rows, 0.95), 0.95, "a sweep")
    assert text is not None
    tree = ElementTree.fromstring(text)
    assert tree.tag.endswith("svg")
    assert not [e for e in tree.iter() if e.tag.endswith(("image", "script"))]
    assert draw(of_groups(rows, 0.95), 0.95, "a sweep") == text
    for written in ("prune.keep_units = 0.5", "privacy.prior = none", "Student-t intervals"):
        assert written in text, written


def test_a_sweep_without_figures_has_no_picture_but_a_table() -> None:
    cells = make_grid(None, SMALL, ["privacy.epsilon=4,8"]).cells()
    rows = [one for cell in cells for one in rows_of(cell, None, "no")]
    assert draw(of_groups(rows, 0.95), 0.95, "a sweep") is None
    assert len(list(csv.reader(io.StringIO(to_csv(rows, {}), newline="")))) == 3
