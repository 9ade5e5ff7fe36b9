"""Scores and budgets at the edges of what numbers can say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.hardware.layer_times import Grid
from fedprune.pruning import LatencyTable, UnitLayout, select, separate_gates


def network(*widths: int) -> tuple[nn.Module, UnitLayout]:
    """A multilayer perceptron with layers of these widths between 5 inputs and 4 outputs."""
    sizes = (5, *widths, 4)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    return model, UnitLayout.of(model, torch.randn(2, 5))


def table(layout: UnitLayout) -> LatencyTable:
    """Made-up times that go up in stairs of four channels."""
    grids = {}
    for layer in layout.layers:
        ins, outs = (np.arange(1.0, len(side) + 1) for side in (layer.in_units, layer.out_units))
        stairs = np.multiply.outer(np.ceil(ins / 4), np.ceil(outs / 4))
        grids[layer.name] = Grid(ins, outs, 0.1 + stairs)
    names = {name: name for name in grids}
    return LatencyTable({}, 1, 1, 1, names, grids, 0.2, 1.0, ())


def multiples(layout: UnitLayout, mask: Tensor, step: int) -> list[bool]:
    kept = [int(mask[group.units].sum()) for group in layout.groups]
    return [k % step == 0 or k == len(g) for k, g in zip(kept, layout.groups, strict=True)]


@pytest.mark.parametrize("value", [0.8158535541215322, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
def test_widths_stay_multiples_where_all_scores_are_equal(value: float, scope: str) -> None:
    # The mean of three such numbers is a little less than each of them.
    _, layout = network(7, 8, 5)
    scores = torch.full((len(layout),), value, dtype=torch.float64)
    for keep in (0.5, 0.6, 0.7, 0.8, 0.9):
        mask = select(scores, layout, keep_macs=keep, round_to=3, scope=scope)
        assert all(multiples(layout, mask, 3))


SCORES = {
    "infinite both ways": [math.inf, 1.0, -math.inf, 0.5, 2.0],
    "hardly above zero": [1e-320, 5e-324, 3e-310, 0.0, 1e-315],
    "hardly finite": [1.7e308, 1e308, 1.6e308, 0.3e308, 1.1e308],
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("fill", ["ranking", "value"])
@pytest.mark.parametrize("by_time", [False, True])
def test_extreme_scores_meet_budgets_without_a_warning(kind: str, fill: str, by_time: bool) -> None:
    _, layout = network(9, 12, 6)
    scores = torch.tensor(SCORES[kind] * 6, dtype=torch.float64)[: len(layout)]
    times = table(layout)
    budget = {"keep_latency": 0.6, "latency": times} if by_time else {"keep_params": 0.6}
    mask = select(scores, layout, keep_macs=0.7, fill=fill, floor=2, **budget)
    assert layout.macs(mask) <= 0.7 * layout.total_macs
    if by_time:
        whole = times.predict(layout, torch.ones_like(mask))
        assert times.predict(layout, mask) <= 0.6 * whole
    else:
        assert layout.params(mask) <= 0.6 * layout.total_params
    if kind != "infinite both ways":
        halved = select(scores / 2 if kind == "hardly finite" else scores * 2, layout,
                        keep_macs=0.7, fill=fill, floor=2, **budget)  # fmt: skip
        assert torch.equal(halved, mask)


@pytest.mark.parametrize("fill", ["ranking", "value"])
def test_a_budget_of_less_than_one_unit_leaves_the_floors(fill: str) -> None:
    _, layout = network(9, 12)
    mask = select(torch.randn(len(layout)), layout, keep_units=0.01, fill=fill)
    assert [int(mask[group.units].sum()) for group in layout.groups] == [1, 1]


def test_a_width_must_be_a_whole_number_of_channels() -> None:
    _, layout = network(9)
    for wrong in (2.5, 0, -4):
        with pytest.raises(PruningError, match="round_to must be a whole number"):
            select(torch.rand(9), layout, keep_macs=0.5, round_to=wrong)  # type: ignore[arg-type]


def test_a_table_that_lacks_a_layer_or_a_width_is_refused() -> None:
    _, layout = network(9, 12)
    times = table(layout)
    _, wider = network(9, 16)
    names = {name: name for name in ("0", "2")}
    fewer = LatencyTable({}, 1, 1, 1, names, times.grids, 0.2, 1.0, ())
    for some, other, words in (
        (fewer, layout, "it has no layer 4"),
        (times, wider, "2 has 16 outputs and was timed with at most 12"),
    ):
        with pytest.raises(PruningError, match=words):
            some.predict(other, torch.ones(len(other), dtype=torch.bool))


def test_separate_gates_have_units_to_count_and_no_costs() -> None:
    _, layout = network(9, 12)
    gates = separate_gates(layout)
    scores = torch.rand(len(gates), generator=torch.Generator().manual_seed(1))
    assert int(select(scores, gates, keep_units=0.5).sum()) == len(gates) // 2
    with pytest.raises(PruningError, match="separate gates cost nothing alone"):
        select(scores, gates, keep_macs=0.5)
