"""From a shrunk model back to the dense shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedprune import models, pruning
from fedprune.errors import LayoutMismatchError

SHAPES = {
    "lenet": (1, 8, 8),
    "resnet20": (3, 16, 16),
    "mlp": (1, 8, 8),
    "mobilenet_v2": (3, 32, 32),
}


def network(name: str, seed: int) -> nn.Module:
    return models.load(name, num_classes=10, input_shape=SHAPES[name], seed=seed)


def changed(model: nn.Module) -> nn.Module:
    """A trained copy's stand-in: every number is another one."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return model


@pytest.mark.parametrize("name", list(SHAPES))
@settings(max_examples=3)
@given(seed=st.integers(0, 1000), keep=st.floats(0.3, 1))
def test_shrinking_an_embedded_model_gives_the_small_one_again(
    name: str, seed: int, keep: float
) -> None:
    dense, other = network(name, 1), network(name, 2)
    layout = pruning.UnitLayout.of(dense, torch.zeros(1, *SHAPES[name]))
    scores = torch.rand(len(layout), generator=torch.Generator().manual_seed(seed))
    mask = pruning.select(scores, layout, keep_units=keep)
    small = pruning.shrink(other, layout, mask)
    whole = pruning.embed(small, dense, layout, mask)
    again = pruning.shrink(whole, layout, mask)
    for key, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_removed_units_keep_the_dense_models_values() -> None:
    dense = network("lenet", 1)
    layout = pruning.UnitLayout.of(dense, torch.zeros(1, 1, 8, 8))
    mask = torch.ones(len(layout), dtype=torch.bool)
    mask[0] = False
    small = pruning.shrink(dense, layout, mask)
    whole = pruning.embed(changed(small), dense, layout, mask)
    before, after = (next(iter(m.state_dict().values())) for m in (dense, whole))
    assert torch.equal(before[0], after[0])
    assert not torch.isclose(before[1:], after[1:]).any()


def test_a_model_of_another_mask_is_refused() -> None:
    dense = network("lenet", 1)
    layout = pruning.UnitLayout.of(dense, torch.zeros(1, 1, 8, 8))
    mask = torch.ones(len(layout), dtype=torch.bool)
    mask[:2] = False
    with pytest.raises(LayoutMismatchError, match="not what the mask leaves"):
        pruning.embed(dense, dense, layout, mask)
