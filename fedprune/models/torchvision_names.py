"""torchvision's classifiers by name, without weights of their own: nothing is ever downloaded.

https://pytorch.org/vision/stable/models.html. torchvision is imported when it is first needed: it
takes longer to import than the rest of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.models.checks import one_line

INPUT_SHAPE = (3, 224, 224)  # of torchvision's published weights, most of them

Sides = tuple[int, int]


@cache
def torchvision_names() -> tuple[str, ...]:
    """List the classifiers that the installed torchvision knows."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(name: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build torchvision's classifier `name` with fresh weights; it overwrites no tensor in place.

    Auxiliary heads, which serve only to train a network from nothing, are left out.

    Args:
        name: one of `torchvision_names()`.
        input_shape: [3, H, W].
        num_classes: width of the output.

    Raises:
        ModelError: if the input is no image of three channels or its size does not suit.
    """
    import torchvision

    from fedprune.models.out_of_place import out_of_place

    if len(input_shape) != 3 or input_shape[0] != 3:
        raise ModelError(
            f"torchvision's {name} wants input_shape [3, H, W], got {list(input_shape)}; for other "
            'inputs write a function of your own, "package.module:function"'
        )
    builder = torchvision.models.get_model_builder(name)
    options = _options(name, (input_shape[1], input_shape[2]))
    try:
        return out_of_place(builder(weights=None, num_classes=num_classes, **options))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"torchvision's {name} does not take images of shape {list(input_shape)}: "
            f"{one_line(error)}"
        ) from error


def without_auxiliary_heads(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out of a published state what belongs to the auxiliary heads of `name`."""
    heads = _AUXILIARY.get(name, ())
    return {key: tensor for key, tensor in state.items() if not key.startswith(heads or "\0")}


_AUXILIARY: dict[str, tuple[str, ...]] = {
    "googlenet": ("aux1.", "aux2."),
    "inception_v3": ("AuxLogits.",),
}


def _without_heads(_name: str, _sides: Sides) -> dict[str, Any]:
    return {"aux_logits": False, "init_weights": True}


def _square(name: str, sides: Sides) -> dict[str, Any]:
    if sides[0] != sides[1]:
        raise ModelError(f"torchvision's {name} wants square images, got {sides[0]} x {sides[1]}")
    return {"image_size": sides[0]}


def _both_sides(_name: str, sides: Sides) -> dict[str, Any]:
    return {"input_size": sides}


_OPTIONS: dict[str, Callable[[str, Sides], dict[str, Any]]] = {
    "googlenet": _without_heads,
    "inception": _without_heads,
    "vit": _square,
    "maxvit": _both_sides,
}


def _options(name: str, sides: Sides) -> dict[str, Any]:
    """Give the constructor's further arguments, by the family that a name begins with."""
    family = name.partition("_")[0]
    return _OPTIONS[family](name, sides) if family in _OPTIONS else {}
