"""Whether a model is fit to be lowered, and whether its lowered form is the same function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fedprune.copying import copy_model, tensors_in
from fedprune.errors import RobustnessError
from fedprune.randomness import SimulationRandomness
from fedprune.robustness.arguments import check_tensor, kind
from fedprune.robustness.network import Network

AGREEMENT = 1e-7
"""Relative difference allowed between the model and its lowered form, both in float64."""

SHAPE_METHODS = ("size", "dim", "ndimension", "numel")
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")

FAILURES = (
    TypeError, ValueError, RuntimeError, IndexError, AssertionError, AttributeError, KeyError,
    ArithmeticError,
)  # fmt: skip
"""What Python and torch raise where a call does not fit."""


class Untouched(nn.Module):
    """Runs a model on a copy of its inputs, which it may overwrite."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        """Run the model."""
        return self.model(inputs.clone())


def private_copy(model: nn.Module, dtype: torch.dtype = torch.float64) -> Untouched:
    """Copy a model to the CPU in one precision; the copy leaves its inputs as they are."""
    return Untouched(copy_model(model).to(device="cpu", dtype=dtype))


def check_model(model: nn.Module) -> None:
    """Refuse a model whose eval-mode function is not fixed by finite real weights.

    Raises:
        RobustnessError: naming the module or tensor.
    """
    check_eval_mode(model)
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise RobustnessError(
                f"{_place(name)} has forward hooks, whose effect cannot be bounded (those of "
                f"torch.nn.utils.prune are made permanent by prune.remove)"
            )
    check_weights(model)


def check_eval_mode(model: nn.Module) -> None:
    """Refuse a model of which any part is in train mode.

    Raises:
        RobustnessError: naming the module.
    """
    check_module(model)
    for name, module in model.named_modules():
        if module.training:
            raise RobustnessError(f"{_place(name)} is in train mode; call model.eval() first")


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        RobustnessError: saying what it is.
    """
    if not isinstance(model, nn.Module):
        raise RobustnessError(f"model must be a torch.nn.Module, got {kind(model)}")


def check_weights(model: nn.Module) -> None:
    """Refuse parameters and buffers that are not finite real numbers.

    Raises:
        RobustnessError: naming the tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        check_tensor(tensor, f"tensor {name!r} of the model")


def check_example(example_input: Tensor) -> None:
    """Refuse an example that is not one finite input [1, ...].

    Raises:
        RobustnessError: saying what it is.
    """
    if not isinstance(example_input, Tensor):
        raise RobustnessError(f"example_input must be a torch tensor, got {kind(example_input)}")
    shape = tuple(example_input.shape)
    if example_input.ndim < 2 or shape[0] != 1:
        raise RobustnessError(f"example_input must have shape [1, ...], got {list(shape)}")
    check_tensor(example_input, "example_input")


def check_agreement(double: nn.Module, network: Network, example: Tensor) -> None:
    """Run the model and its lowered form in float64 on the example and on noise.

    Both are also run together, for a bound speaks of examples that do not influence each other.

    Raises:
        RobustnessError: if the model cannot be run, the two forms differ, or an example's output
            depends on what else is in its batch.
    """
    generator = SimulationRandomness(0, "robustness", "agreement").generator
    noise = torch.from_numpy(generator.standard_normal(tuple(example.shape)))
    alone = []
    for inputs in (example, example + noise):
        wanted, found = _output(double, inputs), network.run(inputs)
        if not isinstance(wanted, Tensor) or wanted.shape != found.shape:
            raise RobustnessError("the model does not compute what its traced graph computes")
        if not _agree(wanted, found):
            raise RobustnessError(
                "the model does not compute what its traced graph computes: "
                f"outputs of size {float(wanted.norm()):.3g} differ by "
                f"{float((wanted - found).norm()):.3g} (rounding explains that only where batch "
                f"norms hold means of 1e9 and more)"
            )
        alone.append(wanted)
    together = _output(double, torch.cat([example, example + noise]))
    if len(together) != 2 or not _agree(torch.cat(alone), together):
        raise RobustnessError(
            "the model's output for an example depends on what else is in its batch, or on how "
            "many there are: it is no function of one input that could be bounded"
        )


def _agree(wanted: Tensor, found: Tensor) -> bool:
    if wanted.shape != found.shape:
        return False
    return float((wanted - found).norm()) <= AGREEMENT * (1 + float(wanted.norm()))


def check_overwriting(double: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    """Refuse a graph that reads a tensor after an in-place operation has written over it.

    Lowered operations never overwrite, so there the reader would see the old entries. Where the
    two differ on few inputs only (a clamp that hardly ever acts), running both does not show it.

    Raises:
        RobustnessError: naming the reader, the tensor and what wrote over it.
    """
    found = _Overwriting(double, graph)
    found.run(example.clone())
    if found.read is not None:
        reader, source, writer = found.read
        raise RobustnessError(
            f"node {reader!r} reads {source!r} after {writer!r} has written over it in place, "
            f"which cannot be followed; use the operation that makes a new tensor"
        )


class _Overwriting(fx.Interpreter):
    """Runs a graph and notes the first read of a tensor that was overwritten before."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.read: tuple[str, str, str] | None = None
        self._lost: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; whatever shares entries with what it wrote to is lost to later nodes."""
        for source in n.all_input_nodes:
            if source in self._lost and self.read is None and not asks_shape(n):
                self.read = (n.name, source.name, self._lost[source])
        given = [t for source in n.all_input_nodes for t in tensors_in(self.env[source])]
        before = [tensor._version for tensor in given]
        result = super().run_node(n)
        written = [t for t, version in zip(given, before, strict=True) if t._version != version]
        for node, value in self.env.items():
            if any(_share(tensor, other) for tensor in tensors_in(value) for other in written):
                self._lost.setdefault(node, n.name)
        return result


def asks_shape(node: fx.Node) -> bool:
    """Whether a node reads the shape or format of a tensor and none of its entries."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS
    return node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES


def _share(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have entries in common, told by their places in the storage."""
    storage = left.untyped_storage()
    if storage.data_ptr() != right.untyped_storage().data_ptr() or not storage.nbytes():
        return False
    numbers = torch.arange(storage.nbytes() // left.element_size())
    taken = torch.zeros_like(numbers, dtype=torch.bool)
    own, other = (
        numbers.as_strided(one.shape, one.stride(), one.storage_offset()) for one in (left, right)
    )
    taken[own.flatten()] = True
    return bool(taken[other.flatten()].any())


def _output(model: nn.Module, inputs: Tensor) -> Any:
    try:
        return model(inputs.clone())
    except FAILURES as error:
        raise RobustnessError(
            f"the model cannot be run in float64 on an input of shape {list(inputs.shape)}: {error}"
        ) from error


def _place(name: str) -> str:
    return f"module {name!r}" if name else "the model"
