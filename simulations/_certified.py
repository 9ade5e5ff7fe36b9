"""What the studies of certificates share: training with margins, and what a network can promise.

Not a study itself.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import _study as study
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import models, pruning, robustness
from fedprune.pruning import weights

BATCH = 64


def add_options(made: argparse.ArgumentParser, model: str = "mlp") -> argparse.ArgumentParser:
    """Options of data, network and the size of images."""
    study.add_problem(made, model)
    made.add_argument(
        "--side", type=int, default=0, help="resize images to this side, such as 28 (default: not)"
    )
    return made


def asked(arguments: argparse.Namespace) -> study.Problem:
    """The problem that the options name, its images resized if asked."""
    task = study.asked_problem(arguments)
    if not arguments.side:
        return task
    side = arguments.side
    inputs = resized(task.inputs, side)
    shape = tuple(inputs.shape[1:])
    network = models.load(task.name, num_classes=task.num_classes, input_shape=shape, seed=0)
    layout = pruning.UnitLayout.of(network, inputs[:2])
    tested = resized(task.test_inputs, side)
    return replace(task, inputs=inputs, test_inputs=tested, layout=layout)


def resized(images: Tensor, side: int) -> Tensor:
    """Bilinear, channel by channel."""
    return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def train(
    model: nn.Module,
    task: study.Problem,
    *,
    radius: float,
    epochs: float,
    seed: int,
    rate: float = 0.003,
    masks: weights.StudyMasks | None = None,
    ramp: float = 0.5,
) -> nn.Module:
    """Train a copy by Adam with a cosine rate; the margin's radius grows over a share `ramp`.

    Args:
        model: where training begins; it is not changed.
        task: the rows.
        radius: of `robustness.MarginLoss`; 0 is cross-entropy.
        epochs: passes over the rows.
        seed: of the rows' order.
        rate: the first learning rate.
        masks: weights that stay; the others are held at zero.
        ramp: share of the steps over which the radius grows from 0.
    """
    trained = copy.deepcopy(model).train()
    loss_of = robustness.MarginLoss(trained, task.inputs[:1], radius) if radius else None
    descent = torch.optim.Adam(trained.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, round(epochs * len(task.inputs) / BATCH))
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < 2:
            order = torch.randperm(len(task.inputs), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        for settings in descent.param_groups:
            settings["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = trained(task.inputs[rows])
        if loss_of is None:
            loss = functional.cross_entropy(logits, task.labels[rows])
        else:
            share = min(1.0, (step + 1) / max(1.0, ramp * steps))
            loss = loss_of(logits, task.labels[rows], radius=radius * share)
        descent.zero_grad()
        loss.backward()
        descent.step()
        if masks is not None:
            weights.hold_at_zero_(trained, masks)
    return trained.eval()


def promises(
    model: nn.Module, task: study.Problem, radii: Sequence[float], attacked: int, seed: int
) -> dict[str, Any]:
    """Both sides of what a network can promise: bounds, accuracy, certified accuracy, attacks.

    Args:
        model: in eval mode.
        task: its test rows are counted.
        radii: l2 radii in units of the inputs.
        attacked: test rows that are attacked at each radius.
        seed: of the attack.
    """
    inputs, labels = task.test_inputs, task.test_labels
    bound = robustness.lipschitz(model, inputs[:1], lower_inputs=inputs[:64], seed=seed)
    certifier = robustness.Certifier.of(model, inputs[:1])
    known = certifier.certified_radii(certifier.margins(inputs, labels))
    curve = robustness.certified_curve(known, radii)
    standing = [
        _standing(model, inputs[:attacked], labels[:attacked], radius, seed) for radius in radii
    ]
    checked = robustness.certified_curve(known[:attacked], radii, survived=standing)
    return {
        "accuracy": study.accuracy(model, inputs, labels),
        "upper": bound.upper,
        "lower": bound.lower,
        "ratio": bound.ratio,
        "method": bound.method,
        "alternatives": dict(bound.alternatives),
        "body_upper": certifier.body_upper,
        "body_method": certifier.body_method,
        "radii": list(radii),
        "certified": list(curve.certified),
        "low": list(curve.low),
        "high": list(curve.high),
        "attacked_rows": attacked,
        "left_by_attack": list(checked.found_accurate or ()),
        "certified_of_attacked": list(checked.certified),
    }


def _standing(model: nn.Module, inputs: Tensor, labels: Tensor, radius: float, seed: int) -> Any:
    """Rows that are right and stay right under projected gradients."""
    with torch.inference_mode():
        right = copy.deepcopy(model).double()(inputs.double()).argmax(1) == labels
    sizes = torch.full((len(inputs),), radius)
    attack = robustness.pgd(model, inputs, labels, sizes, steps=20, restarts=2, seed=seed)
    return np.asarray((right & ~attack.success).numpy())


def row(name: str, found: dict[str, Any]) -> str:
    """One line: accuracy, bounds, certified shares."""
    shares = "  ".join(
        f"{radius:g}: {share:.3f} (attack leaves {left:.3f})"
        for radius, share, left in zip(
            found["radii"], found["certified"], found["left_by_attack"], strict=True
        )
    )
    return (
        f"{name:<26} accuracy {found['accuracy']:.3f}  {found['lower']:8.2f} <= L <= "
        f"{found['upper']:8.2f}  certified at {shares}"
    )
