from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedprune import hardware
from fedprune.errors import ConfigError, ModelError


class Recorder(nn.Module):
    def __init__(self, name: str, log: list[tuple[str, int, int, bool]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, batch: Tensor) -> Tensor:
        entry = (self.name, len(batch), torch.get_num_threads(), torch.is_inference_mode_enabled())
        self.log.append(entry)
        return batch


def test_networks_take_turns_on_whole_batches_with_the_threads_asked_for() -> None:
    log: list[tuple[str, int, int, bool]] = []
    pair = {name: Recorder(name, log) for name in ("dense", "small")}
    found = hardware.latency(pair, torch.zeros(3, 2), batch_size=8, repeats=4, warmup=2, threads=2)
    turn = [(name, 8, 2, True) for name in ("dense", "dense", "small", "small")]
    assert log == turn * 6  # the first of each is not timed
    for figure in found.values():
        assert 0 < figure.p10_ms <= figure.median_ms <= figure.p90_ms
        assert (figure.batch_size, figure.threads, figure.repeats) == (8, 2, 4)


def test_modes_and_threads_are_put_back_even_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            raise RuntimeError(f"no to {len(batch)}")

    threads, model = torch.get_num_threads(), Failing().train()
    with pytest.raises(ModelError, match=r"failing cannot process .*: no to 1"):
        hardware.latency({"failing": model}, torch.zeros(1, 2), threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert model.training


@pytest.mark.parametrize("name", ["batch_size", "repeats", "threads", "warmup"])
def test_a_count_out_of_range_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} of a latency measurement must be at least"):
        hardware.latency({}, torch.zeros(1, 2), **{name: -1})
