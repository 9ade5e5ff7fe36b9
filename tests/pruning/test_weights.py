from __future__ import annotations

import ast
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import fedprune
from fedprune import models, privacy, pruning
from fedprune.errors import FedpruneError, ModelError, PruningError
from fedprune.pruning import weights
from fedprune.randomness import SimulationRandomness


def linear(values: Tensor) -> nn.Linear:
    layer = nn.Linear(values.shape[1], values.shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(values)
    return layer


@given(seed=st.integers(0, 10_000), kept=st.integers(1, 8), tied=st.booleans())
def test_no_support_of_the_same_size_is_closer_than_the_largest_weights(
    seed: int, kept: int, tied: bool
) -> None:
    """Eckart and Young's question for sparse instead of low-rank matrices, by brute force."""
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 4)))
    if tied:
        matrix = matrix.round()
    layer = linear(matrix)
    masks = weights.magnitude_masks(layer, kept / 8)
    assert masks.num_kept == kept
    found = torch.linalg.norm(matrix - weights.apply_masks(layer, masks).weight)
    best = min(
        float(np.linalg.norm(np.delete(matrix.numpy().ravel(), list(support))))
        for support in itertools.combinations(range(8), kept)
    )
    assert float(found.detach()) == pytest.approx(best, abs=1e-12)


def test_global_masks_rank_all_weights_together_and_layerwise_ones_each_tensor() -> None:
    model = nn.Sequential(
        linear(torch.tensor([[1.0, -2.0]])), linear(torch.tensor([[9.0], [-8.0]]))
    )
    together = weights.magnitude_masks(model, 0.5)
    assert [mask.tolist() for mask in together.keep.values()] == [
        [[False, False]],
        [[True], [True]],
    ]
    each = weights.magnitude_masks(model, 0.5, scope="layerwise")
    assert [mask.tolist() for mask in each.keep.values()] == [[[False, True]], [[True], [False]]]


def test_equal_magnitudes_go_to_the_earlier_weight() -> None:
    masks = weights.magnitude_masks(linear(torch.tensor([[1.0, -1.0, 1.0, -1.0]])), 0.5)
    assert masks.keep["weight"].tolist() == [[True, True, False, False]]


def test_what_an_earlier_step_removed_stays_removed() -> None:
    model = linear(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    first = weights.StudyMasks({"weight": torch.tensor([[False, True, True, True]])})
    second = weights.magnitude_masks(model, 0.5, within=first)
    assert second.keep["weight"].tolist() == [[False, True, True, False]]
    with pytest.raises(PruningError, match="4 weights cannot stay where an earlier step left 3"):
        weights.magnitude_masks(model, 1.0, within=first)


def test_only_weights_of_convolutions_and_linear_layers_are_masked() -> None:
    network = models.load("resnet20", seed=1)
    names = weights.prunable_weights(network)
    named = dict(network.named_parameters())
    assert names
    assert all(named[name].ndim > 1 for name in names)
    assert not any("shortcut" in name for name in names)  # frozen selections
    assert weights.all_weights(network).keep_weights == 1


@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "sigmoid"])
def test_masks_of_units_silence_what_mask_model_silences(build, name: str) -> None:
    model, inputs = build(name)
    layout = pruning.UnitLayout.of(model, inputs)
    mask = torch.rand(len(layout), generator=torch.Generator().manual_seed(0)) < 0.6
    for group in layout.groups:
        mask[group.start] = True
    expected = pruning.mask_model(model, layout, mask)
    found = weights.apply_masks(model, weights.masks_of_units(model, layout, mask))
    for key, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[key]), key


def test_shuffled_masks_keep_as_many_weights_in_each_tensor() -> None:
    model = models.load("mlp", seed=1)
    masks = weights.magnitude_masks(model, 0.1)
    other = weights.random_masks_like(masks, torch.Generator().manual_seed(1))
    assert any(not torch.equal(masks.keep[name], other.keep[name]) for name in masks.keep)
    for name, mask in masks.keep.items():
        assert int(mask.sum()) == int(other.keep[name].sum())


