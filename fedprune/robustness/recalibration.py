"""Batch-norm statistics after surgery, from sums that add up over batches and clients.

Removing units changes what every later layer sees, so the running means and variances of batch
norm no longer fit: accuracy collapses and so does every margin. New ones are moments of what each
batch norm receives, and moments are sums: each client sums over its own examples, the sums of all
clients add up, and the result is what one client with all the data would have found.

Which statistics normalise the layers before? Moments of a layer are right only if the layers
before it already use theirs. Two ways:

* "stored": the statistics in the model. A batch norm whose predecessors are right becomes right,
  so `depth` rounds make all of them exact; a round may ask for some layers only.
* "batch": those of the batch at hand, as in training. One round, not exact: batches should be
  large and mixed, and a client with few or peculiar examples bends what it sees of deep layers.

Sums are taken of x - m, m being the running mean that both sides know, so that variances do not
cancel. A sum of raw activations has no bounded sensitivity; with `clip`, each example contributes
its moments over positions, in units of the stored standard deviation, clipped to [-clip, clip] and
[0, clip^2], and `BatchNormSums.sensitivity` says what one example can change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import RobustnessError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMALISED_BY = ("stored", "batch")


@dataclass(frozen=True)
class BatchNormSums:
    """Additive moments of what batch norms receive, about a model's running means.

    Attributes:
        counts: entries summed in each channel of a layer (examples, with `clip`), by layer.
        sums: [channels] float64 of x - m, by layer; in standard deviations with `clip`.
        squares: [channels] float64 of (x - m)^2, by layer.
        examples: rows that contributed.
        clip: bound on each example's moments, or None.
    """

    counts: Mapping[str, int]
    sums: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]
    examples: int
    clip: float | None = None

    def __add__(self, other: BatchNormSums) -> BatchNormSums:
        """Add the sums of another client or batch.

        Raises:
            RobustnessError: if they are not of the same layers, channels and clip.
        """
        shapes = {name: tuple(total.shape) for name, total in self.sums.items()}
        theirs = {name: tuple(total.shape) for name, total in other.sums.items()}
        if shapes != theirs or self.clip != other.clip:
            raise RobustnessError(
                f"batch-norm sums of {list(theirs)} (clip {other.clip}) cannot be added to those "
                f"of {list(shapes)} (clip {self.clip})"
            )
        return BatchNormSums(
            {name: count + other.counts[name] for name, count in self.counts.items()},
            {name: total + other.sums[name] for name, total in self.sums.items()},
            {name: total + other.squares[name] for name, total in self.squares.items()},
            self.examples + other.examples,
            self.clip,
        )

    @property
    def sensitivity(self) -> float:
        """How far one added example can move all sums and squares together, in l2 norm.

        Infinite without `clip`; counts are public then, or need their own allowance. A batch norm
        that the model uses several times sees each example so often.
        """
        if self.clip is None:
            return math.inf
        squares = sum(
            total.numel() * math.ceil(self.counts[name] / max(1, self.examples)) ** 2
            for name, total in self.sums.items()
        )
        return math.sqrt(squares * (self.clip**2 + self.clip**4))


def batch_norm_layers(model: nn.Module) -> tuple[str, ...]:
    """Name the batch norms with running statistics, in the order of the model's modules."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None
    )


def batch_norm_sums(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    layers: Sequence[str] | None = None,
    normalise: str = "stored",
    clip: float | None = None,
) -> BatchNormSums:
    """Sum the moments of what batch norms receive over a client's own examples.

    Args:
        model: it is not changed; dropout is off.
        batches: inputs [n, ...]; labels are not needed.
        layers: names of batch norms; None for all.
        normalise: "stored" or "batch", see the module's docstring.
        clip: bound in stored standard deviations for each example's moments, or None.

    Raises:
        RobustnessError: no batch norms, unknown layers, no examples, a layer that was not reached,
            activations that are not finite, or an option out of range.
    """
    wanted = _checked(model, layers, normalise, clip)
    own = copy_model(model).eval()
    if normalise == "batch":
        for name in batch_norm_layers(own):
            own.get_submodule(name).train()
    gathered: dict[str, list[tuple[int, Tensor, Tensor]]] = {name: [] for name in wanted}
    references = {name: model.get_submodule(name) for name in wanted}
    examples = 0
    with _watched(own, references, gathered, clip), torch.no_grad():
        for inputs in batches:
            examples += len(inputs)
            own(inputs.clone())
    for name, parts in gathered.items():
        if not parts:
            raise RobustnessError(f"no example reached batch norm {name!r}: nothing can be summed")
    sums = BatchNormSums(
        {name: sum(part[0] for part in parts) for name, parts in gathered.items()},
        {name: torch.stack([part[1] for part in parts]).sum(0) for name, parts in gathered.items()},
        {name: torch.stack([part[2] for part in parts]).sum(0) for name, parts in gathered.items()},
        examples,
        clip,
    )
    for name in wanted:
        if not bool(torch.isfinite(sums.squares[name]).all()):
            raise RobustnessError(f"batch norm {name!r} receives values that are not finite")
    return sums


