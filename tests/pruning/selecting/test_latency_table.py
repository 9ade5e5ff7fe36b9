"""A table of times predicts what its grids say, is stored whole and is spent like any budget."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.errors import LayoutMismatchError, PruningError
from fedprune.hardware.layer_times import Grid
from fedprune.pruning import UnitLayout, expected_keep_units, select, shrink
from fedprune.pruning.selecting.latency_table import LatencyTable

MODEL = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
LAYOUT = UnitLayout.of(MODEL, torch.zeros(1, 3))


def stairs(n_in: int, n_out: int) -> float:
    """Times as vector instructions make them: in blocks of two outputs, and dearer when wide."""
    return 1.0 + n_in * -(-n_out // 2) + 3.0 * (n_out > 4)


def made_up() -> LatencyTable:
    grids = {}
    for layer in LAYOUT.layers:
        n_in, n_out = len(layer.in_units), len(layer.out_units)
        ins, outs = np.arange(1.0, n_in + 1), np.arange(1.0, n_out + 1)
        ms = np.array([[stairs(int(i), int(o)) for o in outs] for i in ins])
        grids[layer.name] = Grid(ins, outs, ms)
    shapes = {name: name for name in grids}
    return LatencyTable({"processor": "made up"}, 1, 1, 7, shapes, grids, 0.5, 2.0, ())


TABLE = made_up()


def by_hand(mask: Tensor) -> float:
    first, second = int(mask[:6].sum()), int(mask[6:].sum())
    return 0.5 + 2.0 * (stairs(3, first) + stairs(first, second) + stairs(second, 2))


masks = st.lists(st.booleans(), min_size=10, max_size=10).map(torch.tensor)


@given(mask=masks)
def test_a_prediction_is_the_sum_of_the_layers_times(mask: Tensor) -> None:
    mask[0] = mask[6] = True
    assert TABLE.predict(LAYOUT, mask) == pytest.approx(by_hand(mask))


@settings(max_examples=100)
@example(seed=0, keep=0.40625, step=1)
@given(seed=st.integers(0, 10**6), keep=st.floats(0.3, 1.0), step=st.sampled_from([1, 2]))
def test_a_budget_of_time_is_held_and_between_two_groups_the_best_score_kept(
    seed: int, keep: float, step: int
) -> None:
    scores = torch.rand(10, generator=torch.Generator().manual_seed(seed)).double()
    limit = keep * by_hand(torch.ones(10, dtype=torch.bool)) * (1 + 1e-9)
    best = 0.0
    orders = [scores[:6].argsort(descending=True), 6 + scores[6:].argsort(descending=True)]
    for widths in itertools.product(range(step, 7, step), range(step, 5, step)):
        mask = torch.zeros(10, dtype=torch.bool)
        for order, width in zip(orders, widths, strict=True):
            mask[order[:width]] = True
        if by_hand(mask) <= limit:
            best = max(best, float(scores[mask].sum()))
    if best == 0.0:
        with pytest.raises(PruningError, match=r"keep_latency = .* ms, but a floor of 1"):
            select(scores, LAYOUT, keep_latency=keep, latency=TABLE, round_to=step)
        return
    found = select(scores, LAYOUT, keep_latency=keep, latency=TABLE, round_to=step)
    assert by_hand(found) <= limit
    assert float(scores[found].sum()) == pytest.approx(best, rel=1e-12)


def test_flat_steps_are_climbed_in_one_go() -> None:
    scores = torch.ones(10)
    mask = select(scores, LAYOUT, keep_latency=0.75, latency=TABLE)
    widths = int(mask[:6].sum()), int(mask[6:].sum())
    assert widths[1] % 2 == 0  # an odd width costs as much as the next even one


def test_time_and_operations_are_limited_together() -> None:
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0))
    mask = select(scores, LAYOUT, keep_latency=0.8, keep_macs=0.5, latency=TABLE)
    assert LAYOUT.macs(mask) <= 0.5 * LAYOUT.total_macs
    assert by_hand(mask) <= 0.8 * by_hand(torch.ones(10, dtype=torch.bool))


def test_the_expected_fraction_is_where_thinning_meets_the_budget() -> None:
    fraction = expected_keep_units(LAYOUT, keep_latency=0.6, latency=TABLE)
    measure = TABLE.measure_of(LAYOUT)
    whole = LAYOUT.costs.thinned_total(measure, 1.0)
    assert LAYOUT.costs.thinned_total(measure, fraction) == pytest.approx(0.6 * whole, rel=1e-6)


def test_a_measured_table_covers_every_layer_and_survives_storing(
    tmp_path: Path, build: Any
) -> None:
    for name in ("residual", "grouped", "gate"):
        model, example = build(name)
        layout = UnitLayout.of(model, example)
        table = LatencyTable.measure(model, layout, example, repeats=1, points=2)
        assert set(table.shape_of) == {layer.name for layer in layout.layers}
        everything = torch.ones(len(layout), dtype=torch.bool)
        assert table.predict(layout, everything) > 0
        assert len(table.calibration) == 3
        table.save(tmp_path / "table.json")
        again = LatencyTable.load(tmp_path / "table.json")
        assert again.predict(layout, everything) == table.predict(layout, everything)
        assert again.machine == table.machine
        half = torch.arange(len(layout)) % 2 == 0
        for group in layout.groups:
            half[group.start] = True
        small = shrink(model, layout, half)
        own = UnitLayout.of(small, example)  # the same table serves the smaller network
        rest = torch.ones(len(own), dtype=torch.bool)
        assert again.predict(own, rest) == pytest.approx(table.predict(layout, half))


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("grids"),
        lambda stored: stored.update(format=2),
        lambda stored: stored["layers"].update({"0": "no such shape"}),
        lambda stored: stored["grids"]["0"].update(ms=[[1.0]]),
        lambda stored: stored["grids"]["0"]["ms"][0].__setitem__(0, -1.0),
        lambda stored: stored["grids"]["0"].update(ins=[2.0, 1.0, 3.0]),
    ],
)
def test_a_damaged_table_is_refused_by_its_name(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "table.json"
    TABLE.save(path)
    stored = json.loads(path.read_text())
    damage(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(PruningError, match=r"table\.json is no latency table: "):
        LatencyTable.load(path)
    with pytest.raises(PruningError, match=r"cannot read the latency table .*missing\.json"):
        LatencyTable.load(tmp_path / "missing.json")


def test_a_table_of_another_model_is_refused(build: Any) -> None:
    model, example = build("residual")
    layout = UnitLayout.of(model, example)
    with pytest.raises(PruningError, match="is of another model than Residual"):
        TABLE.predict(layout, torch.ones(len(layout), dtype=torch.bool))
    with pytest.raises(LayoutMismatchError):
        LatencyTable.measure(model, LAYOUT, example)
    with pytest.raises(PruningError, match="points of a latency table must be at least 2, got 1"):
        LatencyTable.measure(MODEL, LAYOUT, torch.zeros(1, 3), points=1)


@given(n_in=st.floats(0, 9), n_out=st.floats(0, 9))
def test_between_grid_points_times_are_bilinear_and_outside_constant(
    n_in: float, n_out: float
) -> None:
    axis = np.array([2.0, 4.0, 7.0])
    grid = Grid(axis, axis, 1.0 + axis[:, None] * 10 + axis)
    i, o = np.clip([n_in, n_out], 2, 7)
    assert float(grid.at(np.array(n_in), np.array(n_out))) == pytest.approx(1 + 10 * i + o)
