"""DP-SGD (Abadi et al. 2016) in whole numbers: clip, sum, add noise, and only then learn.

Each step draws every record by a coin of its own, puts each clipped gradient on a grid of whole
units rounding towards zero, sums them exactly and adds integer noise of a fixed standard deviation
of SIGMA units; the clipping norm is floor(SIGMA / noise_multiplier) units. One record more or less
changes the sum by a vector no longer than that. What follows (scaling by public constants,
momentum, weight decay) uses noised sums only.

What this protects: the released weights are a function of sums on a grid plus noise whose
distribution is a rounded Gaussian's (see `fedprune.privacy.mechanisms.gaussian_noise`), so their
bits carry nothing beyond what is accounted. What it takes for granted: that a record's own
gradient, which is computed in floating point, does not depend on the other records (see
`per_record`). The time that a step takes grows with the number of records drawn and is not
protected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from fedprune.config import LARGEST_NOISE_MULTIPLIER, LEAST_NOISE_MULTIPLIER
from fedprune.errors import PrivacyError
from fedprune.federated.per_record import PerRecordGradients
from fedprune.privacy.budgets.events import SubsampledGaussianEvent
from fedprune.privacy.mechanisms.gaussian_noise import MEAN, SIGMA, gaussian_units
from fedprune.privacy.mechanisms.poisson import PoissonSampling
from fedprune.randomness import Randomness

_ALLOWANCE = 1 - 2.0**-20  # rounding in a norm over up to 2^30 numbers is far below 2^-20
_MOST_PARAMETERS = 2**30


@dataclass(frozen=True)
class PrivateTraining:
    """How a client trains in one round; all of it is public and none depends on data.

    Attributes:
        steps: how many; fixed.
        sample_rate: probability with which each record joins each step.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        max_grad_norm: Euclidean norm to which each record's gradient is clipped.
        batch_size: what each noised sum is divided by, however many records were drawn.
        learning_rate, momentum, weight_decay: of the descent along the noised gradients.
    """

    steps: int
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be accounted.

        Raises:
            PrivacyError: if a parameter is out of range.
        """
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise PrivacyError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        low, high = LEAST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER
        if not low <= self.noise_multiplier <= high:
            raise PrivacyError(
                f"noise_multiplier must be in [{low:g}, {high:g}], got {self.noise_multiplier!r}"
            )
        if not 0 < self.max_grad_norm < math.inf:
            raise PrivacyError(
                f"max_grad_norm must be above 0 and finite, got {self.max_grad_norm!r}"
            )
        self.sampling  # noqa: B018 (refuses a rate out of range)

    @property
    def sampling(self) -> PoissonSampling:
        """The coins as they are really tossed."""
        return PoissonSampling(self.sample_rate)

    @property
    def clip_units(self) -> int:
        """The clipping norm in units, rounded down exactly: never less noise than asked for."""
        return math.floor(SIGMA / Fraction(self.noise_multiplier))

    @property
    def event(self) -> SubsampledGaussianEvent:
        """What one round releases about one client's records."""
        return SubsampledGaussianEvent(
            self.noise_multiplier, self.sampling.accounted_rate, self.steps
        )


def train_privately(
    gradients: PerRecordGradients,
    inputs: Tensor,
    labels: Tensor,
    how: PrivateTraining,
    rng: Randomness,
) -> None:
    """Train the network of `gradients` in place for one round.

    Should a step make the weights overflow, training ends with the weights before it.

    Args:
        gradients: the network with the weights to start from.
        inputs: [records, *input_shape] float32; there may be no record.
        labels: [records] int64.
        how: the public settings.
        rng: coins and noise are drawn from it.

    Raises:
        PrivacyError: if the network is larger than the arithmetic here allows for.
    """
    if gradients.size > _MOST_PARAMETERS:
        raise PrivacyError(
            f"training under privacy is for up to {_MOST_PARAMETERS} parameters, got "
            f"{gradients.size}"
        )
    optimizer = torch.optim.SGD(
        gradients.trainable,
        lr=how.learning_rate,
        momentum=how.momentum,
        weight_decay=how.weight_decay,
    )
    for _ in range(how.steps):
        chosen = torch.from_numpy(how.sampling.draw(len(labels), rng))
        total = clipped_sum(gradients, inputs[chosen], labels[chosen], how)
        noise = torch.from_numpy(gaussian_units(gradients.size, rng))
        if not _descend(gradients, optimizer, (total + noise).double() - MEAN, how):
            return


def clipped_sum(
    gradients: PerRecordGradients, inputs: Tensor, labels: Tensor, how: PrivateTraining
) -> Tensor:
    """Sum the clipped gradients of a batch, exactly, in units: [size] int64."""
    total = torch.zeros(gradients.size, dtype=torch.int64)
    for part in gradients.passes(inputs, labels):
        total += clip(part, how.max_grad_norm, how.clip_units).sum(dim=0)
    return total


def clip(gradients: Tensor, max_grad_norm: float, clip_units: int) -> Tensor:
    """Clip each row to a Euclidean norm and write it in whole units.

    Rounding is towards zero and the scale errs by 2^-20 on the safe side, so the norm of what
    comes out is at most `clip_units`, exactly. A row that is not finite becomes zero.

    Args:
        gradients: [records, size] floating point.
        max_grad_norm: the norm that rows are clipped to.
        clip_units: the same norm in units.

    Returns:
        [records, size] int64.
    """
    rows = gradients.double()
    norms = rows.norm(dim=1, keepdim=True)
    scale = clip_units * _ALLOWANCE / norms.clamp(min=max_grad_norm)
    units: Tensor = (rows * scale).where(norms.isfinite(), 0.0).trunc().long()
    return units


def _descend(
    gradients: PerRecordGradients, optimizer: torch.optim.SGD, units: Tensor, how: PrivateTraining
) -> bool:
    """Take one step along a noised sum; tell whether the weights are still finite."""
    before = [parameter.detach().clone() for parameter in gradients.trainable]
    mean = (units * (how.max_grad_norm / how.clip_units / how.batch_size)).float()
    parts = torch.split(mean, [parameter.numel() for parameter in gradients.trainable])
    for parameter, part in zip(gradients.trainable, parts, strict=True):
        parameter.grad = part.reshape(parameter.shape)
    optimizer.step()
    if all(bool(parameter.isfinite().all()) for parameter in gradients.trainable):
        return True
    with torch.no_grad():
        for parameter, old in zip(gradients.trainable, before, strict=True):
            parameter.copy_(old)
    return False
