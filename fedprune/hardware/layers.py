"""Layer by layer: how much work a layer is, how fast it runs, and what sparsity makes of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import ConfigError
from fedprune.hardware._modes import check_example, evaluating, run
from fedprune.hardware.cost import counting_macs
from fedprune.hardware.timing import check_counts, median_interval, time_in_turns

MATRICES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class Work:
    """A piece of work for one batch, measured.

    Attributes:
        name: What did it.
        flops: Operations; a multiply-accumulate is two.
        bytes: Least memory traffic: weights, inputs and outputs once each, float32.
        median_ms: Time.
        low_ms: Lower end of a 95 % interval of the median.
        high_ms: Upper end.
    """

    name: str
    flops: int
    bytes: int
    median_ms: float
    low_ms: float
    high_ms: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / max(self.bytes, 1)

    @property
    def gigaflops(self) -> float:
        """The rate reached."""
        return self.flops / self.median_ms / 1e6


def layer_inputs(
    model: nn.Module, batch: Tensor, kinds: tuple[type[nn.Module], ...] = MATRICES
) -> dict[str, Tensor]:
    """What every convolution and linear layer reads in one pass of a batch, by the layer's name.

    Only shape, type and device are kept: a tensor of ones that takes no memory, expanded from a
    single number. Of a layer that is called several times the first input counts.

    Args:
        model: The network; it runs in evaluation mode and is left as it is.
        batch: [batch, ...].
        kinds: Classes of layers to look at.

    Raises:
        ModelError: if the network cannot process the batch.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_pre_hook(_recorder(found, name)))
    try:
        with evaluating([model]):
            run("the network", model, batch.clone())  # some models write into their inputs
    finally:
        for hook in hooks:
            hook.remove()
    return found


