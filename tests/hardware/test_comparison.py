from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from fedprune import hardware
from fedprune.errors import ConfigError
from fedprune.hardware.timing import median_interval, time_in_turns


class Doubling(nn.Module):
    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def forward(self, batch: Tensor) -> Tensor:
        self.log.append(f"{self.name}{len(batch)}")
        return batch * 2


def test_networks_take_turns_and_the_baseline_is_as_fast_as_itself() -> None:
    log: list[str] = []
    pair = {name: Doubling(log, name).train() for name in ("dense", "small")}
    found = hardware.compare(pair, torch.ones(1, 3), batch_size=4, repeats=7, warmup=1)
    assert log == ["dense4", "dense4", "small4", "small4"] * 8  # the first of each is not timed
    one = found["dense"]
    assert (one.speedup, one.speedup_low, one.speedup_high) == (1.0, 1.0, 1.0)
    assert one.brings_nothing()
    other = found["small"]
    assert other.speedup_low <= other.speedup <= other.speedup_high
    assert other.latency.repeats == 7
    assert pair["small"].training


def test_any_network_may_be_the_baseline() -> None:
    pair = {name: Doubling([], name) for name in ("dense", "small")}
    found = hardware.compare(pair, torch.ones(1, 3), baseline="small", repeats=6)
    assert found["small"].speedup == 1.0
    with pytest.raises(ConfigError, match="baseline must be one of dense, small, got 'large'"):
        hardware.compare(pair, torch.ones(1, 3), baseline="large")
    with pytest.raises(ConfigError, match="repeats of a comparison must be at least 6, got 5"):
        hardware.compare(pair, torch.ones(1, 3), repeats=5)


@given(count=st.integers(6, 200), seed=st.integers(0, 100))
def test_an_interval_of_the_median_covers_it_by_the_binomial_distribution(
    count: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=count)
    low, high = median_interval(values)
    below, above = int((values < low).sum()), int((values > high).sum())
    assert below == above
    assert low <= np.median(values) <= high
    # The median lies outside if at most `below` values fall on one side of it.
    assert 2 * binom.cdf(below, count, 0.5) <= 0.05
    assert 2 * binom.cdf(below + 1, count, 0.5) > 0.05


def test_too_few_values_have_no_interval() -> None:
    with pytest.raises(ConfigError, match="5 repeats are too few"):
        median_interval(np.arange(5.0))


@given(shuffled=st.booleans())
def test_every_work_has_one_time_a_turn_in_any_order(shuffled: bool) -> None:
    log: list[str] = []
    works = {name: (lambda name=name: log.append(name)) for name in "abc"}
    times = time_in_turns(works, repeats=5, warmup=2, threads=1, shuffled=shuffled)
    assert {name: len(mine) for name, mine in times.items()} == {"a": 5, "b": 5, "c": 5}
    turns = [log[k : k + 3] for k in range(0, 21, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert shuffled or turns == [["a", "b", "c"]] * 7


def test_what_comes_before_a_timed_call_is_not_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def work() -> None:
        work.calls += 1  # type: ignore[attr-defined]
        now[0] += 5.0 if work.calls % 3 else 0.001  # type: ignore[attr-defined]

    work.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("fedprune.hardware.timing.time.perf_counter", lambda: now[0])
    times = time_in_turns({"work": work}, repeats=4, warmup=1, threads=1, settle=2)
    assert times["work"] == pytest.approx(np.ones(4))


def test_a_short_work_is_repeated_until_the_clock_can_tell() -> None:
    calls: list[int] = []
    works = {"short": lambda: calls.append(1)}
    times = time_in_turns(works, repeats=1, warmup=0, threads=1, least_ms=0.05)
    assert len(calls) > 3
    assert times["short"][0] < 0.05


def test_a_machine_is_described_in_plain_values() -> None:
    found = hardware.machine().describe()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert all(isinstance(value, str | int) for value in found.values())
