"""The modules whose weights stand behind the affine steps of a lowered network, as they are now.

Lowering copies weights; training needs the live ones, with gradients. Each affine step is paired
with the module that it came from and with the batch norms that were folded into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fedprune.errors import RobustnessError
from fedprune.robustness.affine import Affine, Convolution, Dense
from fedprune.robustness.layer_norms import convolve
from fedprune.robustness.network import Network
from fedprune.robustness.operations import Diagonal
from fedprune.robustness.rules import module_rule
from fedprune.robustness.transposed import TransposedConvolution

BATCH_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
"""Modules that can be folded: instance norms are batch norms where they keep statistics."""


@dataclass(frozen=True)
class LiveLayer:
    """An affine step: the module whose weights are live, and the batch norms folded after it.

    Attributes:
        name: of the module in its model.
        module: the module.
        after_names: of the batch norms, in order.
        afters: the batch norms.
    """

    name: str
    module: nn.Module
    after_names: tuple[str, ...]
    afters: tuple[nn.Module, ...]

    def of_other(self, model: nn.Module) -> LiveLayer:
        """The same layer of another object of the same architecture."""
        afters = tuple(model.get_submodule(name) for name in self.after_names)
        return replace(self, module=model.get_submodule(self.name), afters=afters)

    def scale_after(self) -> Tensor | None:
        """What the batch norms multiply by together: [channels], None without."""
        total: Tensor | None = None
        for after in self.afters:
            total = scale_of(after) if total is None else total * scale_of(after)
        return total


def live_layers(model: nn.Module, network: Network) -> Mapping[str, LiveLayer]:
    """Pair each affine step, by its name, with its live module and the batch norms folded into it.

    Raises:
        RobustnessError: if the weights of a step are not those of a module.
    """
    nodes = {node.name: node for node in _Leaves().trace(model).nodes}
    layers: dict[str, LiveLayer] = {}
    for name, step in network.steps.items():
        if not isinstance(step.operation, (Affine, Diagonal)):
            continue
        module = _module_of(model, nodes.get(name))
        if module is None:
            raise RobustnessError(
                f"the weights at node {name!r} do not belong to a layer of their own, so that "
                f"margin training cannot follow them"
            )
        after_names = _folded(model, nodes[name], network)
        afters = tuple(model.get_submodule(after) for after in after_names)
        layers[name] = LiveLayer(str(nodes[name].target), module, after_names, afters)
    return layers


def scale_of(batch_norm: nn.Module) -> Tensor:
    """What batch norm in eval mode multiplies by: [channels]."""
    spread = torch.sqrt(_tensor(batch_norm, "running_var") + float(vars(batch_norm)["eps"]))
    weight = batch_norm.weight
    return 1 / spread if weight is None else _tensor(batch_norm, "weight") / spread


def head_rows(layer: LiveLayer) -> Tensor:
    """The rows of a linear head [classes, features], batch norms included."""
    weight, scale = _tensor(layer.module, "weight"), layer.scale_after()
    return weight if scale is None else weight * scale[:, None]


def apply_live(operation: Affine, layer: LiveLayer, vector: Tensor) -> Tensor:
    """Apply the live layer without its bias, batch norms included: vector [1, ...]."""
    result, scale = _map(operation, _tensor(layer.module, "weight"), vector), layer.scale_after()
    if scale is None:
        return result
    return result * scale.reshape(-1, *[1] * (result.ndim - 2))


def _map(operation: Affine, weight: Tensor, vector: Tensor) -> Tensor:
    if isinstance(operation, Dense):
        return functional.linear(vector, weight)
    if isinstance(operation, Convolution):
        return convolve(vector, weight, None, operation.geometry)
    assert isinstance(operation, TransposedConvolution)
    none = torch.zeros_like(operation.bias).to(weight)
    return replace(operation, weight=weight, bias=none).run(vector)


class _Leaves(fx.Tracer):
    """Sees the same nodes as lowering does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_rule(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _module_of(model: nn.Module, node: fx.Node | None) -> nn.Module | None:
    if node is None or node.op != "call_module":
        return None
    return model.get_submodule(str(node.target))


def _folded(model: nn.Module, node: fx.Node, network: Network) -> tuple[str, ...]:
    """Name the batch norms that follow a layer one by one and are not steps of their own."""
    found: list[str] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        if not isinstance(_module_of(model, node), BATCH_NORMS) or node.name in network.steps:
            break
        found.append(str(node.target))
    return tuple(found)


def _tensor(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value
