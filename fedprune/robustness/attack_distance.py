"""How near to each example an attack finds an input that the model does not give its label.

A certified radius is a bound from below on the distance to the nearest such input, this is one
from above: the truth lies between them, and their distance is how loose the two are together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.robustness.arguments import as_floats, check_inputs, check_labels
from fedprune.robustness.attack import AttackResult, pgd
from fedprune.robustness.model_checks import private_copy
from fedprune.robustness.network import Std
from fedprune.robustness.ranges import Range

BATCH = 64
"""Examples attacked side by side: what a passing network keeps in float64 grows with them."""

HALVINGS = 12
"""Of the line from an example to the input found, whose crossing is looked for."""


def attack_distances(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    *,
    steps: int = 20,
    restarts: int = 1,
    input_std: Std | None = None,
    input_range: Range | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Attack balls of growing radius and shorten what breaks an example by bisection.

    Args:
        model: classifier in eval mode, logits [n, classes]; it is not changed.
        inputs: [n, ...] as the model receives them.
        labels: [n] integer classes.
        radii: of the balls, in units of the unnormalised input; each of at least 0.
        steps: of every attack.
        restarts: of every attack.
        input_std: [channels] of the normalisation in front of the model, or None.
        input_range: as for `pgd`.
        seed: of random starts.

    Returns:
        [n] l2 distance of the nearest input found, before normalisation: 0 where the example
        itself is not given its label (a tie counts), infinite where every attack failed.

    Raises:
        RobustnessError: as for `pgd`, or if there are no radii.
    """
    given = as_floats(radii)
    if given is None or given.ndim != 1 or len(given) == 0:
        raise RobustnessError(f"attack_distances needs at least one radius, got {radii!r:.60}")
    check_inputs(inputs, "inputs")
    labels = check_labels(labels, len(inputs), None)
    attack = partial(
        pgd, model, steps=steps, restarts=restarts, input_std=input_std, input_range=input_range,
        seed=seed,
    )  # fmt: skip
    found = np.full(len(inputs), np.inf)
    for start in range(0, max(1, len(inputs)), BATCH):
        rows = slice(start, start + BATCH)
        for radius in sorted({0.0, *given.tolist()}):
            left = torch.from_numpy(start + np.flatnonzero(np.isinf(found[rows])))
            if radius == 0 or len(left):
                near = _nearest(model, attack, inputs[left], labels[left], radius)
                found[left.numpy()] = near.numpy()
    return found


def _nearest(
    model: nn.Module, attack: partial[AttackResult], inputs: Tensor, labels: Tensor, radius: float
) -> Tensor:
    """Distances, [n], at which an attack of one radius breaks examples; else infinite."""
    result = attack(inputs, labels, torch.full((len(inputs),), radius, dtype=torch.float64))
    broken = result.success
    shares = _crossings(model, inputs[broken], result.adversarial[broken], labels[broken])
    distances = torch.full((len(inputs),), torch.inf, dtype=torch.float64)
    distances[broken] = result.distance[broken] * shares
    return distances


def _crossings(model: nn.Module, start: Tensor, end: Tensor, labels: Tensor) -> Tensor:
    """Share of the way, [n], after which the model no longer gives the label; 1 at the end."""
    high = torch.ones(len(start), dtype=torch.float64)
    if not len(start):
        return high
    double = private_copy(model)
    low = torch.zeros_like(high)
    start = start.detach().to(device="cpu", dtype=torch.float64)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        point = start + middle.reshape(-1, *[1] * (start.ndim - 1)) * (end - start)
        wrong = _is_wrong(double, point, labels.cpu().long())
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return high


def _is_wrong(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Whether another class is at least as likely, [n]."""
    with torch.no_grad():
        logits = model(inputs)
    truth = logits.gather(1, labels[:, None])
    hidden = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    wrong: Tensor = (logits.masked_fill(hidden, -torch.inf) >= truth).any(dim=1)
    return wrong
