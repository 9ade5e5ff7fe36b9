"""Reshapes, permutations and padding; see `moving` for what else moves entries."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedprune.robustness.layer_norms import Axis, Geometry, padding_norm
from fedprune.robustness.operations import Function, Operation, copy_entries
from fedprune.robustness.rules._registry import REQUIRED, Call, register
from fedprune.robustness.spectral import Norm


def flatten(call: Call) -> Operation:
    """Lower flatten(start_dim, end_dim)."""
    first = 1 if call.module is not None else 0
    given = call.attributes(start_dim=first, end_dim=-1)
    size = torch.empty(call.value.shape, device="meta")
    return _reshape(call, size.flatten(given["start_dim"], given["end_dim"]).shape)


def view(call: Call) -> Operation:
    """Lower view and reshape, sizes given one by one or as one tuple."""
    if not call.args or call.kwargs:
        call.refuse("its sizes must be given by position")
    sizes = call.args[1:]
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        sizes = tuple(sizes[0]) if isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    if not all(isinstance(size, int) for size in sizes):
        call.refuse("it reinterprets the entries")
    return _reshape(call, torch.empty(call.value.shape, device="meta").reshape(sizes).shape)


def squeeze(call: Call) -> Operation:
    """Lower squeeze(dim)."""
    dim = call.bind(input=REQUIRED, dim=REQUIRED)["dim"]
    return _reshape(call, torch.empty(call.value.shape, device="meta").squeeze(dim).shape)


def unsqueeze(call: Call) -> Operation:
    """Lower unsqueeze(dim)."""
    dim = call.bind(input=REQUIRED, dim=REQUIRED)["dim"]
    return _reshape(call, torch.empty(call.value.shape, device="meta").unsqueeze(dim).shape)


def permute(call: Call) -> Operation:
    """Lower permute(dims) that leaves the batch axis first."""
    dims = call.args[1:] or tuple(call.kwargs.get("dims", ()))
    order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else tuple(dims)
    rank = len(call.value.shape)
    if not order or order[0] % rank != 0:
        call.refuse("it moves the batch axis")
    return Function("permute", partial(torch.permute, dims=order), Norm(1.0, "exact"))


def transpose(call: Call) -> Operation:
    """Lower transpose(dim0, dim1) of axes other than the batch's."""
    given = call.bind(input=REQUIRED, dim0=REQUIRED, dim1=REQUIRED)
    rank = len(call.value.shape)
    if 0 in (given["dim0"] % rank, given["dim1"] % rank):
        call.refuse("it moves the batch axis")
    function = partial(torch.transpose, dim0=given["dim0"], dim1=given["dim1"])
    return Function("transpose", function, Norm(1.0, "exact"))


def pad(call: Call) -> Operation:
    """Lower torch.nn.functional.pad: constants are added, other modes copy entries."""
    given = call.bind(input=REQUIRED, pad=REQUIRED, mode="constant", value=None)
    sides, mode = list(given["pad"]), given["mode"]
    axes = len(sides) // 2
    shape = call.value.shape
    if axes >= len(shape) and any(sides[2 * (len(shape) - 1) :]):
        call.refuse("it pads the batch axis")
    constant = 0.0 if given["value"] is None else float(given["value"])
    if not math.isfinite(constant):
        call.refuse(f"it pads with {constant}")
    function = partial(functional.pad, pad=sides, mode=mode, value=constant or None)
    if mode == "constant":
        return Function("pad", function, Norm(1.0, "exact"))
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    windows = tuple(
        Axis(n, 1, low=low, high=high) for n, (low, high) in zip(shape[-axes:], pairs, strict=True)
    )
    norm = padding_norm(Geometry(windows, padding_mode=mode))
    return Function("pad", function, Norm(norm, "largest number of copies"))


def _reshape(call: Call, shape: torch.Size) -> Operation:
    if len(shape) == 0 or shape[0] != 1:
        call.refuse("it mixes the batch axis with others")
    rest = tuple(shape[1:])
    return copy_entries("reshape", lambda tensor: tensor.reshape(len(tensor), *rest))


register(flatten, modules=(nn.Flatten,), functions=(torch.flatten,), methods=("flatten",))
register(view, functions=(torch.reshape,), methods=("view", "reshape"))
register(squeeze, functions=(torch.squeeze,), methods=("squeeze",))
register(unsqueeze, functions=(torch.unsqueeze,), methods=("unsqueeze",))
register(permute, functions=(torch.permute,), methods=("permute",))
register(transpose, functions=(torch.transpose, torch.swapaxes), methods=("transpose",))
register(pad, functions=(functional.pad,))

_PADS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.ZeroPad1d, "constant"), (nn.ZeroPad2d, "constant"), (nn.ZeroPad3d, "constant"),
    (nn.ConstantPad1d, "constant"), (nn.ConstantPad2d, "constant"), (nn.ConstantPad3d, "constant"),
    (nn.ReflectionPad1d, "reflect"), (nn.ReflectionPad2d, "reflect"),
    (nn.ReplicationPad1d, "replicate"), (nn.ReplicationPad2d, "replicate"),
    (nn.CircularPad1d, "circular"), (nn.CircularPad2d, "circular"),
)  # fmt: skip


def pad_module(mode: str, call: Call) -> Operation:
    """Lower a padding module as the function it stands for."""
    module: Any = call.module
    value = getattr(module, "value", None)
    kwargs = {"pad": tuple(module.padding), "mode": mode, "value": value}
    return pad(Call(call.node, call.label, (call.value,), kwargs))


for _module, _mode in _PADS:
    register(partial(pad_module, _mode), modules=(_module,))
