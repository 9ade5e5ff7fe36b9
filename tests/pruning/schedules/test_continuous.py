from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune import pruning
from fedprune.errors import PruningError
from fedprune.pruning import ContinuousPlan, SmoothedScores, removed_last


@given(
    num_units=st.integers(1, 500),
    keep=st.floats(0.001, 1.0),
    per_step=st.integers(1, 60),
    per_minibatch=st.integers(1, 40),
)
def test_a_plan_walked_minibatch_by_minibatch_ends_at_what_select_keeps(
    num_units: int, keep: float, per_step: int, per_minibatch: int
) -> None:
    plan = ContinuousPlan.to_fraction(num_units, keep, per_step, per_minibatch)
    left, steps = num_units, 0
    for minibatch in range(plan.minibatches + 2 * per_minibatch + 1):
        step = plan.step_at(minibatch)
        if step is None:
            continue
        steps += 1
        assert step == steps
        removed = left - plan.units_after(step)
        assert 1 <= removed <= per_step
        assert removed == per_step or step == plan.steps
        left -= removed
    assert steps == plan.steps == len(plan.keep_fractions())
    assert left == plan.final_units == max(1, math.floor(keep * num_units + 1e-9))


def test_the_published_settings_take_a_hundred_units_every_thirty_minibatches() -> None:
    plan = ContinuousPlan(num_units=22_000, final_units=22_000 - 3_200)
    assert plan.steps == 32
    assert [plan.step_at(n) for n in (0, 29, 30, 31, 60, 960, 990)] == [
        None, None, 1, None, 2, 32, None,
    ]  # fmt: skip
    assert plan.units_after(1) == 21_900


def test_smoothed_scores_follow_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    series = torch.rand(4, 3, 5, generator=generator)  # 4 steps of 3 minibatches over 5 units
    smoothed = SmoothedScores(5, momentum=0.9)
    found = []
    for minibatches in series:
        for scores in minibatches:
            smoothed.add(scores)
        found.append(smoothed.step())
    means = series.double().mean(1)
    weights = [0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    expected = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    assert torch.allclose(found[-1], torch.as_tensor(expected), atol=1e-12)
    assert torch.allclose(found[0], means[0], atol=1e-12)


def test_without_momentum_a_step_is_the_mean_of_its_own_minibatches() -> None:
    smoothed = SmoothedScores(2, momentum=0.0)
    smoothed.add(torch.tensor([9.0, 9.0]))
    smoothed.step()
    smoothed.add(torch.tensor([1.0, 2.0]))
    smoothed.add(torch.tensor([3.0, 2.0]))
    assert smoothed.step().tolist() == [2.0, 2.0]


def test_what_a_step_gives_back_is_the_callers_own() -> None:
    smoothed = SmoothedScores(2)
    smoothed.add(torch.tensor([1.0, 2.0]))
    smoothed.step().fill_(100)
    smoothed.add(torch.tensor([1.0, 2.0]))
    assert smoothed.step().tolist() == pytest.approx([1.0, 2.0])


def test_a_removed_unit_is_never_taken_back(build) -> None:
    model, inputs = build("plain")
    layout = pruning.UnitLayout.of(model, inputs)
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(len(layout), dtype=torch.bool)
    for fraction in pruning.keep_fractions("continuous", 6, 0.3):
        scores = torch.rand(len(layout), generator=generator)
        after = pruning.select(removed_last(scores, mask), layout, keep_units=fraction)
        assert not bool((after & ~mask).any())
        assert int(after.sum()) == math.floor(fraction * len(layout) + 1e-9)
        mask = after


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(PruningError, match=r"units_per_step must be a whole number .* got 0"):
        ContinuousPlan(10, 5, 0, 1)
    with pytest.raises(PruningError, match="final_units must be at most the 10 units"):
        ContinuousPlan(10, 11)
    with pytest.raises(PruningError, match=r"keep_units must be in \(0, 1\], got 0"):
        ContinuousPlan.to_fraction(10, 0.0)
    with pytest.raises(PruningError, match=r"momentum must be in \[0, 1\), got 1"):
        SmoothedScores(3, momentum=1.0)
    with pytest.raises(PruningError, match="at least one minibatch's scores, got none"):
        SmoothedScores(3).step()
    with pytest.raises(PruningError, match="must be 3 numbers, got shape \\[2\\]"):
        SmoothedScores(3).add(torch.zeros(2))
    with pytest.raises(PruningError, match="must be finite, got nan for unit 1"):
        SmoothedScores(2).add(torch.tensor([0.0, math.nan]))
    with pytest.raises(PruningError, match="one boolean for each of 2 scores"):
        removed_last(torch.zeros(2), torch.ones(2))
