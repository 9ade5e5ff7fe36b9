"""Batch-norm sums add up over clients to what one client with all the data finds."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness import batch_norm_layers, batch_norm_sums, recalibrate

from .networks import small_resnet


def data(count: int = 60) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1


def exact_statistics(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Layer after layer in one place, with torch's own train mode: a method of its own."""
    result = copy.deepcopy(model).double().eval()
    for name in batch_norm_layers(result):
        layer = result.get_submodule(name)
        layer.train()
        layer.momentum = 1.0
        with torch.no_grad():
            result(inputs.double())
        layer.eval()
    return result


def gap(left: nn.Module, right: nn.Module) -> float:
    return max(
        float((a.double() - b.double()).abs().max())
        for (name, a), (_, b) in zip(left.named_buffers(), right.named_buffers(), strict=True)
        if "running" in name
    )


def test_sums_of_clients_are_the_sums_of_all() -> None:
    model, inputs = small_resnet(0).double(), data().double()
    parts = [batch_norm_sums(model, [part]) for part in inputs.split([7, 30, 23])]
    together = parts[0] + parts[1] + parts[2]
    whole = batch_norm_sums(model, inputs.split(16))
    assert together.examples == whole.examples == 60
    assert together.counts == whole.counts
    for name in batch_norm_layers(model):
        torch.testing.assert_close(together.sums[name], whole.sums[name])
        torch.testing.assert_close(together.squares[name], whole.squares[name])


def test_asking_layer_after_layer_gives_exactly_the_moments_of_all_the_data() -> None:
    model, inputs = small_resnet(0).double(), data().double()
    wanted = exact_statistics(model, inputs)
    found = model
    for name in batch_norm_layers(model):
        parts = [batch_norm_sums(found, [part], layers=[name]) for part in inputs.split(25)]
        found = recalibrate(found, parts[0] + parts[1] + parts[2])
    assert gap(found, wanted) < 1e-10


def test_all_layers_at_once_are_exact_after_as_many_rounds_as_layers() -> None:
    model, inputs = small_resnet(1).double(), data().double()
    wanted, found, gaps = exact_statistics(model, inputs), model, []
    for _ in batch_norm_layers(model):
        found = recalibrate(found, batch_norm_sums(found, inputs.split(20)))
        gaps.append(gap(found, wanted))
    assert gaps[0] > 1e-2
    assert gaps[-1] < 1e-9


def test_one_round_with_statistics_of_the_batch_is_torchs_train_mode() -> None:
    model, inputs = small_resnet(2).double(), data().double()
    found = recalibrate(model, batch_norm_sums(model, [inputs], normalise="batch"))
    trained = copy.deepcopy(model).train()
    for name in batch_norm_layers(trained):
        trained.get_submodule(name).momentum = 1.0
    with torch.no_grad():
        trained(inputs)
    assert gap(found, trained) < 1e-10


def test_recalibration_brings_a_disturbed_network_back() -> None:
    model, inputs = small_resnet(3).eval(), data()
    settled = exact_statistics(model, inputs).float()
    disturbed = copy.deepcopy(settled)
    for name in batch_norm_layers(disturbed):
        disturbed.get_submodule(name).running_var.mul_(30.0)
        disturbed.get_submodule(name).running_mean.add_(1.0)
    found = disturbed
    for name in batch_norm_layers(found):
        found = recalibrate(found, batch_norm_sums(found, [inputs], layers=[name]))
    with torch.no_grad():
        wanted = settled(inputs)
        assert float((found(inputs) - wanted).norm()) < 1e-3 * float(wanted.norm())
        assert float((disturbed(inputs) - wanted).norm()) > 0.1 * float(wanted.norm())


def test_the_model_is_not_changed() -> None:
    model = small_resnet(0)
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, batch_norm_sums(model, [data()], normalise="batch"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module.training for module in model.modules())


