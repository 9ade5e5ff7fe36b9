from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune import hardware, models
from fedprune.errors import ConfigError
from fedprune.hardware.layer_times import axis_of, widened_to


def test_what_is_attainable_is_the_lower_of_slope_and_peak() -> None:
    limits = hardware.Roofline(gigabytes_per_second=10.0, gigaflops=50.0, threads=1)
    assert limits.ridge == 5.0
    assert limits.attainable(2.0) == 20.0
    assert limits.attainable(5.0) == limits.attainable(500.0) == 50.0


def test_a_roofline_is_measured_with_the_threads_asked_for() -> None:
    found = hardware.roofline(threads=1, repeats=1, numbers=10_000)
    assert found.threads == 1
    assert found.gigabytes_per_second > 0
    assert found.gigaflops > 0
    with pytest.raises(ConfigError, match="repeats of a roofline must be at least 1, got 0"):
        hardware.roofline(repeats=0)


def test_the_layers_work_adds_up_to_what_an_independent_counter_finds() -> None:
    model = models.load("resnet20", num_classes=10, seed=1)
    batch = torch.zeros(2, 3, 32, 32)
    works = hardware.measure_layers(model, batch, repeats=6)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(batch)
    selections = [n for n, m in model.named_modules() if getattr(m, "is_selection", False)]
    by_module = counter.get_flop_counts()
    free = sum(sum(by_module[f"CifarResNet.{name}"].values()) for name in selections)
    assert sum(work.flops for work in works) == counter.get_total_flops() - free
    first = next(work for work in works if work.name == "conv1")
    assert first.bytes == 4 * (16 * 3 * 9 + 2 * 3 * 32 * 32 + 2 * 16 * 32 * 32)
    assert first.intensity == first.flops / first.bytes
    assert first.low_ms <= first.median_ms <= first.high_ms
    with pytest.raises(ConfigError, match=r"layer must be one of conv1, .* got 'nothing'"):
        hardware.measure_layers(model, batch, ["nothing"], repeats=6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 9)),
        (nn.Linear(8, 12), (5, 8)),
        (nn.Linear(8, 12), (2, 5, 8)),
    ],
)
def test_the_forms_of_a_layer_do_the_operations_that_they_promise(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    works = {
        work.name: work
        for work in hardware.measure_forms(layer, torch.randn(shape), 0.25, repeats=6)
    }
    assert works["unfolded"].flops == works["dense"].flops
    for sparse in ("csr", "csr_product", "shrunk"):
        assert works[sparse].flops == 0.25 * works["dense"].flops
    assert works["csr"].intensity < works["dense"].intensity


def test_the_sparse_product_is_the_layer_where_every_weight_stays() -> None:
    from fedprune.hardware.layers import _forms

    layer, inputs = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        forms = _forms(layer, inputs, 1.0)
        wanted = layer(inputs).transpose(0, 1).flatten(1)
        for name in ("csr", "csr_product", "unfolded"):
            torch.testing.assert_close(forms[name](), wanted)


def test_only_plain_layers_have_forms() -> None:
    with pytest.raises(ConfigError, match=r"only a plain nn.Conv2d or nn.Linear"):
        hardware.measure_forms(nn.Conv2d(4, 4, 3, groups=4), torch.zeros(1, 4, 8, 8), 0.5)
    with pytest.raises(ConfigError, match=r"keep must be in \(0, 1\], got 0"):
        hardware.measure_forms(nn.Linear(4, 4), torch.zeros(1, 4), 0.0)


LAYERS = {
    "conv": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (1, 8, 9, 9), (4, 6)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=2), (1, 8, 9, 9), (4, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9), (5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 6, 2, stride=2), (1, 8, 5, 5), (3, 4)),
    "linear": (nn.Linear(8, 6), (2, 3, 8), (5, 4)),
    "batch norm": (nn.BatchNorm2d(8), (1, 8, 5, 5), (3, 3)),
    "group norm": (nn.GroupNorm(4, 8), (1, 8, 5, 5), (6, 6)),
    "slopes": (nn.PReLU(8), (1, 8, 5, 5), (3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_other_widths_does_the_same_to_an_input_of_other_widths(name: str) -> None:
    layer, shape, (n_in, n_out) = LAYERS[name]
    inputs = torch.randn(shape)
    made, cut = widened_to(layer, inputs, n_in, n_out)
    axis = -1 if name == "linear" else 1
    with torch.no_grad():
        wanted, found = layer.eval()(inputs).shape, made.eval()(cut).shape
    assert cut.shape[axis] == n_in
    assert found[axis] == n_out
    assert [s for k, s in enumerate(found) if k != axis % len(found)] == [
        s for k, s in enumerate(wanted) if k != axis % len(wanted)
    ]


@pytest.mark.parametrize(
    ("widest", "points", "multiple"), [(16, 8, 1), (512, 8, 1), (7, 3, 1), (24, 4, 6), (1, 2, 1)]
)
def test_an_axis_of_widths_rises_to_the_widest_in_multiples(
    widest: int, points: int, multiple: int
) -> None:
    axis = axis_of(widest, points, multiple)
    assert axis == sorted(set(axis))
    assert axis[-1] == widest
    assert len(axis) <= points
    assert all(width % multiple == 0 and width > 0 for width in axis)
    assert widest < 8 * points or all(width % 8 == 0 for width in axis)
