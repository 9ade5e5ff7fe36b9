from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedprune import models, pruning
from fedprune.errors import ModelError, PruningError


def moved(model: nn.Module) -> nn.Module:
    """The same network after some training-like change of everything."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(3)
    return other


def random_mask(layout: pruning.UnitLayout, seed: int) -> torch.Tensor:
    mask = torch.rand(len(layout), generator=torch.Generator().manual_seed(seed)) < 0.6
    for group in layout.groups:
        mask[group.start] = True
    return mask


def test_a_snapshot_is_not_moved_by_what_happens_to_the_model(build) -> None:
    model, _ = build("residual")
    kept = pruning.snapshot(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    fresh, _ = build("residual")
    assert all(torch.equal(kept[name], value) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "grouped"])
def test_a_rewound_model_is_the_reference_cut_to_the_mask(build, name: str) -> None:
    reference, inputs = build(name)
    layout = pruning.UnitLayout.of(reference, inputs)
    mask = random_mask(layout, 1)
    trained, state = moved(reference), pruning.snapshot(reference)
    expected = pruning.shrink(reference, layout, mask)(inputs)
    for shrunk in (True, False):
        rewound = pruning.rewind(trained, state, layout, mask, shrunk=shrunk)
        assert torch.allclose(rewound(inputs), expected, atol=1e-5)
    assert not torch.allclose(pruning.shrink(trained, layout, mask)(inputs), expected, atol=1e-2)


def test_rewinding_an_iterative_schedule_is_rewinding_the_composed_mask(build) -> None:
    reference, inputs = build("residual")
    layout = pruning.UnitLayout.of(reference, inputs)
    outer = random_mask(layout, 2)
    once = pruning.shrink(moved(reference), layout, outer)
    inner_layout = pruning.UnitLayout.of(once, inputs)
    inner = random_mask(inner_layout, 3)
    state = pruning.snapshot(reference)
    twice = pruning.shrink(pruning.shrink(reference, layout, outer), inner_layout, inner)
    mask = pruning.compose_masks(outer, inner)
    rewound = pruning.rewind(moved(reference), state, layout, mask, shrunk=True)
    for name, tensor in twice.state_dict().items():
        assert torch.equal(tensor, rewound.state_dict()[name]), name


def test_everything_goes_back_statistics_and_counters_too(build) -> None:
    reference, inputs = build("residual")
    rewound = pruning.rewind(moved(reference), pruning.snapshot(reference))
    state = reference.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in rewound.state_dict().items())
    assert torch.equal(rewound(inputs), reference(inputs))


def test_nothing_that_was_passed_is_changed(build) -> None:
    reference, inputs = build("plain")
    layout = pruning.UnitLayout.of(reference, inputs)
    trained, state = moved(reference), pruning.snapshot(reference)
    before = pruning.snapshot(trained)
    rewound = pruning.rewind(trained, state, layout, random_mask(layout, 1), shrunk=True)
    with torch.no_grad():
        for parameter in rewound.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    fresh = reference.state_dict()
    assert all(torch.equal(state[name], value) for name, value in fresh.items())


def test_the_mode_of_the_model_stays() -> None:
    model = models.load("mlp", input_shape=(1, 4, 4), num_classes=3, seed=1).train()
    assert pruning.rewind(model, pruning.snapshot(model)).training


def test_bad_input_is_one_sentence(build) -> None:
    model, inputs = build("plain")
    layout = pruning.UnitLayout.of(model, inputs)
    state, mask = pruning.snapshot(model), random_mask(layout, 1)
    with pytest.raises(PruningError, match="a layout and a mask go together"):
        pruning.rewind(model, state, layout)
    with pytest.raises(PruningError, match="a shrunk model needs a mask"):
        pruning.rewind(model, state, shrunk=True)
    with pytest.raises(ModelError, match=r"conv1\.weight is only in the model"):
        pruning.rewind(model, {k: v for k, v in state.items() if k != "conv1.weight"})
    with pytest.raises(ModelError, match="extra is only in the reference state"):
        pruning.rewind(model, state | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"must be finite, out\.bias of PlainCnn is not"):
        pruning.rewind(model, state | {"out.bias": torch.full((4,), torch.nan)})
    small = pruning.shrink(model, layout, mask)
    with pytest.raises(ModelError, match=r"has shape \[6, 3, 3, 3\].*the dense model"):
        pruning.rewind(small, state)
