"""Running somebody's model for a measurement and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError


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


def run(name: str, model: nn.Module, example: Tensor) -> None:
    """Run a model and drop what it says.

    Raises:
        ModelError: if it cannot process the example.
    """
    try:
        model(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{name} cannot process an example of shape {list(example.shape)}: {reason}"
        ) from error


def batch_of(example_input: Tensor, batch_size: int) -> Tensor:
    """Repeat an example's rows to fill a batch, [batch_size, ...].

    Raises:
        ModelError: if there is no row.
    """
    check_example(example_input)
    return example_input[torch.arange(batch_size) % len(example_input)]


def check_example(example_input: object) -> None:
    """Refuse what is no batch of at least one example.

    Raises:
        ModelError: saying what was given.
    """
    if not isinstance(example_input, Tensor):
        raise ModelError(
            f"an example input must be one tensor [batch, ...], got {type(example_input).__name__}"
        )
    if example_input.ndim == 0 or len(example_input) == 0:
        raise ModelError(
            f"an example input must have at least one example, got shape "
            f"{list(example_input.shape)}"
        )
