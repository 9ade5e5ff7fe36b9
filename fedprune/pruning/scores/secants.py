"""The change of the activation that reads a gate, taken exactly instead of by its slope.

A gate's output y goes into an activation φ, by itself or added to something s: h = φ(s + y).
Closing the gate makes φ(s) of it. To first order that change is −φ'(s + y)·y, which says nothing
where φ' is 0 or where s + y crosses a kink; but both ends are known in the pass, so the gate
collects (φ(s + y) − φ(s))·∂/∂h in place of y·∂/∂y. What comes after h stays linear.

It is for gates that are closed by themselves. Where a unit has gates in several layers, s changes
too, and slopes, which add up to the slope along all of them together, are the better estimate.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fedprune.pruning.scores.gate_hooks import Gate
from fedprune.pruning.structure.programs import Program, Values

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
_FUNCTIONS = {
    torch.relu, torch.sigmoid, torch.tanh, functional.relu, functional.relu6,
    functional.leaky_relu, functional.elu, functional.celu, functional.selu, functional.gelu,
    functional.silu, functional.mish, functional.softplus, functional.hardswish,
    functional.hardsigmoid, functional.hardtanh, functional.sigmoid, functional.tanh,
}  # fmt: skip
_METHODS = {"relu", "sigmoid", "tanh"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Secant:
    """Where a gate's output goes.

    Attributes:
        site: name of the gate's site.
        activation: the node of h.
        summed: the node of s + y, which is y's own where nothing is added.
    """

    site: str
    activation: fx.Node
    summed: fx.Node


def find_secants(program: Program, sites: Sequence[str]) -> tuple[Secant, ...]:
    """Find the gates whose output goes into one activation and nowhere else.

    Args:
        program: of the network, with every site called as it is.
        sites: names of the gates' sites.
    """
    found = []
    for node in program.nodes:
        if node.op != "call_module" or str(node.target) not in sites:
            continue
        if program.calls(str(node.target)) > 1:
            continue
        summed = node
        reader = _only_reader(node)
        if reader is not None and _adds_two(reader):
            summed, reader = reader, _only_reader(reader)
        if reader is not None and reader.args[:1] == (summed,) and _activates(program, reader):
            found.append(Secant(str(node.target), reader, summed))
    return tuple(found)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds_two(node: fx.Node) -> bool:
    if node.op == "call_method":
        adds = node.target in ("add", "add_")
    else:
        adds = node.op == "call_function" and node.target in _ADDITIONS
    both = len(node.args) == 2 and all(isinstance(one, fx.Node) for one in node.args)
    return adds and both and not node.kwargs and node.args[0] is not node.args[1]


def _activates(program: Program, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(program.model.get_submodule(str(node.target)), _MODULES)
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


def run_with_secants(
    program: Program,
    secants: Sequence[Secant],
    gates: Mapping[str, Gate],
    inputs: Tensor,
    anchor: Tensor,
) -> Any:
    """Run a program; gates of secants collect at the activation that reads them.

    Args:
        program: of the network that has the gates.
        secants: as `find_secants` gives them.
        gates: by site.
        inputs: [batch, ...].
        anchor: the tensor with a gradient that the pass's graph starts at.
    """
    at = {secant.activation: secant for secant in secants}
    values: Values = {}
    end = len(program.nodes) - 1
    for place, node in enumerate(program.nodes[:end]):
        secant = at.get(node)
        if secant is None:
            program.step(place, values, inputs, {})
            continue
        before = values[secant.summed].detach()
        before = before.clone() if program.overwrites else before  # of what is changed later
        program.step(place, values, inputs, {})
        if node in values:
            again = program.caller(node)
            values[node] = _Collect.apply(values[node], before, anchor, gates[secant.site], again)
    return fx.node.map_arg(program.nodes[end].args[0], values.__getitem__)


class _Collect(torch.autograd.Function):
    """The identity, with a look at the gradient that passes an activation's output."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        before: Tensor,
        anchor: Tensor,  # noqa: ARG004 - it needs a gradient, so that the first gate starts a graph
        gate: Gate,
        again: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(output, before, gate.seen)
        ctx.gate, ctx.again = gate, again
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        output, before, seen = ctx.saved_tensors
        change = output.float() - ctx.again(before - seen).float()
        ctx.gate.collect(change.mul_(gradients[0]))
        return (gradients[0] if ctx.needs_input_grad[0] else None), None, None, None, None
