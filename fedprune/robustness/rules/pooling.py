"""Pools and means.

An average pool is the Kronecker product of one small matrix an axis, which torch itself writes
out; its norm is the product of theirs, whatever overlap, padding, ceil_mode or target size. A
maximum over windows changes by at most the largest change inside each, so its constant is the
square root of the number of windows that one entry can fall in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.robustness.operations import Function, Operation, Rounding
from fedprune.robustness.rounding import Floats, gamma, product_up, quotient_up, sqrt_up
from fedprune.robustness.rules._registry import REQUIRED, Call, register
from fedprune.robustness.spectral import Norm, matrix_norm

AVERAGES: dict[int, Callable[..., Any]] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d,
}  # fmt: skip
MAXIMA: dict[int, Callable[..., Any]] = {
    1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d,
}  # fmt: skip
ADAPTIVE_AVERAGES: dict[int, Callable[..., Any]] = {
    1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}  # fmt: skip
ADAPTIVE_MAXIMA: dict[int, Callable[..., Any]] = {
    1: functional.adaptive_max_pool1d, 2: functional.adaptive_max_pool2d,
    3: functional.adaptive_max_pool3d,
}  # fmt: skip


def average_pool(spatial: int, call: Call) -> Operation:
    """Lower an average pool of `spatial` axes."""
    given = call.attributes(
        kernel_size=REQUIRED, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None,
    )  # fmt: skip
    lengths = _lengths(call, spatial)
    kernel = _spread(given["kernel_size"], spatial)
    stride = _spread(given["stride"] or kernel, spatial)
    padding = _spread(given["padding"], spatial)
    options = {"ceil_mode": given["ceil_mode"], "count_include_pad": given["count_include_pad"]}
    divisor = given["divisor_override"]
    matrices = []
    for n, k, s, p in zip(lengths, kernel, stride, padding, strict=True):
        matrix = axis_matrix(
            n, partial(functional.avg_pool1d, kernel_size=k, stride=s, padding=p, **options)
        )
        matrices.append((matrix > 0).astype(np.float64) if divisor else matrix)
    if divisor:
        options["divisor_override"] = divisor
    function = partial(
        AVERAGES[spatial], kernel_size=kernel, stride=stride, padding=padding, **options
    )
    return _average("avg_pool", function, matrices, float(divisor or 1))


def adaptive_average_pool(spatial: int, call: Call) -> Operation:
    """Lower an average pool given by its output size."""
    lengths = _lengths(call, spatial)
    sizes = _sizes(call.attributes(output_size=REQUIRED)["output_size"], lengths)
    matrices = [
        axis_matrix(n, partial(functional.adaptive_avg_pool1d, output_size=size))
        for n, size in zip(lengths, sizes, strict=True)
    ]
    function = partial(ADAPTIVE_AVERAGES[spatial], output_size=sizes)
    return _average("adaptive_avg_pool", function, matrices)


def max_pool(spatial: int, call: Call) -> Operation:
    """Lower a maximum pool of `spatial` axes."""
    given = call.attributes(
        kernel_size=REQUIRED, stride=None, padding=0, dilation=1, ceil_mode=False,
        return_indices=False,
    )  # fmt: skip
    if given["return_indices"]:
        call.refuse("it returns indices")
    lengths = _lengths(call, spatial)
    kernel = _spread(given["kernel_size"], spatial)
    stride = _spread(given["stride"] or kernel, spatial)
    padding, dilation = _spread(given["padding"], spatial), _spread(given["dilation"], spatial)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    function = partial(MAXIMA[spatial], **options, ceil_mode=given["ceil_mode"])
    outputs = function(torch.zeros(1, 1, *lengths)).shape[2:]
    copies = [
        largest_overlap(*axis)
        for axis in zip(lengths, outputs, kernel, stride, padding, dilation, strict=True)
    ]
    return Function("max_pool", function, Norm(_root(copies), "windows an entry falls in"))


def adaptive_max_pool(spatial: int, call: Call) -> Operation:
    """Lower a maximum pool given by its output size."""
    given = call.attributes(output_size=REQUIRED, return_indices=False)
    if given["return_indices"]:
        call.refuse("it returns indices")
    lengths = _lengths(call, spatial)
    sizes = _sizes(given["output_size"], lengths)
    copies = []
    for n, size in zip(lengths, sizes, strict=True):
        shares = axis_matrix(n, partial(functional.adaptive_avg_pool1d, output_size=size))
        copies.append(int((shares > 0).sum(axis=0).max()))
    function = partial(ADAPTIVE_MAXIMA[spatial], output_size=sizes)
    return Function("adaptive_max_pool", function, Norm(_root(copies), "windows an entry falls in"))


def mean(call: Call) -> Operation:
    """Lower a mean over axes other than the batch's: 1 / sqrt(count)."""
    return _reduce(call, torch.mean, lambda count: quotient_up(1.0, _sqrt_down(count)))