def drawn_like(inputs: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A new tensor of the same type and device, filled with different numbers of order 1.

    Args:
        inputs: What it is like.
        shape: Its shape, None for the same.
    """
    wanted = list(inputs.shape if shape is None else shape)
    numbers = torch.linspace(-1, 1, 997).repeat(math.prod(wanted) // 997 + 1)
    return numbers[: math.prod(wanted)].reshape(wanted).to(inputs.device, inputs.dtype)


def _recorder(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def record(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if name not in found and inputs and isinstance(inputs[0], Tensor):
            found[name] = inputs[0].new_ones(()).expand(inputs[0].shape)

    return record


def measure_layers(
    model: nn.Module,
    batch: Tensor,
    names: Iterable[str] | None = None,
    *,
    repeats: int = 20,
    threads: int = 1,
) -> list[Work]:
    """Time every convolution and linear layer of a network by itself, in turns.

    Args:
        model: The network; it is left as it is.
        batch: [batch, ...].
        names: Layers to look at; None for all that run.
        repeats: Timed passes of each layer, at least 6.
        threads: Processor threads that torch may use.

    Raises:
        ConfigError: if a count is out of range or there is no such layer.
        ModelError: if the network cannot process the batch.
    """
    check_counts("a measurement of layers", repeats=repeats, threads=threads)
    check_example(batch)
    inputs = layer_inputs(model, batch)
    if not inputs:
        raise ConfigError(f"{type(model).__name__} runs no convolution or linear layer")
    wanted = list(inputs) if names is None else list(names)
    for name in wanted:
        if name not in inputs:
            raise ConfigError(f"layer must be one of {', '.join(inputs)}, got {name!r}")
    forms = {name: _Form(model.get_submodule(name), drawn_like(inputs[name])) for name in wanted}
    return _measure(forms, repeats, threads)


def measure_forms(
    layer: nn.Module, inputs: Tensor, keep: float, *, repeats: int = 20, threads: int = 1
) -> list[Work]:
    """Time one layer whole, with its weights in CSR, and shrunk, at the same number of operations.

    `dense` is the layer itself. `csr` keeps the fraction `keep` of its weights, the largest by
    magnitude, as a compressed sparse matrix that multiplies the unfolded input; `csr_product` is
    the product alone, without unfolding, and `unfolded` the dense product with the unfolded input.
    `shrunk` has about sqrt(keep) of the inputs and of the outputs, so `keep` of the operations.

    Args:
        layer: A convolution of one group in two dimensions, or a linear layer.
        inputs: [batch, ...], what it reads.
        keep: Fraction of the weights that stay, in (0, 1].
        repeats: Timed passes of each form, at least 6.
        threads: Processor threads that torch may use.

    Raises:
        ConfigError: if the layer is another one or an argument is out of range.
    """
    check_counts("a comparison of forms", repeats=repeats, threads=threads)
    if not 0 < keep <= 1:
        raise ConfigError(f"keep must be in (0, 1], got {keep}")
    plain = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
        and layer.padding_mode == "zeros"
    )  # fmt: skip
    if not plain:
        raise ConfigError(f"only a plain nn.Conv2d or nn.Linear has these forms, got {layer}")
    _check_read(layer, inputs)
    with torch.no_grad():
        return _measure(_forms(layer, inputs, keep), repeats, threads)


def _check_read(layer: Any, inputs: Tensor) -> None:
    linear = isinstance(layer, nn.Linear)
    wanted = layer.in_features if linear else layer.in_channels
    if inputs.ndim < 2 if linear else inputs.ndim != 4:
        raise ConfigError(f"a batch for {layer} must have a row each, got {list(inputs.shape)}")
    if inputs.shape[-1 if linear else 1] != wanted:
        raise ConfigError(
            f"{layer} reads {wanted} channels, got inputs of shape {list(inputs.shape)}"
        )


class _Form:
    """A layer and its input, with the work that it is."""

    def __init__(self, layer: nn.Module, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs
        with torch.no_grad(), counting_macs(layer) as counted:
            outputs = layer(inputs)
        self.flops = 2 * counted.macs
        weights = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        self.bytes = 4 * (weights + inputs.numel() + outputs.numel())

    def __call__(self) -> Any:
        return self.layer(self.inputs)


class _Product(_Form):
    """A matrix [out, columns], dense or CSR, times the columns of an unfolded input."""

    def __init__(
        self, matrix: Tensor, nonzeros: int, unfold: Callable[[], Tensor], only_product: bool
    ) -> None:
        self.matrix, self.unfold = matrix, unfold
        self.columns = unfold() if only_product else None
        columns = unfold() if self.columns is None else self.columns
        is_sparse = matrix.layout != torch.strided
        indices = 8 * (nonzeros + matrix.shape[0] + 1) if is_sparse else 0  # int64, as torch has
        outputs = matrix.shape[0] * columns.shape[1]
        self.flops = 2 * nonzeros * columns.shape[1]
        self.bytes = 4 * (nonzeros + columns.numel() + outputs) + indices

    def __call__(self) -> Any:
        columns = self.unfold() if self.columns is None else self.columns
        return self.matrix @ columns


def _forms(layer: Any, inputs: Tensor, keep: float) -> dict[str, _Form]:
    weight = layer.weight.detach().flatten(1)

    def unfold() -> Tensor:
        if isinstance(layer, nn.Linear):
            return inputs.flatten(0, -2).T.contiguous()
        patches = functional.unfold(
            inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        return patches.transpose(0, 1).flatten(1).contiguous()

    kept = max(1, round(keep * weight.numel()))
    cut = weight.abs().flatten().topk(kept).indices
    thinned = torch.zeros_like(weight).flatten()
    thinned[cut] = weight.flatten()[cut]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        sparse = thinned.reshape(weight.shape).to_sparse_csr()
    return {
        "dense": _Form(layer, inputs),
        "unfolded": _Product(weight, weight.numel(), unfold, only_product=True),
        "csr": _Product(sparse, kept, unfold, only_product=False),
        "csr_product": _Product(sparse, kept, unfold, only_product=True),
        "shrunk": _Form(*_thinner(layer, inputs, math.sqrt(keep))),
    }


def _thinner(layer: Any, inputs: Tensor, share: float) -> tuple[nn.Module, Tensor]:
    n_out, n_in = (max(1, round(share * side)) for side in layer.weight.shape[:2])
    if isinstance(layer, nn.Linear):
        thin: nn.Module = nn.Linear(n_in, n_out, layer.bias is not None)
        return thin, inputs[..., :n_in].contiguous()
    thin = nn.Conv2d(
        n_in,
        n_out,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=layer.bias is not None,
    )
    return thin, inputs[:, :n_in].contiguous()


def _measure(forms: dict[str, _Form], repeats: int, threads: int) -> list[Work]:
    times = time_in_turns(dict(forms), repeats=repeats, warmup=2, threads=threads, least_ms=0.5)
    return [
        Work(
            name, form.flops, form.bytes, float(np.median(times[name])),
            *median_interval(times[name]),
        )
        for name, form in forms.items()
    ]  # fmt: skip
