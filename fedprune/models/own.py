"""A user's own network, named "package.module:function"."""

from __future__ import annotations

from torch import nn

from fedprune.errors import FedpruneError, ModelError
from fedprune.models.checks import one_line
from fedprune.named import function_named


def build_own(reference: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Call the user's `build(input_shape, num_classes)`.

    What it draws from torch's default generator is reproducible under the seed of `load`; a
    generator of any other library is its own affair.

    Args:
        reference: "package.module:function"; the current folder is looked in first.
        input_shape: of one example.
        num_classes: width of the output.

    Raises:
        ConfigError: if there is no such function.
        ModelError: if it fails, or gives something else than a `torch.nn.Module`.
    """
    build = function_named(reference, "model.name")
    try:
        model = build(input_shape, num_classes)
    except FedpruneError:
        raise
    except Exception as error:  # what a user's function may raise cannot be listed
        raise ModelError(
            f"model.name = {reference!r} fails as a function of input_shape {list(input_shape)} "
            f"and num_classes {num_classes}: {one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.name = {reference!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model
