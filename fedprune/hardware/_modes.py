"""Running somebody's model for a measurement and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put models in evaluation mode without gradients, then every module back in its own mode."""
    held = list(models)
    modes = [(module, module.training) for model in held for module in model.modules()]
    try:
        for model in held:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep torch from running a whole attention layer as one opaque operation."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def threads_set_to(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads inside an operation, then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
