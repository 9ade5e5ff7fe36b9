"""Dense layers that round the rows of a batch alike.

A matrix product is computed in blocks, and at odd widths, as shrinking leaves them, common kernels
treat the rows at the edge of a block differently: the same row then differs in its last bit from
place to place. Where a record's numbers must not depend on the records beside it, the layers
compute with zeros around their weights.
"""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn
from torch.nn import functional

WIDTH = 16  # numbers that a processor's vector instructions take at once, at most


def widen(model: nn.Module) -> None:
    """Let the dense layers of a network compute at widths that are multiples of 16, in place.

    Parameters, state keys and the function computed (up to rounding) stay; so do hooks.
    """
    for module in model.modules():
        if type(module) is nn.Linear and any(side % WIDTH for side in module.weight.shape):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    rows, columns = (-side % WIDTH for side in module.weight.shape)
    weight = functional.pad(module.weight, (0, columns, 0, rows))
    bias = None if module.bias is None else functional.pad(module.bias, (0, rows))
    outputs = functional.linear(functional.pad(inputs, (0, columns)), weight, bias)
    return outputs[..., : module.out_features]