def test_large_means_do_not_cancel() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).double().eval()
    model[0].running_mean.fill_(1e8)
    generator = torch.Generator().manual_seed(0)
    inputs = 1e8 + torch.randn(500, 3, generator=generator, dtype=torch.float64)
    found = recalibrate(model, batch_norm_sums(model, [inputs]))
    torch.testing.assert_close(found[0].running_var, inputs.var(dim=0), rtol=1e-6, atol=0.0)


def test_one_example_moves_clipped_sums_by_no_more_than_their_sensitivity() -> None:
    model, inputs = small_resnet(0), data(20)
    outlier = torch.full((1, 2, 8, 8), 1e4)
    few = batch_norm_sums(model, [inputs], clip=2.0)
    more = batch_norm_sums(model, [torch.cat([inputs, outlier])], clip=2.0)
    moved = sum(
        float(((more.sums[n] - few.sums[n]) ** 2).sum())
        + float(((more.squares[n] - few.squares[n]) ** 2).sum())
        for n in few.sums
    )
    assert 0.9 * few.sensitivity < math.sqrt(moved) <= few.sensitivity * (1 + 1e-9)
    assert batch_norm_sums(model, [inputs]).sensitivity == math.inf


def test_a_loose_clip_changes_nothing() -> None:
    model, inputs = small_resnet(0).double(), data().double()
    plain = recalibrate(model, batch_norm_sums(model, [inputs]))
    clipped = recalibrate(model, batch_norm_sums(model, [inputs], clip=1e6))
    for name in batch_norm_layers(model):
        left, right = plain.get_submodule(name), clipped.get_submodule(name)
        torch.testing.assert_close(left.running_mean, right.running_mean)
        torch.testing.assert_close(left.running_var, right.running_var, rtol=0.02, atol=0.0)


def test_bad_questions_are_refused() -> None:
    model, inputs = small_resnet(0), data(4)
    with pytest.raises(RobustnessError, match="no batch norm"):
        batch_norm_sums(nn.Linear(2, 2), [inputs])
    with pytest.raises(RobustnessError, match="layers must be among"):
        batch_norm_sums(model, [inputs], layers=["nowhere"])
    with pytest.raises(RobustnessError, match="no example"):
        batch_norm_sums(model, [])
    with pytest.raises(RobustnessError, match="normalise"):
        batch_norm_sums(model, [inputs], normalise="both")
    with pytest.raises(RobustnessError, match="clip"):
        batch_norm_sums(model, [inputs], clip=0.0)
    with pytest.raises(RobustnessError, match="not finite"):
        batch_norm_sums(model, [inputs * math.inf])
    first = batch_norm_sums(model, [inputs], layers=["1"])
    with pytest.raises(RobustnessError, match="cannot be added"):
        first + batch_norm_sums(model, [inputs])
    with pytest.raises(RobustnessError, match="channels"):
        recalibrate(nn.Sequential(nn.Identity(), nn.BatchNorm2d(7)).eval(), first)
    with pytest.raises(RobustnessError, match="no batch norm"):
        recalibrate(nn.Sequential(nn.Linear(2, 2)), first)


def test_an_example_counts_as_often_as_the_model_uses_a_batch_norm() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.Linear(3, 3), norm).eval()
    few, outlier = torch.randn(5, 3), 1e6 * torch.ones(1, 3)
    before = batch_norm_sums(model, [few], clip=1.0)
    after = batch_norm_sums(model, [torch.cat([few, outlier])], clip=1.0)
    moved = torch.cat(
        [after.sums["0"] - before.sums["0"], after.squares["0"] - before.squares["0"]]
    )
    once = math.sqrt(3 * 2)
    assert once < float(moved.norm()) <= before.sensitivity == pytest.approx(2 * once)


def test_no_sensitivity_is_claimed_where_examples_move_each_other() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(RobustnessError, match="normalise='stored'"):
        batch_norm_sums(model, [torch.randn(5, 3)], clip=1.0, normalise="batch")