def total(call: Call) -> Operation:
    """Lower a sum over axes other than the batch's: sqrt(count)."""
    return _reduce(call, torch.sum, lambda count: sqrt_up(count))


def largest(call: Call) -> Operation:
    """Lower amax over axes other than the batch's: 1, since no two windows share an entry."""
    return _reduce(call, torch.amax, lambda _: 1.0)


def smallest(call: Call) -> Operation:
    """Lower amin over axes other than the batch's: 1."""
    return _reduce(call, torch.amin, lambda _: 1.0)


def axis_matrix(length: int, pool: Callable[[Tensor], Tensor]) -> Floats:
    """Write a linear pool of one axis as the matrix that it is: [outputs, length]."""
    basis = torch.eye(length, dtype=torch.float64)[:, None]
    return np.ascontiguousarray(pool(basis)[:, 0].numpy().T)


def largest_overlap(
    length: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
) -> int:
    """Count the windows of one axis that share one input entry, at most."""
    starts = np.arange(outputs)[:, None] * stride - padding
    reads = starts + np.arange(kernel) * dilation
    inside = reads[(reads >= 0) & (reads < length)]
    return int(np.bincount(inside).max())


def _average(
    name: str, function: Callable[[Tensor], Tensor], matrices: list[Floats], divisor: float = 1.0
) -> Operation:
    norms = [matrix_norm(matrix).value for matrix in matrices]
    norm = quotient_up(product_up(*norms), abs(divisor))
    terms = math.prod(int((matrix > 0).sum(axis=1).max()) for matrix in matrices)
    error = Rounding(product_up(gamma(terms + 8), norm))
    return Function(name, function, Norm(norm, "explicit matrix an axis"), error)


def _reduce(call: Call, function: Any, norm: Callable[[int], float]) -> Operation:
    given = call.bind(input=REQUIRED, dim=None, keepdim=False)
    shape, dim, keepdim = call.value.shape, given["dim"], given["keepdim"]
    if dim is None:
        call.refuse("it reduces over the batch")
    dims = tuple(d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim))
    if 0 in dims or not dims:
        call.refuse("it reduces over the batch")
    count = math.prod(shape[d] for d in dims)
    bound = norm(count)
    return Function(
        function.__name__,
        partial(function, dim=dims, keepdim=bool(keepdim)),
        Norm(bound, "closed form"),
        Rounding(product_up(gamma(count + 8), bound)),
    )


def _lengths(call: Call, spatial: int) -> tuple[int, ...]:
    shape = call.value.shape
    if len(shape) != spatial + 2:
        call.refuse(f"its input has shape {shape}, without a batch axis")
    return shape[2:]


def _spread(value: Any, spatial: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * spatial if len(values) == 1 else values


def _sizes(size: Any, lengths: tuple[int, ...]) -> tuple[int, ...]:
    wanted = _spread_sizes(size, len(lengths))
    return tuple(n if s is None else s for n, s in zip(lengths, wanted, strict=True))


def _spread_sizes(size: Any, spatial: int) -> tuple[Any, ...]:
    return (size,) * spatial if size is None or isinstance(size, int) else tuple(size)


def _root(copies: list[int]) -> float:
    count = math.prod(copies)
    root = math.isqrt(count)
    return float(root) if root * root == count else sqrt_up(count)


def _sqrt_down(value: float) -> float:
    return math.nextafter(math.sqrt(value), 0.0)


_MODULES: dict[int, tuple[type[nn.Module], ...]] = {
    1: (nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.MaxPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.MaxPool3d, nn.AdaptiveMaxPool3d),
}
_MAX_FORMS: dict[int, tuple[Any, ...]] = {
    1: (functional.max_pool1d, torch.max_pool1d),
    2: (functional.max_pool2d, torch.max_pool2d),
    3: (functional.max_pool3d, torch.max_pool3d),
}
for _spatial, (_avg, _adaptive, _max, _adaptive_max) in _MODULES.items():
    register(partial(average_pool, _spatial), modules=(_avg,), functions=(AVERAGES[_spatial],))
    register(
        partial(adaptive_average_pool, _spatial),
        modules=(_adaptive,),
        functions=(ADAPTIVE_AVERAGES[_spatial],),
    )
    register(partial(max_pool, _spatial), modules=(_max,), functions=_MAX_FORMS[_spatial])
    register(
        partial(adaptive_max_pool, _spatial),
        modules=(_adaptive_max,),
        functions=(ADAPTIVE_MAXIMA[_spatial],),
    )
register(mean, functions=(torch.mean,), methods=("mean",))
register(largest, functions=(torch.amax,), methods=("amax",))
register(smallest, functions=(torch.amin,), methods=("amin",))
register(total, functions=(torch.sum,), methods=("sum",))
