"""Scores made comparable between layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedprune.errors import PruningError
from fedprune.pruning import NORMALIZATIONS, UnitLayout, normalize


@pytest.fixture
def layout(build: Any) -> UnitLayout:
    return UnitLayout.of(*build("residual"))


def test_every_group_gets_the_same_size(layout: UnitLayout) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(layout), generator=generator)
    for group in layout.groups:
        scores[:, group.units] *= 10.0**group.start
    by_mean, by_l2 = (normalize(scores, layout, how) for how in ("layer_mean", "layer_l2"))
    for group in layout.groups:
        torch.testing.assert_close(by_mean[:, group.units].abs().mean(1), torch.ones(3))
        torch.testing.assert_close(by_l2[:, group.units].norm(dim=1), torch.ones(3))
    assert torch.equal(normalize(scores, layout, "none"), scores)


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_no_ranking_within_a_group_changes(layout: UnitLayout, how: str) -> None:
    scores = torch.randn(len(layout), generator=torch.Generator().manual_seed(1))
    found = normalize(scores, layout, how)
    assert found.dtype == scores.dtype
    for group in layout.groups:
        assert torch.equal(found[group.units].argsort(), scores[group.units].argsort())


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_a_group_of_zeros_stays_zero(layout: UnitLayout, how: str) -> None:
    scores = torch.ones(len(layout))
    scores[layout.groups[1].units] = 0
    found = normalize(scores, layout, how)
    assert not found[layout.groups[1].units].any()
    assert found.isfinite().all()


def test_bad_input_is_one_sentence(layout: UnitLayout) -> None:
    with pytest.raises(PruningError, match="one of none, layer_mean, layer_l2, got 'l2'"):
        normalize(torch.ones(len(layout)), layout, "l2")
    with pytest.raises(PruningError, match=rf"scores must be {len(layout)} numbers .*\[3\]"):
        normalize(torch.ones(3), layout, "layer_l2")
