from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedprune.directions import step_along


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_of_the_outputs_is_the_direction_to_the_bit(dtype: torch.dtype) -> None:
    outputs = torch.randn(7, 5, dtype=dtype).requires_grad_(True)
    direction = torch.randn(7, 5, dtype=dtype)
    direction[0, 0] = -0.0
    with torch.no_grad():
        product = step_along(outputs, direction)
    (gradient,) = torch.autograd.grad(product, outputs)
    assert (gradient.view(torch.uint8) == direction.view(torch.uint8)).all()


def test_it_is_what_autograd_says_of_a_direction_that_is_handed_in() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))
    inputs = torch.randn(3, 1, 8, 8, requires_grad=True)
    direction = torch.randn(3, 10)
    (ours,) = torch.autograd.grad(step_along(network(inputs), direction), inputs)
    (torchs,) = torch.autograd.grad(network(inputs), inputs, direction)
    assert torch.equal(ours, torchs)


def test_outputs_that_are_not_finite_do_no_harm() -> None:
    outputs = torch.tensor([torch.inf, torch.nan, 1.0], requires_grad=True)
    direction = torch.tensor([0.0, 2.0, 3.0])
    (gradient,) = torch.autograd.grad(step_along(outputs, direction), outputs)
    assert torch.equal(gradient, direction)


FRESH_PROCESS = """
import sys
import torch
known = "sympy" in sys.modules
from fedprune import models
from fedprune.pruning.scores.scoring import score_clients
from fedprune.robustness import lipschitz
from fedprune.runs import Architecture
network = models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=1)
layout = Architecture.dense("lenet", 10, (1, 8, 8)).dense_layout
inputs, labels, clients = torch.rand(8, 1, 8, 8), torch.arange(8), torch.arange(8) // 4
for criterion in ("taylor", "linear_logits"):
    score_clients(network, layout, inputs, labels, clients, criterion, seed=1)
lipschitz(network, inputs[:1], lower_inputs=inputs)
print(known, "sympy" in sys.modules)
"""


def test_scores_and_bounds_do_not_import_sympy() -> None:
    made = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, check=True
    )
    known, imported = made.stdout.split()
    assert imported == known
