"""A grid is the full product of what is swept over, typed and checked as --set is."""

from __future__ import annotations

import itertools

import pytest
from helpers import SMALL

from fedprune import config as configuration
from fedprune.errors import ConfigError
from fedprune.study.grid import Grid, make_grid


def test_every_combination_is_there_once_and_equals_what_set_gives() -> None:
    grid = make_grid(None, [], ["privacy.epsilon=1,2,4,8", "prune.keep_units=.3,.5,.7"])
    cells = grid.cells()
    assert [tuple(cell.settings.values()) for cell in cells] == list(
        itertools.product((1, 2, 4, 8), (0.3, 0.5, 0.7))
    )
    for cell in cells:
        sets = [f"{key}={value}" for key, value in cell.settings.items()]
        assert cell.config == configuration.load(None, sets)
    assert len({cell.name for cell in cells}) == 12


def test_values_are_read_as_toml_and_strings_need_no_quotes() -> None:
    over = ["privacy.prior=magnitude,none", "evaluate.baselines=true,false", "train.rounds=0,3"]
    first, *_, last = make_grid(None, [], over).cells()
    assert first.config.privacy.prior == "magnitude"
    assert first.config.evaluate.baselines is True
    assert (last.config.train.rounds, last.config.privacy.prior) == (3, "none")
    quoted = make_grid(None, [], ['data.root="a,b","c"']).cells()
    assert [cell.config.data.root for cell in quoted] == ["a,b", "c"]


def test_a_swept_budget_takes_the_place_of_the_configured_one() -> None:
    cells = make_grid(None, [], ["prune.keep_macs=0.2,0.4"]).cells()
    assert [cell.config.prune.budget for cell in cells] == [("keep_macs", 0.2), ("keep_macs", 0.4)]


def test_names_of_cells_are_fit_for_folders_whatever_the_values_are() -> None:
    odd = '"../../x/y z","' + "long" * 100 + '","ä:b"'
    for cell in make_grid(None, [], [f"data.root={odd}"]).cells():
        assert "/" not in cell.name
        assert " " not in cell.name
        assert len(cell.name) < 60


def test_a_grid_survives_being_written_down() -> None:
    grid = make_grid(None, SMALL, ["privacy.epsilon=1,2.5", "data.partition=iid,dirichlet"])
    again = Grid.from_json(grid.to_json(), "a file")
    assert again == grid
    assert again.digest == grid.digest
    other = make_grid(None, SMALL, ["privacy.epsilon=1,2.5", "data.partition=iid"])
    assert other.digest != grid.digest


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ([], "at least one --over"),
        (["privacy.epsilon"], "--over wants key=value"),
        (["=1,2"], "--over wants key=value"),
        (["privacy.epsilon="], "--over privacy.epsilon must list at least one value, got none"),
        (["privacy.epsilon=1,,2"], "has an empty value in '1,,2'"),
        (["privacy.epsilon=1,2,"], "has an empty value"),
        (["privacy.epsilon=1,2", "privacy.epsilon=4"], "--over names privacy.epsilon 2 times"),
        (["privacy.epsilon=1,1.0"], "lists 1.0 twice"),
        (["privacy.epsilon=[1,2]"], "wants single values, got [1, 2]"),
        (["privacy.epslon=1,2"], "did you mean privacy.epsilon?"),
        (["privacy=1,2"], "privacy must be a table, got 1"),
        (["privacy.epsilon=1,many"], "privacy.epsilon must be a number in [1e-6, 64], got 'many'"),
        (["prune.keep_units=.5,1.5"], "prune.keep_units must be a number in (0, 1], got 1.5"),
        (["train.rounds=1,2.5"], "train.rounds must be a whole number of at least 0, got 2.5"),
        (["prune.keep_units=.5", "prune.keep_macs=.5"], "prune.keep_units and prune.keep_macs"),
        (["privacy.trust=local,shuffle"], "privacy.delta must be above 0"),
        (["out=a,b"], "cannot sweep over out"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_over_is_refused_in_one_sentence(
    over: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        make_grid(None, [], over).cells()
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sets", "over"),
    [
        ("privacy.epsilon=3", "privacy.epsilon=1,2"),
        ("prune.keep_macs=0.5", "prune.keep_units=.3,.5"),
    ],
)
def test_a_key_is_set_or_swept_but_not_both(sets: str, over: str) -> None:
    with pytest.raises(ConfigError, match="contradict each other"):
        make_grid(None, [sets], [over])


def test_what_makes_sense_with_the_swept_key_only_is_a_grid() -> None:
    cells = make_grid(None, ["privacy.delta=1e-6"], ["privacy.trust=shuffle,aggregate"]).cells()
    assert [cell.config.privacy.trust for cell in cells] == ["shuffle", "aggregate"]
    cells = make_grid(None, ["privacy.trust=shuffle"], ["privacy.delta=1e-6,1e-5"]).cells()
    assert [cell.config.privacy.delta for cell in cells] == [1e-6, 1e-5]
    with pytest.raises(ConfigError, match=r"privacy\.delta must be 0"):
        make_grid(None, ["privacy.delta=1e-6"], ["privacy.epsilon=1,2"])
