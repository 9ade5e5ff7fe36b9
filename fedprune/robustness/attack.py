"""l2 attacks that try to break a certificate: projected gradients and direct searches.

An attack that succeeds inside a certified ball proves the certificate wrong; one that fails proves
nothing. Everything runs in float64, so that a success is not an artefact of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.randomness import SimulationRandomness
from fedprune.robustness.arguments import as_floats, check_inputs, check_labels, check_whole, kind
from fedprune.robustness.model_checks import (
    FAILURES,
    check_eval_mode,
    check_weights,
    private_copy,
)
from fedprune.robustness.network import Std, input_scale
from fedprune.robustness.ranges import Range, check_range

INSIDE = 1 - 1e-9
"""Perturbations are shortened by this factor, so that rounding does not push them outside."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, example by example.

    Attributes:
        adversarial: [n, ...] float64, the worst inputs found inside the ball.
        success: [n] bool, True where that input is not given the label (ties count as success).
        distance: [n] float64, l2 length of the perturbation before normalisation.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor


@torch.inference_mode(False)
def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radii: Tensor,
    *,
    steps: int = 100,
    restarts: int = 10,
    input_std: Std | None = None,
    input_range: Range | None = None,
    seed: int = 0,
) -> AttackResult:
    """Attack with projected gradient ascent on the logit margin (Madry et al., ICLR 2018).

    Args:
        model: classifier in eval mode, logits [n, classes]; it is not changed.
        inputs: [n, ...] as the model receives them.
        labels: [n] integer classes.
        radii: [n] radius of each example's ball, in units of the unnormalised input.
        steps: gradient steps of length 2.5 radius / steps in each restart.
        restarts: the first starts at the input, the others at random points of the ball.
        input_std: [channels] of the normalisation in front of the model, or None.
        input_range: lowest and highest value that the model's inputs can have, numbers or
            [channels]; inputs must lie inside and are kept there. None: anywhere.
        seed: of the random starts.

    Raises:
        RobustnessError: if shapes do not match, a radius is negative or not finite, labels are not
            classes, an input lies outside the range, the model is in train mode or has weights
            that are not finite, or there are no steps or restarts.
    """
    steps = check_whole(steps, "steps", 1)  # an attack that does not move says nothing
    restarts = check_whole(restarts, "restarts", 1)
    search = _Search.of(model, inputs, labels, radii, input_std, input_range, seed)
    for restart in range(restarts):
        moved = search.random_start() if restart else torch.zeros_like(search.inputs)
        for _ in range(steps):
            ascent = _unit(search.gradient(moved))
            moved = search.project(moved + ascent * search.spread(2.5 * search.radii / steps))
            search.keep(moved)
    return search.result()


