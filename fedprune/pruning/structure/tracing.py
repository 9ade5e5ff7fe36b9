"""Run a model once and let torch-pruning trace its dependency graph.

torch-pruning (https://github.com/VainF/Torch-Pruning, Fang et al. 2023) follows one forward pass
and says which channels of which operations are tied to each other.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fedprune.copying import copy_model
from fedprune.errors import ModelError, PruningError
from fedprune.hardware.cost import counting_macs
from fedprune.pruning.structure.members import CONVOLUTIONS, NORMS, has_channels


class _Marker(nn.modules.batchnorm._BatchNorm):
    """A module that torch-pruning recognises; it marks where the model begins and ends."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _Framed(nn.Module):
    """The model between two markers, so that its input and output are nodes of the graph."""

    def __init__(self, body: nn.Module, example: Tensor, output: Tensor) -> None:
        super().__init__()
        self.body = body
        self.enter: nn.Module = nn.Identity()
        if example.is_floating_point() and example.ndim > 1:
            self.enter = _Marker(example.shape[1]).to(example.device, example.dtype)
        self.leave = _Marker(output.shape[1]).to(output.device, output.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.leave(self.body(self.enter(inputs)))
        return outputs


@dataclass(frozen=True)
class Trace:
    """One traced forward pass.

    Attributes:
        name: The model's class.
        body: The copy of the model that was traced.
        graph: torch-pruning's dependency graph.
        enter: The node at the model's input, None if the input is no floating-point tensor.
        leave: The node at the model's output.
        calls: How often each layer with channels was called, in forward order.
        positions: How often each of a layer's weights multiplies, for one example.
        macs: Multiply-accumulates of the whole model for one example.
        example: The input.
    """

    name: str
    body: nn.Module
    graph: Any
    enter: Any
    leave: Any
    calls: dict[nn.Module, int]
    positions: dict[nn.Module, int]
    macs: int
    example: Tensor

    @cached_property
    def moving(self) -> str:
        """The operations that put channels in other places, for a refusal's sentence."""
        return moving_operations(self.body, self.example)


def trace(model: nn.Module, example_input: Tensor) -> Trace:
    """Trace a copy of the model.

    Raises:
        ModelError: if the model does not run on the example or gives no single tensor.
        PruningError: if torch-pruning cannot read the model.
    """
    name = type(model).__name__
    _check(model, example_input)
    body = _traceable_copy(model)
    counter = _CallCounter(body)
    with counting_macs(body) as counted:
        output = run_once(body, example_input, name)
    counter.close()
    framed = _Framed(body, example_input, output).eval()
    graph = _dependency_graph(framed, example_input, name)
    positions = {m: count // len(example_input) for m, count in counter.positions.items()}
    nodes = graph.module2node
    return Trace(
        name,
        body,
        graph,
        nodes.get(framed.enter),
        nodes[framed.leave],
        counter.calls,
        positions,
        macs=counted.macs // len(example_input),
        example=example_input,
    )


def run_once(model: nn.Module, example_input: Tensor, name: str) -> Tensor:
    """Run the model on the example without gradients and return its single output tensor.

    Raises:
        ModelError: if it fails or returns something else than one tensor [batch, classes, ...].
    """
    try:
        with torch.no_grad():
            output = model(example_input.clone())  # some models write into their inputs
    except Exception as error:
        raise ModelError(
            f"{name} does not run on an example input of shape {list(example_input.shape)}: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ModelError(
            f"{name} must return one tensor [batch, classes], got {type(output).__name__}"
        )
    return output


def one_line(error: BaseException) -> str:
    """Say an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check(model: nn.Module, example_input: Tensor) -> None:
    name = type(model).__name__
    if not isinstance(example_input, Tensor):
        raise ModelError(
            f"the example input of {name} must be one tensor [batch, ...], got "
            f"{type(example_input).__name__}"
        )
    if example_input.ndim == 0 or len(example_input) == 0:
        raise ModelError(
            f"the example input of {name} must have at least one example, got shape "
            f"{list(example_input.shape)}"
        )
    lazy = [key for key, one in model.named_parameters() if nn.parameter.is_lazy(one)]
    if lazy:
        raise ModelError(f"{name} must have run once before: its {lazy[0]} has no shape yet")


def _traceable_copy(model: nn.Module) -> nn.Module:
    body = copy_model(model).eval()
    for parameter in body.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)  # a frozen layer would be invisible to the trace
    for name, module in list(body.named_modules()):
        if isinstance(module, CONVOLUTIONS):
            module.padding_mode = "zeros"  # others run slices, which look like slices of channels
        if isinstance(module, nn.PReLU) and not has_channels(module) and name:
            # One slope for all channels is taken for one channel.
            body.set_submodule(name, nn.LeakyReLU())
    return body


class _CallCounter:
    """Counts calls and positions of every conv and linear layer during one forward pass."""

    def __init__(self, body: nn.Module) -> None:
        self.calls: dict[nn.Module, int] = {}
        self.positions: dict[nn.Module, int] = {}
        self._hooks = [
            module.register_forward_hook(self._count)
            for module in body.modules()
            if has_channels(module)
        ]

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[module] = self.calls.get(module, 0) + 1
        if isinstance(module, NORMS):
            return
        # A transposed convolution multiplies once for every input position.
        transposed = bool(getattr(module, "transposed", False))
        values = inputs[0] if transposed else output
        width = values.shape[-1] if isinstance(module, nn.Linear) else values.shape[1]
        done = values.numel() // width
        self.positions[module] = self.positions.get(module, 0) + done

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _dependency_graph(framed: _Framed, example_input: Tensor, name: str) -> Any:
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            # Where it gives up with a warning the layout is wrong, and the trial on random weights
            # says so.
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                framed, example_input, forward_fn=lambda m, x: m(x.clone()), verbose=False
            )
    except Exception as error:
        moving = moving_operations(framed.body, example_input)
        raise PruningError(
            f"{name} cannot be traced by torch-pruning{moving} ({one_line(error)})"
        ) from error


def moving_operations(model: nn.Module, example_input: Tensor) -> str:
    """Say which operations of a model put channels in other places, for a refusal's sentence."""
    watched = copy_model(model)  # a layer that computes its weights would keep their history
    with torch.enable_grad():
        pending, seen, found = [watched(example_input.clone()).grad_fn], set(), set()
    while pending:
        operation = pending.pop()
        if operation is None or operation in seen:
            continue
        seen.add(operation)
        if not _is_within_channels(operation):
            found.add(_MOVING.get(re.sub(r"Backward\d*$", "", operation.name()), ""))
        pending.extend(follower for follower, _ in operation.next_functions)
    names = ", ".join(sorted(found - {""}))
    return f", since its operations {names} move channels" if names else ""


def _is_within_channels(operation: Any) -> bool:
    """Whether an operation is a reduction over other axes than that of the channels."""
    axes = getattr(operation, "_saved_dim", None)
    sizes = getattr(operation, "_saved_self_sym_sizes", None)
    if not isinstance(axes, tuple) or sizes is None:
        return False
    # Negative axes are saved as numbers just below 2^64.
    return 1 not in {(axis - 2**64 if axis >= 2**63 else axis) % len(sizes) for axis in axes}


_MOVING = {
    "Split": "split/chunk",
    "SplitWithSizes": "split/chunk",
    "Slice": "slice",
    "Select": "select",
    "Unbind": "unbind",
    "Transpose": "transpose",
    "Permute": "permute",
    "Roll": "roll",
    "Flip": "flip",
    "Glu": "glu",
    "Unfold": "unfold",
    "Im2Col": "unfold",
    "Cumsum": "cumsum",
    "Sort": "sort",
    "Topk": "topk",
    "Max": "max",
    "Min": "min",
    "Std": "std",
    "Var": "var",
    "Logsumexp": "logsumexp",
    "LinalgVectorNorm": "norm",
    "Index": "index",
    "IndexSelect": "index_select",
    "Gather": "gather",
    "Expand": "expand",
    "Repeat": "repeat",
    "PixelShuffle": "pixel_shuffle",
    "PixelUnshuffle": "pixel_unshuffle",
    "Mean": "mean",
    "Sum": "sum",
    "Amax": "amax",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Bmm": "matmul",
    "ScaledDotProductFlashAttentionForCpu": "attention",
}
