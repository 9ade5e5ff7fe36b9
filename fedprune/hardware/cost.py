"""Parameters, multiplications and bytes of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedprune.hardware._modes import check_example, evaluating, run, unfused_attention

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Frozen selections of channels (modules whose class says `is_selection`) are zeros and ones
    that only copy: they count in none of the three.

    Attributes:
        params: weights and biases, trained or frozen.
        macs: multiply-accumulates of convolutions and linear layers for one example. Activations,
            normalisation, pooling and the products within attention are not counted.
        bytes: parameters and floating-point buffers of the state, as float32.
    """

    params: int
    macs: int
    bytes: int


def cost(model: nn.Module, example_input: Tensor) -> Cost:
    """Count what a network costs, leaving it as it is.

    Args:
        model: any network, in any mode; it runs once in evaluation mode.
        example_input: a batch [batch, ...] of at least one example; the first one is used.

    Raises:
        ModelError: if the model cannot process the example.
    """
    fixed = _selection_weights(model)
    params = sum(_sizes(model.parameters(), fixed))
    buffers = sum(_sizes(_state_buffers(model), fixed))
    return Cost(
        params=params,
        macs=_count_macs(model, example_input),
        bytes=FLOAT32_BYTES * (params + buffers),
    )


def _selection_weights(model: nn.Module) -> list[Tensor]:
    selections = (module for module in model.modules() if getattr(module, "is_selection", False))
    return [weight for module in selections for weight in module.parameters()]


def _sizes(tensors: Iterable[Tensor], fixed: list[Tensor]) -> Iterable[int]:
    return (tensor.numel() for tensor in tensors if not _is_one_of(tensor, fixed))


def _state_buffers(model: nn.Module) -> Iterable[Tensor]:
    state = model.state_dict()
    buffers = model.named_buffers()
    return (buffer for name, buffer in buffers if name in state and buffer.is_floating_point())


def _count_macs(model: nn.Module, example_input: Tensor) -> int:
    check_example(example_input)
    # Operations are taken apart as they are in training: inference mode would keep some whole.
    plain = torch.inference_mode(False)
    with evaluating([model]), plain, torch.no_grad(), counting_macs(model) as counter:
        run("the model", model, example_input[:1].clone())  # some models write into their inputs
    return counter.macs


@contextmanager
def counting_macs(model: nn.Module) -> Iterator[_MacCounter]:
    """Count the multiply-accumulates of what runs inside the block, as `cost` does.

    Yields:
        The counter; `macs` is what it has seen so far, over all examples of all passes.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with unfused_attention(), _MacCounter(_selection_weights(model), weights) as counter:
        yield counter


class _MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, functional ones included, which hooks on layers would miss."""

    def __init__(self, fixed: list[Tensor], weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fixed, self.weights = fixed, weights
        self.macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled in here, and to tell torch's compiler so would import all of it:
        # more than a second and 140 MiB for every process.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        count = MACS_OF.get(func.overloadpacket)
        if count is not None and not _is_one_of(args[1], self.fixed):
            self.macs += count(args, result)
        elif func.overloadpacket in _BATCHED and self._reads_a_weight(args):
            # A linear layer without a bias, in some layouts; other such products are attention's.
            self.macs += _product(args, result)
        return result

    def _reads_a_weight(self, args: tuple[Any, ...]) -> bool:
        return any(one.untyped_storage().data_ptr() in self.weights for one in args[-2:])


# Each counts the multiply-accumulates of one call from its arguments and its result. Weights are
# [out, in/groups, ...] for a convolution, whose every output gathers inputs, and
# [in, out/groups, ...] for a transposed one, whose every input is spread over outputs.


def _gathering(args: tuple[Any, ...], result: Tensor) -> int:
    return int(result.numel() * args[1][0].numel())


def _spreading(args: tuple[Any, ...], result: Tensor) -> int:
    del result
    return int(args[0].numel() * args[1][0].numel())


def _convolution(args: tuple[Any, ...], result: Tensor) -> int:
    transposed = args[6]
    return _spreading(args, result) if transposed else _gathering(args, result)


def _product(args: tuple[Any, ...], result: Tensor) -> int:
    left, _ = args[-2:]  # the bias of addmm comes first
    return int(result.numel() * left.shape[-1])


_aten = torch.ops.aten
MACS_OF: dict[Any, Callable[[tuple[Any, ...], Tensor], int]] = {
    _aten.convolution: _convolution,
    _aten.conv1d: _gathering,
    _aten.conv2d: _gathering,
    _aten.conv3d: _gathering,
    _aten.conv_transpose1d: _spreading,
    _aten.conv_transpose2d: _spreading,
    _aten.conv_transpose3d: _spreading,
    _aten.linear: _gathering,
    _aten.mm: _product,
    _aten.addmm: _product,
}


_BATCHED = (_aten.bmm, _aten.baddbmm)


def _is_one_of(tensor: object, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)