@torch.inference_mode(False)
def direct_search(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radii: Tensor,
    *,
    steps: int = 100,
    input_std: Std | None = None,
    input_range: Range | None = None,
    seed: int = 0,
) -> AttackResult:
    """Attack by walking to the surface towards each class, then by random moves kept if good.

    The walk follows the gradient of one logit difference with ever smaller steps, as DeepFool
    does; the random moves need no gradient and so are not fooled by flat regions. Arguments and
    errors as for `pgd`; `steps` counts the moves of either part.
    """
    steps = check_whole(steps, "steps", 1)
    search = _Search.of(model, inputs, labels, radii, input_std, input_range, seed)
    for target in range(search.num_classes):
        moved = torch.zeros_like(search.inputs)
        for step in range(max(1, steps // 10)):
            ascent = _unit(search.gradient(moved, target))
            moved = search.project(moved + ascent * search.spread(search.radii / (1 + step)))
            search.keep(moved)
    for step in range(steps):
        share = 0.5 * (1 - step / steps) + 1e-3
        noise = search.random_start() * share
        search.keep(search.to_surface(search.best + noise))
    return search.result()


class _Search:
    """The best perturbation so far, in unnormalised units, for every example of a batch."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, radii: Tensor, factor: Tensor,
        limits: tuple[Tensor, Tensor] | None, seed: int,
    ) -> None:  # fmt: skip
        self._model, self.inputs = model, inputs
        self.radii, self._factor, self._limits = radii, factor, limits
        draw = SimulationRandomness(seed, "robustness", "attack").torch_seed()
        self._generator = torch.Generator().manual_seed(draw)
        self.num_classes = _num_classes(model, inputs)
        self._labels = check_labels(labels, len(inputs), self.num_classes).cpu()
        self.best = torch.zeros_like(inputs)
        self._score = self._excess(self.best)

    @classmethod
    def of(
        cls, model: nn.Module, inputs: Tensor, labels: Tensor, radii: Tensor, input_std: Std | None,
        input_range: Range | None, seed: int,
    ) -> _Search:  # fmt: skip
        check_inputs(inputs, "inputs")
        lengths = _lengths(radii, len(inputs))
        seed = check_whole(seed, "seed", 0)
        check_eval_mode(model)
        check_weights(model)
        double = private_copy(model)
        points = inputs.detach().to(device="cpu", dtype=torch.float64, copy=True)
        factor = input_scale(input_std, tuple(points.shape))
        factor = torch.ones(points.shape[1:], dtype=torch.float64) if factor is None else factor
        limits = None if input_range is None else check_range(points, input_range)
        return cls(double, points, labels, lengths, factor, limits, seed)

    def spread(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.inputs.ndim - 1))

    def project(self, moved: Tensor) -> Tensor:
        lengths = moved.flatten(1).norm(dim=1).clamp_min(1e-300)
        return self.inside(moved * self.spread((self.radii * INSIDE / lengths).clamp_max(1.0)))

    def to_surface(self, moved: Tensor) -> Tensor:
        return self.inside(_unit(moved) * self.spread(self.radii * INSIDE))

    def inside(self, moved: Tensor) -> Tensor:
        """Keep the moved inputs in their range; no entry moves further than before."""
        if self._limits is None:
            return moved
        point = torch.clamp(self.inputs + moved * self._factor, *self._limits)
        return (point - self.inputs) / self._factor

    def random_start(self) -> Tensor:
        noise = torch.randn(self.inputs.shape, generator=self._generator, dtype=torch.float64)
        shares = torch.rand(len(noise), generator=self._generator, dtype=torch.float64)
        power = 1 / noise[0].numel()
        return self.inside(_unit(noise) * self.spread(self.radii * INSIDE * shares**power))

    def gradient(self, moved: Tensor, target: int | None = None) -> Tensor:
        """Gradient of (target or best other logit) minus the label's, by the perturbation."""
        with torch.enable_grad():
            point = moved.detach().clone().requires_grad_(True)
            logits = self._logits(point)
            excess = _excess(logits, self._labels, target)
            (slope,) = torch.autograd.grad(excess.sum(), point)
        return slope

    def keep(self, moved: Tensor) -> None:
        """Take over the perturbations that are worse for the model than the best so far."""
        score = self._excess(moved)
        better = score > self._score
        self._score = torch.where(better, score, self._score)
        self.best = torch.where(self.spread(better), moved, self.best)

    def result(self) -> AttackResult:
        adversarial = self.inputs + self.best * self._factor
        distance = self.best.flatten(1).norm(dim=1)
        return AttackResult(adversarial, self._score >= 0, distance)

    def _logits(self, moved: Tensor) -> Tensor:
        logits: Tensor = self._model(self.inputs + moved * self._factor)
        return logits

    def _excess(self, moved: Tensor) -> Tensor:
        with torch.no_grad():
            return _excess(self._logits(moved), self._labels, None)


def _lengths(radii: Tensor, count: int) -> Tensor:
    """Radii as [n] float64."""
    lengths = as_floats(radii)
    if lengths is None:
        raise RobustnessError(f"radii must be {count} numbers, got {radii!r:.60}")
    if lengths.shape != (count,):
        raise RobustnessError(
            f"radii must be one number for each of {count} inputs, got {list(lengths.shape)}"
        )
    if not bool((torch.isfinite(lengths) & (lengths >= 0)).all()):
        raise RobustnessError("every radius must be finite and at least 0")
    return lengths


def _num_classes(model: nn.Module, inputs: Tensor) -> int:
    """Count the classes; a comparison with NaN would pass for an attack that failed."""
    try:
        with torch.no_grad():
            logits = model(inputs)
    except FAILURES as error:
        raise RobustnessError(
            f"the model cannot be run in float64 on inputs of shape {list(inputs.shape)}: {error}"
        ) from error
    if not isinstance(logits, Tensor):
        raise RobustnessError(f"the model must return one tensor, got {kind(logits)}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise RobustnessError(
            f"an attack needs logits [n, classes] with at least 2 classes, got {list(logits.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise RobustnessError("the model gives values that are not finite on these inputs")
    return int(logits.shape[1])


def _excess(logits: Tensor, labels: Tensor, target: int | None) -> Tensor:
    truth = logits.gather(1, labels[:, None])[:, 0]
    if target is not None:
        return logits[:, target] - truth
    hidden = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(hidden, -torch.inf).amax(dim=1) - truth


def _unit(moved: Tensor) -> Tensor:
    lengths = moved.flatten(1).norm(dim=1).clamp_min(1e-300)
    unit: Tensor = moved / lengths.reshape(-1, *[1] * (moved.ndim - 1))
    return unit
