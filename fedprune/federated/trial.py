"""What can be found out about a network by trying it once, before any client trains it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.copying import copy_model

_ROWS = 4  # of the batch that a network is tried with
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Traits:
    """What training a network takes.

    Attributes:
        draws: whether it draws random numbers while it trains, as dropout does. torch keeps one
            generator a process for that, so that such clients train one after the other.
        channels_last: whether it takes images whose channels lie together in memory, which the
            convolutions of common processors are faster with.
    """

    draws: bool
    channels_last: bool


def traits_of(model: nn.Module, input_shape: tuple[int, ...]) -> Traits:
    """Try a network on a small batch; the network and torch's random state stay as they are.

    The answer depends on the network alone, so that every process finds the same.
    """
    tried = copy_model(model)
    batch = torch.randn(_ROWS, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        return Traits(_draws(tried, batch), _takes_channels_last(tried, batch))


def _draws(model: nn.Module, batch: Tensor) -> bool:
    """Whether a training step moves torch's generator; in doubt it does."""
    before = torch.random.get_rng_state()
    try:
        _step(model.train(), batch)
    except Exception:  # whatever ails a network is said when a client trains it
        return True
    return not torch.equal(before, torch.random.get_rng_state())


def _takes_channels_last(model: nn.Module, batch: Tensor) -> bool:
    """Whether a network with convolutions computes the same, forwards and backwards."""
    if batch.ndim != 4 or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False
    try:
        usual = _step(model.eval(), batch)
        other = _step(model, batch.to(memory_format=torch.channels_last))
    except Exception:  # such as a view that the order of memory does not allow
        return False
    return all(_alike(a, b) for a, b in zip(usual, other, strict=True))


def _step(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Give the outputs and every gradient of one step."""
    model.zero_grad(set_to_none=True)
    outputs = model(batch)
    labels = torch.arange(len(batch)) % outputs.shape[1]
    nn.functional.cross_entropy(outputs, labels).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [outputs.detach(), *(gradient.detach().clone() for gradient in gradients)]


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = max(float(a.abs().max()), 1e-6) if a.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * scale))
