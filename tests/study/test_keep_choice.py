"""The smallest model under a tolerance: order, stopping, error rate, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedprune.cli import main
from fedprune.errors import ConfigError, FairnessError, RunError
from fedprune.federated.sweep_folder import Sweep
from fedprune.runs import RunFolder
from fedprune.study.grid import make_grid
from fedprune.study.keep_choice import choose_among

ROWS = 4000  # in each of two groups
OVER = ["prune.keep_units=0.3,0.7,0.5"]


def tables(growth: float, seed: int) -> list[object]:
    """40 clients' counts: pruning costs both groups .02 of the rows, the second `growth` more."""
    random = np.random.default_rng(seed)
    found = np.zeros((40, 2, 2, 2), dtype=int)
    for group, lost in enumerate((0.02, 0.02 + growth)):
        dense = random.random((40, ROWS // 40)) < 0.9
        pruned = dense & (random.random(dense.shape) >= lost / 0.9)
        for wrong_or_right in np.ndindex(2, 2):
            same = (dense == wrong_or_right[0]) & (pruned == wrong_or_right[1])
            found[(slice(None), group, *wrong_or_right)] = same.sum(axis=1)
    return found.tolist()


def swept(path: Path, growths: dict[float, float | None], over: list[str] = OVER) -> Sweep:
    """A sweep's folder whose runs have such tables; None leaves a run unfinished."""
    sweep = Sweep.of(make_grid(None, ["evaluate.seeds=1"], over), path)
    sweep.create()
    for cell in sweep.grid.cells():
        growth = growths[float(cell.settings["prune.keep_units"])]
        run = RunFolder.create(sweep.cell_path(cell), cell.config)
        if growth is None:
            continue
        stored = {"names": ["a", "b"], "seed": 1, "resamples": 200, "test": tables(growth, 1)}
        run.write_json("tables.json", stored)
        run.write_json("summary.json", {})
    return Sweep.open(path)


def test_the_smallest_before_the_first_failure_is_chosen_whatever_the_sweeps_order(
    tmp_path: Path,
) -> None:
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: 0.005, 0.3: 0.06})
    (choice,) = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
    assert choice.keep == 0.5
    assert [(one.keep, one.accepted) for one in choice.tested] == [
        (0.7, True), (0.5, True), (0.3, False),
    ]  # fmt: skip
    assert all(
        one.upper_limit is not None and (one.upper_limit < 0.02) is one.accepted
        for one in choice.tested
    )
    assert choice.untested == ()


def test_nothing_after_the_first_failure_is_looked_at(tmp_path: Path) -> None:
    sweep = swept(tmp_path / "s", {0.7: 0.06, 0.5: 0.0, 0.3: 0.0})
    (choice,) = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
    assert choice.keep is None
    assert [one.keep for one in choice.tested] == [0.7]
    assert choice.untested == (0.5, 0.3)


def test_an_unfinished_run_ends_the_sequence(tmp_path: Path) -> None:
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: None, 0.3: 0.0})
    (choice,) = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
    assert choice.keep == 0.7
    assert "not finished" in choice.tested[-1].reason


def test_other_settings_are_chosen_for_by_themselves(tmp_path: Path) -> None:
    over = [*OVER, "privacy.epsilon=1,8"]
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: 0.0, 0.3: 0.06}, over)
    choices = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
    assert [choice.settings for choice in choices] == [
        {"privacy.epsilon": 1}, {"privacy.epsilon": 8},
    ]  # fmt: skip
    assert [choice.keep for choice in choices] == [0.5, 0.5]


def test_a_growth_of_the_tolerance_is_rarely_accepted(tmp_path: Path) -> None:
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: 0.0, 0.3: 0.0})
    accepted = 0
    for seed in range(60):
        for _, _, run in sweep.finished():
            assert run is not None
            stored = run.read_json("tables.json") | {"test": tables(0.02, seed), "seed": seed}
            run.write_json("tables.json", stored)
        (choice,) = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
        accepted += choice.keep is not None
    assert accepted <= 8  # 60 times .05 is 3; more than 8 has a chance of .005


def test_what_cannot_be_chosen_among_is_named(tmp_path: Path) -> None:
    grid = make_grid(None, [], ["privacy.epsilon=1,2"])
    with pytest.raises(ConfigError, match=r"prune\.keep_units"):
        choose_among(grid, [], tolerance=0.02)
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: 0.0, 0.3: 0.0})
    with pytest.raises(FairnessError, match="tolerance"):
        choose_among(sweep.grid, sweep.finished(), tolerance=-1)
    for _, _, run in sweep.finished():
        assert run is not None
        (run.path / "tables.json").unlink()
    with pytest.raises(RunError, match="has no count tables"):
        choose_among(sweep.grid, sweep.finished(), tolerance=0.02)


def test_groups_too_small_to_be_tested_are_no_pass(tmp_path: Path) -> None:
    sweep = swept(tmp_path / "s", {0.7: 0.0, 0.5: 0.0, 0.3: 0.0})
    for _, _, run in sweep.finished():
        assert run is not None
        stored = run.read_json("tables.json")
        small = np.array(stored["test"])
        small[:, 1] = 0
        run.write_json("tables.json", stored | {"test": small.tolist()})
    (choice,) = choose_among(sweep.grid, sweep.finished(), tolerance=0.02)
    assert choice.keep is None
    assert "groups" in choice.tested[0].reason


@pytest.mark.parametrize(("growth", "code"), [(0.0, 0), (0.06, 1)])
def test_the_command_says_what_was_accepted_and_how_surely(
    growth: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    swept(tmp_path / "s", {0.7: growth, 0.5: growth, 0.3: growth})
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["fedprune", "choose", str(tmp_path / "s"), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert int(ended.value.code or 0) == code
        said = capsys.readouterr().out
        if more:
            assert json.loads(said)["choices"][0]["keep"] == (0.3 if code == 0 else None)
        else:
            kept = "prune.keep_units = 0.3" if code == 0 else "nothing is accepted"
            assert said.splitlines()[0] == f"seed 1: {kept}"
            assert "at most 0.05" in said.splitlines()[-1]


def test_a_folder_that_is_no_sweep_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedprune", "choose", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err