@given(value=st.floats(-5, 5), cut=st.floats(0, 3))
def test_thresholds_minimise_what_they_say(value: float, cut: float) -> None:
    grid = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    seen = torch.tensor([value], dtype=torch.float64)

    def soft(x: Tensor) -> Tensor:
        return 0.5 * (x - value) ** 2 + cut * x.abs()

    def hard(x: Tensor) -> Tensor:
        return 0.5 * (x - value) ** 2 + 0.5 * cut**2 * (x != 0).double()

    for objective, threshold in (
        (soft, weights.soft_threshold), (hard, weights.hard_threshold),
    ):  # fmt: skip
        assert float(objective(threshold(seen, cut))) <= float(objective(grid).min()) + 1e-12


def test_ista_reaches_the_optimum_of_the_lasso() -> None:
    """Checked by the optimality conditions: the gradient is -λ sign(x), or within ±λ at zero."""
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(40, 15, generator=generator, dtype=torch.float64)
    target = design[:, :3] @ torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    target = target + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
    constant = float(torch.linalg.eigvalsh(design.T @ design)[-1])
    penalty = 5.0
    found = weights.ista(
        lambda x: design.T @ (design @ x - target),
        torch.zeros(15, dtype=torch.float64),
        step_size=1 / constant, penalty=penalty, steps=3000,
    )  # fmt: skip
    slope = design.T @ (design @ found - target)
    active = found != 0
    assert 3 <= int(active.sum()) < 15
    assert torch.allclose(slope[active], -penalty * found[active].sign(), atol=1e-8)
    assert float(slope[~active].abs().max()) <= penalty


def test_ista_never_raises_its_objective_and_keeps_to_the_published_rate() -> None:
    generator = torch.Generator().manual_seed(1)
    design = torch.randn(30, 10, generator=generator, dtype=torch.float64)
    target = torch.randn(30, generator=generator, dtype=torch.float64)
    constant = float(torch.linalg.eigvalsh(design.T @ design)[-1])
    start = torch.randn(10, generator=generator, dtype=torch.float64)

    def at(steps: int) -> Tensor:
        return weights.ista(
            lambda x: design.T @ (design @ x - target), start,
            step_size=1 / constant, penalty=2.0, steps=steps,
        )  # fmt: skip

    def objective(x: Tensor) -> float:
        return float(0.5 * ((design @ x - target) ** 2).sum() + 2.0 * x.abs().sum())

    values = [objective(at(steps)) for steps in range(40)]
    best = at(5000)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    distance = float(((start - best) ** 2).sum())
    for steps in range(1, 40):
        assert values[steps] - objective(best) <= constant * distance / (2 * steps) + 1e-9


