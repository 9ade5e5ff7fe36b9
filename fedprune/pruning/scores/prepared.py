"""A network made ready for many passes in evaluation mode: folded, laid out, in one precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fedprune.copying import copy_model
from fedprune.errors import ModelError, PruningError
from fedprune.pruning.structure.layout import UnitLayout
from fedprune.pruning.structure.members import Layer, Site

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Passes of one batch size run at nearly the same speed from 20 MiB to 150 MiB of outputs; smaller
# batches pay for calls, larger ones for memory that is new to every cache.
_OUTPUT_BYTES_A_PASS = 32 * 2**20
_FEWEST_ROWS, _MOST_ROWS = 16, 1000
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_REDUCED = (nn.modules.conv._ConvNd, nn.Linear)


def prepare(model: nn.Module, layout: UnitLayout) -> nn.Module:
    """Copy a model for passes in evaluation mode that need no gradient of any weight.

    Batch norms are folded into the convolutions before them where the layout says so, and modules
    put nothing into their inputs' place.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if it mixes examples.
    """
    layout.check_model(model)
    check_separable(model, layout)
    prepared = copy_model(model).eval().requires_grad_(False)
    modules: list[Any] = list(prepared.modules())
    for module in modules:
        if getattr(module, "inplace", False):
            module.inplace = False  # a gate before it still needs its output
    for site in layout.sites:
        if site.folds_into:
            _fold(prepared, site)
    return prepared


def check_separable(model: nn.Module, layout: UnitLayout) -> None:
    """Check that no batch norm takes its statistics from the batch, in evaluation mode too.

    Raises:
        PruningError: naming the first that does.
    """
    for layer in layout.layers:
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise PruningError(
                f"{layer.name} of {layout.model_name} normalises by the statistics of each batch "
                f"(track_running_stats=False), so that no example has scores of its own"
            )


def _fold(model: nn.Module, site: Site) -> None:
    conv: Any = model.get_submodule(site.folds_into)
    norm: Any = model.get_submodule(site.name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    conv.requires_grad_(False)
    model.set_submodule(site.name, nn.Identity())


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    """Scores [batch, classes] of a batch of inputs.

    Raises:
        ModelError: if the model does not run on them or puts out something else.
    """
    return run_checked(model, inputs, model)


def run_checked(model: nn.Module, inputs: Tensor, call: Callable[[Tensor], Any]) -> Tensor:
    """As `run`, of what `call` gives, which does what the model does.

    Raises:
        ModelError: if it does not run on them or puts out something else.
    """
    name, shape = type(model).__name__, list(inputs.shape)
    try:
        logits: Tensor = call(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{name} does not run on inputs of shape {shape}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"examples can be scored where a model puts out [batch, classes]; {name} makes {found} "
            f"of inputs of shape {shape}"
        )
    return logits


def share_parameters(model: nn.Module) -> nn.Module:
    """Copy a model's modules for another thread; both hold the same parameters."""
    return copy_model(model, shared=model.parameters())


def check_precision_name(precision: str) -> None:
    """Refuse a precision that is not known.

    Raises:
        PruningError: naming those that are.
    """
    if precision not in PRECISIONS:
        raise PruningError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def has_instructions(precision: str, device: torch.device) -> bool:
    """Whether a device computes in this precision itself, rather than by way of another.

    A processor without such instructions (x86 before AVX-512, for bfloat16) takes many times as
    long as in float32.

    Raises:
        PruningError: if the precision is unknown.
    """
    check_precision_name(precision)
    if precision == "float32":
        return True
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        with_kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return bool(with_kernels and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def reduce_precision(model: nn.Module, layout: UnitLayout, precision: str) -> None:
    """Let the layers between units compute in a lower precision, in place.

    Layers that read the network's inputs or write its outputs stay as they are: they cost little,
    and their roundings would reach everything. So do norms and slopes. Every layer brings its
    inputs to its own precision. With "float32" a model stays in whatever precision it has.

    Raises:
        PruningError: if the precision is unknown.
    """
    check_precision_name(precision)
    if precision == "float32":
        return
    for layer in layout.layers:
        inner = (layer.in_units >= 0).any() and (layer.out_units >= 0).any()
        module = model.get_submodule(layer.name)
        if inner and isinstance(module, _REDUCED):
            with torch.no_grad():
                module.weight.copy_(_diffused(module.weight, PRECISIONS[precision]))
            module.to(PRECISIONS[precision])
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_in_own_precision)


def _diffused(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a convolution's weights so that the errors within each kernel nearly cancel.

    What one weight loses the next one gets (error diffusion; Floyd & Steinberg 1976): neighbouring
    pixels are alike, so errors that add up to zero in a kernel hardly show in its output.
    """
    kernels = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)
    rounded, owed = torch.empty_like(kernels), torch.zeros_like(kernels[..., 0])
    for place in range(kernels.shape[-1]):
        wanted = kernels[..., place] + owed
        rounded[..., place] = wanted.to(dtype)
        owed = wanted - rounded[..., place]
    return rounded.reshape(weight.shape)


def _in_own_precision(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    own = next(module.parameters(recurse=False)).dtype
    return tuple(
        one.to(own) if isinstance(one, Tensor) and one.is_floating_point() else one
        for one in inputs
    )


def choose_format(model: nn.Module, inputs: Tensor) -> torch.memory_format:
    """Lay the weights out with channels last, in place, if the model then says the same.

    Kernels for small images are faster so. A model that asks for a view of its own activations
    fails, and one that reads memory directly says something else: they stay as they are.

    Args:
        model: A prepared model.
        inputs: [batch, ...], a few examples; only their shape matters, so that nobody's data
            decide how another's are computed.
    """
    inputs = _noise_like(inputs)
    wanted = _FORMATS.get(inputs.ndim)
    if wanted is None or not any(p.ndim == inputs.ndim for p in model.parameters()):
        return torch.contiguous_format
    with torch.no_grad():
        before = run(model, inputs.clone())
        model.to(memory_format=wanted)
        try:
            after = model(inputs.clone().contiguous(memory_format=wanted))
        except RuntimeError:
            after = None
    if after is not None and (after.is_meta or _agree(before, after)):
        return wanted
    model.to(memory_format=torch.contiguous_format)
    return torch.contiguous_format


def _noise_like(inputs: Tensor) -> Tensor:
    if not inputs.is_floating_point():
        return torch.zeros_like(inputs)
    drawn = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(inputs.device, inputs.dtype)


def _agree(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    precise = before.dtype in (torch.float32, torch.float64)
    return torch.allclose(before, after, rtol=1e-3 if precise else 0.1, atol=1e-3, equal_nan=True)


def rows_a_pass(layout: UnitLayout, rows: int, workers: int) -> int:
    """How many examples make a fast pass: what fits a fixed share of memory, and work for all.

    Args:
        layout: Its layers say how many outputs an example has.
        rows: Examples in all, at least 1.
        workers: Passes that run side by side.
    """
    outputs = sum(_outputs(layer) for layer in layout.layers)
    fitting = _OUTPUT_BYTES_A_PASS // (4 * max(outputs, 1))
    fitting = min(max(fitting, 1), _MOST_ROWS)
    passes = max(-(-rows // fitting), min(workers, rows // _FEWEST_ROWS), 1)
    return -(-rows // passes)  # passes of equal size: the last one is never a small rest


def _outputs(layer: Layer) -> int:
    return layer.positions * len(layer.out_units) if layer.kind != "norm" else 0


def workers_on(device: torch.device) -> int:
    """Passes to run side by side: one for each torch thread, or one on an accelerator."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def move(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Bring a batch to a device without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype, non_blocking=True)
