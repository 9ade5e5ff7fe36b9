"""A network as a list of operations that can be run from the middle, with some layers replaced."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

Values = dict[fx.Node, Any]


class Program:
    """The operations of a traced network, in order.

    Attributes:
        overwrites: Whether some operation changes a value that an earlier one has made.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        """Index a graph that was traced of `model`."""
        self.model, self.nodes = model, list(graph.nodes)
        self.overwrites = False
        self._places: dict[str, list[int]] = {}
        self._dead_after: list[list[fx.Node]] = [[] for _ in self.nodes]
        place_of = {node: place for place, node in enumerate(self.nodes)}
        for place, node in enumerate(self.nodes):
            if node.op == "call_module":
                self._places.setdefault(str(node.target), []).append(place)
            last = max((place_of[user] for user in node.users), default=place)
            self._dead_after[last].append(node)

    @property
    def layers(self) -> set[str]:
        """Names of the modules that it calls."""
        return set(self._places)

    def calls(self, layer: str) -> int:
        """How often it calls a module."""
        return len(self._places.get(layer, ()))

    def on(self, model: nn.Module) -> Program:
        """The same operations with another copy of the network's modules."""
        other = copy.copy(self)
        other.model = model
        return other

    def caller(self, node: fx.Node) -> Callable[[Any], Any]:
        """A function that runs one operation with another first argument; the rest are constants.

        Raises:
            ValueError: if another argument is computed, too.
        """
        if any(isinstance(one, fx.Node) for one in (*node.args[1:], *node.kwargs.values())):
            raise ValueError(f"{node} has more than one computed argument")

        def call(first: Any) -> Any:
            args = (first, *node.args[1:])
            return _OPERATIONS[node.op](self.model, node, args, node.kwargs, {})

        return call

    def first_of(self, layers: Iterable[str]) -> int:
        """The place of the first call of any of some layers."""
        return min(self._places[layer][0] for layer in layers)

    def start(self, inputs: Tensor) -> Running:
        """Begin with a batch; nothing is computed yet."""
        return Running(self, inputs)

    def step(
        self, place: int, values: Values, inputs: Tensor, replaced: Mapping[str, nn.Module]
    ) -> None:
        """Run one operation and drop the values that no later one needs."""
        node = self.nodes[place]
        if node.op == "placeholder":  # the first one is the input, others have their defaults
            values[node] = inputs if place == 0 else node.args[0]
        else:
            args, named = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = _OPERATIONS[node.op](self.model, node, args, named, replaced)
        for gone in self._dead_after[place]:
            values.pop(gone, None)


class Running:
    """One batch on its way through a program."""

    def __init__(self, program: Program, inputs: Tensor) -> None:
        """Stand before the first operation."""
        self._program, self._inputs = program, inputs
        self._values: Values = {}
        self._place = 0

    def advance(self, place: int) -> None:
        """Run every operation before a place that has not been run yet."""
        while self._place < place:
            self._program.step(self._place, self._values, self._inputs, {})
            self._place += 1

    def finish_with(self, replaced: Mapping[str, nn.Module]) -> Tensor:
        """Run the rest with some layers replaced and stay where one is: [batch, classes]."""
        values = dict(self._values)
        if self._program.overwrites:
            # In one go, so that values that share memory still do.
            values = dict(zip(values, copy.deepcopy(list(values.values())), strict=True))
        end = len(self._program.nodes) - 1
        for place in range(self._place, end):
            self._program.step(place, values, self._inputs, replaced)
        output: Tensor = fx.node.map_arg(self._program.nodes[end].args[0], values.__getitem__)
        return output


def trace_program(model: nn.Module, layers: set[str], sample: Tensor) -> Program | None:
    """Trace a network, with some layers kept whole; None if it cannot be traced faithfully.

    Args:
        model: In evaluation mode.
        layers: Names of modules that are to be called as they are.
        sample: [batch, ...]; on it the program must say what the model says.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer(layers).trace(model)
        program = Program(model, graph)
        if layers - program.layers:
            return None
        found, program.overwrites = _watched(program, sample)
        return program if _same(found, model(sample)) else None
    except Exception:  # what a user's forward does while it is traced is anything
        return None


class _Tracer(fx.Tracer):
    def __init__(self, layers: set[str]) -> None:
        super().__init__()
        self._layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._layers or super().is_leaf_module(
            m, module_qualified_name
        )


def _watched(program: Program, sample: Tensor) -> tuple[Tensor, bool]:
    """Run a program and see whether an operation changes a value that was there before."""
    values: Values = {}
    overwrites, sample = False, sample.clone()
    for place in range(len(program.nodes) - 1):
        before = [(value, value._version) for value in _tensors([*values.values(), sample])]
        program.step(place, values, sample, {})
        overwrites |= any(value._version != version for value, version in before)
    output: Tensor = fx.node.map_arg(program.nodes[-1].args[0], values.__getitem__)
    return output, overwrites


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_tensors(value))
    return found


def _same(found: Any, wanted: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    return bool(found.is_meta or torch.allclose(found, wanted, rtol=1e-4, atol=1e-5))


def _attribute(model: nn.Module, node: fx.Node, _args: Any, _named: Any, _replaced: Any) -> Any:
    return operator.attrgetter(str(node.target))(model)


def _function(_model: Any, node: fx.Node, args: Any, named: Any, _replaced: Any) -> Any:
    assert callable(node.target)
    return node.target(*args, **named)


def _method(_model: Any, node: fx.Node, args: Any, named: Any, _replaced: Any) -> Any:
    return getattr(args[0], str(node.target))(*args[1:], **named)


def _module(model: nn.Module, node: fx.Node, args: Any, named: Any, replaced: Any) -> Any:
    name = str(node.target)
    module = replaced[name] if name in replaced else model.get_submodule(name)
    return module(*args, **named)


_OPERATIONS: dict[str, Callable[[nn.Module, fx.Node, Any, Any, Any], Any]] = {
    "get_attr": _attribute,
    "call_function": _function,
    "call_method": _method,
    "call_module": _module,
}