def quickly(model: nn.Module, masks: weights.StudyMasks) -> nn.Module:
    """A few steps on random data, removed weights held at zero."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 1, 4, 4, generator=generator)
    labels = inputs.flatten(1)[:, :3].argmax(1)
    trained = weights.apply_masks(model, masks)
    for _ in range(30):
        gradients = torch.autograd.grad(
            functional.cross_entropy(trained(inputs), labels), list(trained.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
        weights.hold_at_zero_(trained, masks)
    return trained


def test_tickets_shrink_as_told_and_start_from_the_values_that_they_had() -> None:
    first = models.load("mlp", input_shape=(1, 4, 4), num_classes=3, seed=1)
    fractions = pruning.keep_fractions("geometric", 3, 0.1)
    state = pruning.snapshot(first)
    tickets = weights.iterative_magnitude_pruning(first, quickly, fractions, rewind_to=state)
    total = weights.all_weights(first).num_weights
    assert [ticket.masks.num_kept for ticket in tickets] == [int(f * total) for f in fractions]
    before = weights.all_weights(first)
    for ticket in tickets:
        for name, mask in ticket.masks.keep.items():
            assert not bool((mask & ~before.keep[name]).any())
            value = dict(ticket.start.named_parameters())[name]
            assert torch.equal(value, state[name] * mask)
        again = weights.magnitude_masks(ticket.trained, ticket.masks.keep_weights, within=before)
        assert again.num_kept == ticket.masks.num_kept
        before = ticket.masks
    going_on = weights.iterative_magnitude_pruning(first, quickly, fractions)
    last = going_on[-1]
    trained = dict(last.trained.named_parameters())
    for name, mask in last.masks.keep.items():
        assert torch.equal(dict(last.start.named_parameters())[name], trained[name] * mask)


def test_training_that_moves_removed_weights_is_refused() -> None:
    model = models.load("mlp", input_shape=(1, 4, 4), num_classes=3, seed=1)
    with pytest.raises(PruningError, match=r"must hold removed weights at 0, fc1\.weight moved"):
        weights.iterative_magnitude_pruning(model, lambda _start, _masks: model, (0.5, 0.25))


def test_masks_of_weights_cannot_become_a_report_an_array_bytes_or_a_pickle() -> None:
    masks = weights.magnitude_masks(models.load("mlp", seed=1), 0.5)
    mechanism = privacy.ThresholdResponse(4.0, masks.num_weights)
    with pytest.raises((FedpruneError, TypeError, AttributeError)):
        mechanism.randomize(masks, SimulationRandomness(1))  # type: ignore[arg-type]
    for attempt in (np.asarray, bytes, pickle.dumps):
        with pytest.raises(PruningError, match="makes no privacy claim"):
            attempt(masks)
    assert not isinstance(masks, Tensor)


def test_no_part_of_the_package_that_talks_to_clients_knows_masks_of_weights() -> None:
    """The folder's own modules aside, nothing in the package imports it, by any spelling."""
    package = Path(fedprune.__file__).parent
    knowing = []
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        if inside.parts[:2] == ("pruning", "weights"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            spelled = [f"{module}.{name}".strip(".") for name in names] + [module]
            if isinstance(node, ast.Import | ast.ImportFrom) and any(
                "pruning.weights" in one for one in spelled
            ):
                knowing.append(str(inside))
            if isinstance(node, ast.Name | ast.Attribute) and "StudyMasks" in (
                getattr(node, "id", ""), getattr(node, "attr", ""),
            ):  # fmt: skip
                knowing.append(str(inside))
    assert knowing == []
    assert "StudyMasks" not in pruning.__all__


def test_bad_input_is_one_sentence() -> None:
    model = models.load("mlp", seed=1)
    with pytest.raises(PruningError, match="scope must be one of global, layerwise, got 'unit'"):
        weights.magnitude_masks(model, 0.5, scope="unit")
    with pytest.raises(PruningError, match=r"keep_weights must be in \(0, 1\], got 0"):
        weights.magnitude_masks(model, 0.0)
    with pytest.raises(PruningError, match="has no convolution or linear layer"):
        weights.all_weights(nn.BatchNorm2d(3))
    wrong = weights.StudyMasks({"fc1.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(PruningError, match=r"masks must be of Sequential: fc1\.weight has shape"):
        weights.apply_masks(model, wrong)
    with pytest.raises(PruningError, match="a threshold must be at least 0 and finite, got -1"):
        weights.soft_threshold(torch.zeros(1), -1.0)
    with pytest.raises(PruningError, match="step_size must be above 0 and finite, got 0"):
        weights.ista(lambda x: x, torch.zeros(1), step_size=0.0, penalty=0.0, steps=1)
    with pytest.raises(PruningError, match="ista diverged at step"):
        weights.ista(lambda x: x * 1e30, torch.ones(1), step_size=1e30, penalty=0.0, steps=9)
    with pytest.raises(ModelError, match="a reference state must be of this"):
        weights.iterative_magnitude_pruning(model, quickly_nothing, (0.5,), rewind_to={})


def quickly_nothing(model: nn.Module, masks: weights.StudyMasks) -> nn.Module:
    return weights.apply_masks(model, masks)