def recalibrate(model: nn.Module, sums: BatchNormSums) -> nn.Module:
    """Give a copy of a model whose batch norms have the moments of added-up sums.

    Variances are unbiased, as torch's own running ones; with `clip` they are not corrected for it.

    Args:
        model: with the running statistics that the sums were taken about; it is not changed.
        sums: of all clients together; may be noisy, then variances are kept positive.

    Raises:
        RobustnessError: sums of other layers or channels, or not finite, or of fewer than two
            entries.
    """
    result = copy_model(model)
    for name, total in sums.sums.items():
        module = _batch_norm(result, name)
        mean, variance = _statistics(module)
        count = sums.counts[name]
        if tuple(total.shape) != tuple(mean.shape) or count < 2:
            raise RobustnessError(
                f"batch norm {name!r} has {len(mean)} channels, got sums of "
                f"{total.numel()} over {count} entries; at least 2 are needed"
            )
        shift, square = total.double() / count, sums.squares[name].double() / count
        spread = (square - shift**2).clamp_min(0) * (count / (count - 1))
        if sums.clip is not None:
            unit = torch.sqrt(variance.double() + _eps(module))
            shift, spread = shift * unit, spread * unit**2
        if not bool(torch.isfinite(shift).all() and torch.isfinite(spread).all()):
            raise RobustnessError(f"the sums of batch norm {name!r} are not finite")
        mean.copy_(mean.double() + shift)
        variance.copy_(spread)
    return result


def _checked(
    model: nn.Module, layers: Sequence[str] | None, normalise: str, clip: float | None
) -> tuple[str, ...]:
    known = batch_norm_layers(model)
    if not known:
        raise RobustnessError("the model has no batch norm with running statistics")
    wanted = known if layers is None else tuple(layers)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise RobustnessError(f"layers must be among {list(known)}, got {list(wanted)}")
    if normalise not in NORMALISED_BY:
        raise RobustnessError(f"normalise must be one of {NORMALISED_BY}, got {normalise!r}")
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise RobustnessError(f"clip must be positive and finite, got {clip}")
    if clip is not None and normalise == "batch":
        raise RobustnessError(
            "clip cannot be used with normalise='batch', where an example moves what all others of "
            "its batch add to the sums; use normalise='stored'"
        )
    return wanted


@contextmanager
def _watched(
    model: nn.Module,
    references: Mapping[str, nn.Module],
    gathered: dict[str, list[tuple[int, Tensor, Tensor]]],
    clip: float | None,
) -> Iterator[None]:
    """Gather moments from the inputs of batch norms while the model runs."""

    def watch(name: str) -> Any:
        mean, variance = _statistics(references[name])
        scale = torch.sqrt(variance.double() + _eps(references[name])) if clip else None

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            gathered[name].append(_moments(inputs[0], mean.double(), scale, clip))

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(name) for name in gathered]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moments(
    values: Tensor, mean: Tensor, scale: Tensor | None, clip: float | None
) -> tuple[int, Tensor, Tensor]:
    """Entries a channel, sum and sum of squares about the mean: values [n, channels, ...]."""
    moved = values.double().flatten(2) if values.ndim > 2 else values.double()[..., None]
    moved = moved - mean.reshape(1, -1, 1)
    if clip is None or scale is None:
        count = moved.shape[0] * moved.shape[2]
        return count, moved.sum(dim=(0, 2)), torch.square(moved).sum(dim=(0, 2))
    moved = moved / scale.reshape(1, -1, 1)
    first = moved.mean(dim=2).clamp(-clip, clip)
    second = torch.square(moved).mean(dim=2).clamp(0, clip**2)
    return len(moved), first.sum(dim=0), second.sum(dim=0)


def _batch_norm(model: nn.Module, name: str) -> nn.Module:
    if name not in batch_norm_layers(model):
        raise RobustnessError(f"the model has no batch norm {name!r} with running statistics")
    return model.get_submodule(name)


def _statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance


def _eps(module: nn.Module) -> float:
    eps = module.eps
    assert isinstance(eps, float)
    return eps
