from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import hardware
from fedprune.errors import ConfigError

WAYS = ["eager", "channels_last", "folded", "folded_channels_last", "frozen", "exported"]


class Branching(nn.Module):
    """Norms that can be folded, one whose input is read twice, one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.again, self.norm3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.first(x)))
        y = self.second(x)
        x = self.norm2(y) + y
        x = functional.relu(self.norm3(self.again(x)))
        x = self.norm3(self.again(x))
        return self.out(x.mean((2, 3)))


def network() -> nn.Module:
    model = Branching()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(6, generator=generator)
            module.running_var = 0.5 + torch.rand(6, generator=generator)
    return model


def test_every_way_says_the_same_and_leaves_the_network_alone() -> None:
    model, batch = network().train(), torch.randn(3, 3, 8, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = hardware.variants(model, batch, WAYS)
    assert set(found.models) | set(found.skipped) == set(WAYS)
    assert {"eager", "channels_last", "folded"} <= set(found.models)
    with torch.no_grad():
        wanted = model.eval()(batch)
        for name, one in found.models.items():
            torch.testing.assert_close(one(batch), wanted, rtol=1e-3, atol=1e-4, msg=name)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    speeds = hardware.compare(found.models, batch, batch_size=3, repeats=6, warmup=0)
    assert set(speeds) == set(found.models)


def test_only_norms_that_follow_one_convolution_alone_are_folded() -> None:
    model = network().eval()
    folded = hardware.fold_norms(model)
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    used = {str(node.target) for node in folded.graph.nodes if node.op == "call_module"}
    assert used.intersection(left) == {"norm2", "norm3"}
    batch = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(batch), model(batch), rtol=1e-4, atol=1e-5)


def test_a_way_that_does_not_work_is_skipped_with_the_reason() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 0:  # cannot be traced symbolically
                return x
            return -x

    found = hardware.variants(Stubborn(), torch.ones(2, 3), ["eager", "channels_last", "folded"])
    assert set(found.models) == {"eager"}
    assert "images" in found.skipped["channels_last"]
    assert "\n" not in found.skipped["folded"]


def test_a_way_that_says_something_else_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        hardware.VARIANTS, "wrong", lambda model, _: nn.Sequential(model, nn.Softmax(1))
    )
    found = hardware.variants(network(), torch.randn(2, 3, 8, 8), ["wrong"])
    assert not found.models
    assert "outputs differ by" in found.skipped["wrong"]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"variant must be one of eager, .* got 'magic'"):
        hardware.variants(network(), torch.randn(2, 3, 8, 8), ["magic"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_networks_of_one_class_are_compiled_apart() -> None:
    models = [network() for _ in range(3)]
    batch = torch.randn(3, 3, 8, 8)
    # Two passes of each: one that builds it, one in inference mode as `compare` runs it.
    alone = torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)
    with alone, torch.inference_mode():
        for model in models:
            found = hardware.variants(model, batch, ["compiled"])
            assert not found.skipped
            wanted = model.eval()(batch)
            torch.testing.assert_close(
                found.models["compiled"](batch), wanted, rtol=1e-3, atol=1e-4
            )
