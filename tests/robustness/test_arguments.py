"""Arguments that fit no question are refused in one sentence that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import RobustnessError
from fedprune.robustness import (
    Certifier,
    LocalCertifier,
    MarginLoss,
    attack_distances,
    chain_bound,
    direct_search,
    lipschitz,
    local_lipschitz,
    pgd,
)

INPUTS, LABELS, RADII = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


ATTACKS: list[Callable[..., Any]] = [pgd, direct_search]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"inputs": INPUTS.numpy()}, "inputs must be a torch tensor, got numpy.ndarray"),
        ({"inputs": INPUTS[:0]}, r"inputs must be \[n, ...\] with n at least 1, got \[0, 4\]"),
        ({"inputs": torch.tensor(1.0)}, r"got \[\]"),
        ({"inputs": torch.zeros(3, 9)}, r"cannot be run in float64 on inputs of shape \[3, 9\]"),
        ({"inputs": INPUTS + 1j}, "inputs is complex"),
        ({"inputs": INPUTS / 0}, "inputs has values that are not finite"),
        ({"labels": [0, 1, 0]}, "labels must be a torch tensor, got list"),
        ({"labels": LABELS.float()}, "labels must be one integer for each of 3 inputs"),
        ({"labels": LABELS[:2]}, "labels must be one integer for each of 3 inputs"),
        ({"labels": LABELS + 2}, r"labels must be integers in \[0, 2\), got 2 to 2"),
        ({"radii": "wide"}, "radii must be 3 numbers, got 'wide'"),
        ({"radii": RADII[:2]}, r"radii must be one number for each of 3 inputs, got \[2\]"),
        ({"radii": -RADII}, "every radius must be finite and at least 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, got 1.5"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"model": "net"}, "model must be a torch.nn.Module, got str"),
        ({"labels": LABELS.to_sparse()}, "labels must be a dense tensor"),
        ({"inputs": INPUTS.to_sparse()}, "inputs must be a dense tensor"),
        ({"inputs": torch.zeros(3, 4, device="meta")}, "inputs must be a dense tensor"),
        ({"radii": np.array([1 + 5j] * 3)}, "radii must be 3 numbers"),
        ({"radii": [10**400] * 3}, "radii must be 3 numbers"),
        ({"input_std": "a"}, "input_std must hold numbers, got 'a'"),
        ({"input_std": [None, 1]}, "input_std must hold numbers"),
        ({"input_range": (0, 1, 2)}, "input_range must be a lowest and a higher highest value"),
        ({"input_range": 1}, "input_range must be a lowest and a higher highest value"),
        ({"input_range": (None, 1)}, "input_range must hold numbers, got None"),
    ],
)
def test_attacks_refuse(attack: Callable[..., Any], changed: dict[str, Any], told: str) -> None:
    given = {"model": model(), "inputs": INPUTS, "labels": LABELS, "radii": RADII} | changed
    with pytest.raises(RobustnessError, match=told):
        attack(**given)


def test_attacks_refuse_a_model_of_several_outputs() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs, inputs

    with pytest.raises(RobustnessError, match="must return one tensor, got tuple"):
        pgd(Pair().eval(), INPUTS, LABELS, RADII)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"example_input": [0.0]}, "example_input must be a torch tensor, got list"),
        ({"samples": 1.5}, "samples must be a whole number of at least 0, got 1.5"),
        ({"samples": -1}, "samples must be a whole number of at least 0, got -1"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"seed": -3}, "seed must be a whole number of at least 0, got -3"),
        ({"lower_inputs": np.zeros((2, 4))}, "lower_inputs must be a torch tensor, got numpy"),
        ({"lower_inputs": torch.zeros(2, 3)}, r"lower_inputs must be \[n, 4\]"),
        ({"lower_inputs": torch.full((2, 4), torch.nan)}, "lower_inputs has values"),
        ({"model": lambda inputs: inputs}, "model must be a torch.nn.Module, got function"),
    ],
)
def test_a_bound_refuses(changed: dict[str, Any], told: str) -> None:
    given = {"model": model(), "example_input": INPUTS[:1]} | changed
    with pytest.raises(RobustnessError, match=told):
        lipschitz(**given)


def test_certifiers_and_losses_refuse() -> None:
    certifier = Certifier.of(model(), INPUTS[:1])
    local = LocalCertifier.of(model(), INPUTS[:1])
    for certify in (certifier.margins, lambda x, y: local.certified(x, y, 0.1)):
        with pytest.raises(RobustnessError, match="inputs must be a torch tensor"):
            certify(INPUTS.numpy(), LABELS)
        with pytest.raises(RobustnessError, match=r"inputs must be \[n, 4\]"):
            certify(INPUTS[:, :3], LABELS)
        with pytest.raises(RobustnessError, match="labels must be a torch tensor"):
            certify(INPUTS, [0, 0, 0])
        with pytest.raises(RobustnessError, match="labels must be one integer"):
            certify(INPUTS, LABELS.double())
    with pytest.raises(RobustnessError, match="batch_size must be a whole number"):
        certifier.margins(INPUTS, LABELS, batch_size=2.5)
    with pytest.raises(RobustnessError, match="halvings must be a whole number"):
        local.certified_radii(INPUTS, LABELS, 0.1, halvings=-1)
    for radius in ("wide", 0, -1.0, float("nan"), None, True, 10**400):
        with pytest.raises(RobustnessError, match="radius must be positive and finite"):
            local_lipschitz(model(), INPUTS, radius)
        with pytest.raises(RobustnessError, match="radius must be positive and finite"):
            MarginLoss(model(), INPUTS[:1], radius)
    with pytest.raises(RobustnessError, match="inputs must be a torch tensor"):
        local_lipschitz(model(), INPUTS.numpy(), 0.1)
    with pytest.raises(RobustnessError, match="inputs must be a torch tensor"):
        attack_distances(model(), INPUTS.tolist(), LABELS, [0.1])
    for radii in ([], "near", None, 0.1, [None], [[1, 2]], [1j], [10**400]):
        with pytest.raises(RobustnessError, match="at least one radius"):
            attack_distances(model(), INPUTS, LABELS, radii)


def test_attack_distances_refuse_labels_that_are_not_one_an_input() -> None:
    for labels in (LABELS[:2], torch.zeros(5, dtype=torch.int64), torch.tensor(0), None, [0, 0, 0]):
        with pytest.raises(RobustnessError, match="labels must be"):
            attack_distances(model(), INPUTS, labels, [0.1])


def test_whole_numbers_and_labels_of_any_kind_are_taken() -> None:
    net, wanted = model(), Certifier.of(model(), INPUTS[:1]).margins(INPUTS, LABELS)
    for number in (np.int64, np.uint8, torch.tensor):
        found = Certifier.of(net, INPUTS[:1]).margins(INPUTS, LABELS, batch_size=number(2))
        assert (found == wanted).all()
        pgd(net, INPUTS, LABELS, RADII, steps=number(1), restarts=number(1), seed=number(1))
        lipschitz(net, INPUTS[:1], samples=number(1), iterations=number(2), seed=number(3))
    kinds = (torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.bool)
    loss = MarginLoss(net, INPUTS[:1], 0.5)
    logits, truth = net(torch.randn(2, 4)).detach(), torch.tensor([1, 0])
    plain = float(loss(logits, truth).detach())
    for kind in (*kinds, torch.uint8):
        assert (Certifier.of(net, INPUTS[:1]).margins(INPUTS, LABELS.to(kind)) == wanted).all()
        pgd(net, INPUTS, LABELS.to(kind), RADII.numpy()[::-1], steps=1, restarts=1)
        loss.restart()
        assert float(loss(logits, truth.to(kind)).detach()) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1], "labels must be a torch tensor"),
        (torch.tensor([0, 2]), r"labels must be integers in \[0, 2\)"),
        (torch.tensor([0]), "labels must be one integer for each of 2 inputs"),
        (torch.tensor([0.0, 1.0]), "labels must be one integer"),
    ],
)
def test_a_margin_loss_refuses_labels(labels: Any, told: str) -> None:
    loss = MarginLoss(model(), INPUTS[:1], 0.5)
    with pytest.raises(RobustnessError, match=told):
        loss(torch.zeros(2, 2), labels)
    for radius in (-1.0, float("nan"), float("inf"), "wide"):
        with pytest.raises(RobustnessError, match="radius must be at least 0 and finite"):
            loss(torch.zeros(2, 2), torch.tensor([0, 1]), radius=radius)
    with pytest.raises(RobustnessError, match="logits must be"):
        loss(torch.zeros(2), torch.tensor([0, 1]))


def test_a_margin_loss_refuses_what_it_cannot_train() -> None:
    for what in (None, nn.Linear, model().state_dict()):
        with pytest.raises(RobustnessError, match=r"model must be a torch\.nn\.Module"):
            MarginLoss(what, INPUTS[:1], 0.5)
    with pytest.raises(RobustnessError, match="no parameters"):
        MarginLoss(nn.Flatten().eval(), INPUTS[:1], 0.5)


def test_search_effort_is_a_finite_number() -> None:
    for work in (float("nan"), float("inf"), -1, "much", None):
        with pytest.raises(RobustnessError, match="work must be at least 0 and finite"):
            chain_bound([np.eye(3), np.eye(3)], work=work)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (None, "at least one weight matrix, got None"),
        ([np.array([["a"]])], r"weights\[0\] has values that are not finite real numbers"),
        ([], "at least one weight matrix"),
        ([np.ones((2, 3)), np.ones((1, 3))], r"weights\[1\] reads 3 values, but weights\[0\] giv"),
        ([np.ones(3)], r"weights\[0\] must be a numpy array \[out, in\], got \[3\]"),
        ([torch.ones(2, 2)], r"weights\[0\] must be a numpy array \[out, in\], got torch.Tensor"),
        ([np.full((2, 2), np.inf)], r"weights\[0\] has values that are not finite real numbers"),
        ([np.ones((2, 2)) * 1j], r"weights\[0\] has values that are not finite real numbers"),
    ],
)
def test_a_chain_refuses(weights: list[Any], told: str) -> None:
    with pytest.raises(RobustnessError, match=told):
        chain_bound(weights)
