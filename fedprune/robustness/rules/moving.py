"""Operations that move, drop or copy entries: indexing, flips, repetition, shuffles, upsampling.

One rule serves them all. The operation is run on the numbers 1, 2, ... in place of the entries, so
that every entry of the output names the entry it came from (0: none, as in zero padding). Its norm
is then the square root of the largest number of copies of one entry, exactly. A batch of two shows
whether examples stay apart.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.robustness.operations import Function, Operation
from fedprune.robustness.rounding import sqrt_up
from fedprune.robustness.rules._registry import Call, Value, register
from fedprune.robustness.spectral import Norm


def moved(call: Call, name: str, function: Callable[[Tensor], Tensor]) -> Function:
    """Lower a function that only moves, drops or copies the entries of each example.

    Raises:
        UnsupportedOpError: if it mixes examples of the batch or computes anything.
    """
    shape = call.value.shape
    size = math.prod(shape[1:])
    labels = torch.arange(1, 2 * size + 1, dtype=torch.float64).reshape(2, *shape[1:])
    images = function(labels)
    if images.ndim < 2 or len(images) != 2:
        call.refuse("it changes the batch axis")
    first, second = images.flatten(1).round().long()
    shifted = torch.where(first > 0, first + size, 0)
    inside = bool(((first >= 0) & (first <= size)).all())
    if not inside or not torch.equal(shifted, second):
        call.refuse("it mixes the examples of a batch")
    copies = int(torch.bincount(first, minlength=2)[1:].max())
    in_order = torch.equal(first, torch.arange(1, size + 1))
    norm = Norm(_root(copies), "copies of an entry")
    return Function(name, function, norm, keeps_entries=in_order, moves_entries=True)


def _root(count: int) -> float:
    root = math.isqrt(count)
    return float(root) if root * root == count else sqrt_up(count)


def move(name: str, function: Callable[..., Any], call: Call) -> Operation:
    """Lower a call whose first argument is the tensor and whose others are constants."""
    if not call.args or not isinstance(call.args[0], Value):
        call.refuse("its first argument must be the tensor")
    if len(list(call.values())) != 1:
        call.refuse("a parameter depends on the input")
    return moved(call, name, lambda tensor: function(tensor, *call.args[1:], **call.kwargs))


def take(call: Call) -> Operation:
    """Lower x[...] with slices, integers, None, and constant tensors or lists of indices."""
    value, index = call.args
    items = index if isinstance(index, tuple) else (index,)
    if not isinstance(value, Value) or len(list(call.values())) != 1:
        call.refuse("the index depends on the input")
    first = items[0] if items else None
    if not (first is Ellipsis or (isinstance(first, slice) and first == slice(None))):
        call.refuse("it chooses among the examples of the batch")
    return moved(call, "getitem", lambda tensor: tensor[items])


def expand(call: Call) -> Operation:
    """Lower expand(sizes), whatever it says of the batch axis."""
    sizes = call.args[1:]
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if len(sizes) != len(call.value.shape) or sizes[0] not in (1, -1):
        call.refuse("it changes the batch axis")
    return moved(call, "expand", lambda tensor: tensor.expand(-1, *sizes[1:]))


Pieces = list[Function]


def split(call: Call, function: Callable[..., Sequence[Tensor]]) -> Pieces:
    """Lower a function that cuts a tensor into several: one operation a piece."""
    if not call.args or not isinstance(call.args[0], Value) or len(list(call.values())) != 1:
        call.refuse("its first argument must be the tensor and the others constants")

    def piece(number: int, tensor: Tensor) -> Tensor:
        return function(tensor, *call.args[1:], **call.kwargs)[number]

    whole = torch.empty(call.value.shape, dtype=torch.float64)
    count = len(function(whole, *call.args[1:], **call.kwargs))
    return [moved(call, call.label, partial(piece, number)) for number in range(count)]


SPLITTERS: dict[Any, Callable[..., Sequence[Tensor]]] = {
    torch.chunk: torch.chunk, torch.split: torch.split, torch.unbind: torch.unbind,
    torch.tensor_split: torch.tensor_split,
    "chunk": torch.chunk, "split": torch.split, "unbind": torch.unbind,
    "tensor_split": torch.tensor_split,
}  # fmt: skip


def as_module(name: str, call: Call) -> Operation:
    """Lower a module without weights by running it."""
    module: Any = call.module
    return moved(call, name, module.forward)


def upsample(call: Call) -> Operation:
    """Lower nn.Upsample in its nearest modes, or pass on to `interpolate`."""
    module: Any = call.module
    kwargs = {
        "size": module.size,
        "scale_factor": module.scale_factor,
        "mode": module.mode,
        "align_corners": module.align_corners,
    }
    if module.recompute_scale_factor:
        kwargs["recompute_scale_factor"] = True
    return interpolate(Call(call.node, call.label, (call.value,), kwargs))


def interpolate(call: Call) -> Operation:
    """Lower torch.nn.functional.interpolate in the modes nearest and nearest-exact."""
    mode = call.kwargs.get("mode", call.args[3] if len(call.args) > 3 else "nearest")
    if mode in ("nearest", "nearest-exact"):
        return move("interpolate", functional.interpolate, call)
    return call.refuse(f"mode {mode!r} has no rule: nearest and nearest-exact have")


_MOVERS: tuple[tuple[str, Any, tuple[Any, ...], tuple[str, ...]], ...] = (
    ("flip", torch.flip, (torch.flip,), ("flip",)),
    ("roll", torch.roll, (torch.roll,), ("roll",)),
    ("repeat", Tensor.repeat, (), ("repeat",)),
    ("tile", torch.tile, (torch.tile,), ("tile",)),
    ("repeat_interleave", torch.repeat_interleave, (torch.repeat_interleave,),
     ("repeat_interleave",)),
    ("index_select", torch.index_select, (torch.index_select,), ("index_select",)),
    ("narrow", torch.narrow, (torch.narrow,), ("narrow",)),
    ("select", torch.select, (torch.select,), ("select",)),
    ("movedim", torch.movedim, (torch.movedim, torch.moveaxis), ("movedim", "moveaxis")),
    ("unflatten", torch.unflatten, (torch.unflatten,), ("unflatten",)),
    ("tril", torch.tril, (torch.tril,), ("tril",)),
    ("triu", torch.triu, (torch.triu,), ("triu",)),
    ("diagonal", torch.diagonal, (torch.diagonal,), ("diagonal",)),
    ("pixel_shuffle", functional.pixel_shuffle, (functional.pixel_shuffle,), ()),
    ("pixel_unshuffle", functional.pixel_unshuffle, (functional.pixel_unshuffle,), ()),
    ("channel_shuffle", functional.channel_shuffle, (functional.channel_shuffle,), ()),
    ("unfold", functional.unfold, (functional.unfold,), ()),
)  # fmt: skip

_MODULES: tuple[tuple[str, type[nn.Module]], ...] = (
    ("pixel_shuffle", nn.PixelShuffle),
    ("pixel_unshuffle", nn.PixelUnshuffle),
    ("channel_shuffle", nn.ChannelShuffle),
    ("unfold", nn.Unfold),
    ("unflatten", nn.Unflatten),
)

for _name, _function, _functions, _methods in _MOVERS:
    register(partial(move, _name, _function), functions=_functions)
    for _method in _methods:  # methods take sizes and axes one by one as well
        register(partial(move, _name, getattr(Tensor, _method)), methods=(_method,))
for _name, _module in _MODULES:
    register(partial(as_module, _name), modules=(_module,))
register(take, functions=(operator.getitem,))
register(expand, methods=("expand",))
register(interpolate, functions=(functional.interpolate,))
register(upsample, modules=(nn.Upsample, nn.UpsamplingNearest2d))
