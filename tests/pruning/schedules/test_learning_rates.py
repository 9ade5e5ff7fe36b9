from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import PruningError
from fedprune.pruning import LEARNING_RATES, learning_rate


@given(
    shape=st.sampled_from(sorted(LEARNING_RATES)),
    steps=st.integers(1, 60),
    rate=st.floats(1e-4, 10),
    data=st.data(),
)
def test_every_run_of_a_shape_begins_at_the_rate_and_never_rises(
    shape: str, steps: int, rate: float, data: st.DataObject
) -> None:
    inner = st.integers(1, max(1, steps - 1))
    restarts = sorted(data.draw(st.sets(inner, max_size=4))) if steps > 1 else []
    found = [learning_rate(shape, n, steps, rate, restarts=restarts) for n in range(steps)]
    for begin, end in itertools.pairwise([0, *restarts, steps]):
        run = found[begin:end]
        assert run[0] == rate
        assert all(0 < later <= earlier for earlier, later in itertools.pairwise([rate, *run]))


def test_cosine_and_linear_agree_with_torchs_schedulers() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    for shape, make in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=20)),
        ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], gamma=0.1)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ):
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        scheduler = make(optimizer)
        for step in range(20):
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate(shape, step, 20, 0.3) == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            scheduler.step()


def test_warm_restarts_agree_with_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7)
    for step in range(21):
        expected = optimizer.param_groups[0]["lr"]
        found = learning_rate("cosine", step, 21, 0.3, restarts=(7, 14))
        assert found == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_warm_up_climbs_in_equal_steps_up_to_the_rate_after_every_restart() -> None:
    found = [learning_rate("cosine", n, 20, 1.0, restarts=(10,), warmup=3) for n in range(20)]
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[10:14] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 6 / 7)))


def test_a_run_shorter_than_the_warm_up_only_climbs() -> None:
    found = [learning_rate("linear", n, 4, 1.0, restarts=(2,), warmup=9) for n in range(4)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1 / 3, 2 / 3])


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(PruningError, match=r"shape must be one of constant, .* got 'exp'"):
        learning_rate("exp", 0, 1, 0.1)
    with pytest.raises(PruningError, match="must be above 0 and finite, got nan"):
        learning_rate("cosine", 0, 1, math.nan)
    with pytest.raises(PruningError, match="step must be in 0 to steps - 1 = 4, got 5"):
        learning_rate("cosine", 5, 5, 0.1)
    with pytest.raises(PruningError, match=r"inside \(0, 5\), got \[3, 2\]"):
        learning_rate("cosine", 0, 5, 0.1, restarts=[3, 2])
    with pytest.raises(PruningError, match="warmup must be at least 0, got -1"):
        learning_rate("cosine", 0, 5, 0.1, warmup=-1)
