"""From a torch module to a lowered network: symbolic trace, rules, batch norm folded.

The graph comes from torch.fx, because hooks on modules do not see the additions of skip
connections. The lowered network is run beside the model it came from, in float64, and refused if
the two differ: hidden state, in-place tricks or data-dependent Python cannot slip through.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from fedprune.copying import copy_model
from fedprune.errors import RobustnessError, UnsupportedOpError
from fedprune.robustness.affine import Affine, Dense
from fedprune.robustness.arguments import check_tensor
from fedprune.robustness.model_checks import (
    FAILURES,
    asks_shape,
    check_agreement,
    check_example,
    check_model,
    check_overwriting,
)
from fedprune.robustness.network import Network, Step
from fedprune.robustness.operations import Diagonal, Operation
from fedprune.robustness.rules import (
    METHOD_RULES,
    Call,
    Value,
    function_rule,
    module_rule,
)
from fedprune.robustness.rules.moving import SPLITTERS, split

T = TypeVar("T")

MAX_FOLDS = 3
"""Batch norms folded into one map: each rounds its weights some 4 times, `FOLD_STEPS` allow 16."""


def lower(model: nn.Module, example_input: Tensor) -> Network:
    """Lower a model in eval mode to a `Network`.

    What the model computes from its weights alone (a weight norm, say) counts as float64 gives it.

    Args:
        model: on any device, in eval mode, without hooks; it is not changed.
        example_input: [1, ...], the shape for which the bound holds.

    Raises:
        RobustnessError: if the model is in train mode, has hooks or weights that are not finite,
            cannot be traced or run, or does not compute what its trace computes.
        UnsupportedOpError: if an operation has no rigorous rule; names node and operation.
    """
    check_model(model)
    check_example(example_input)
    with torch.inference_mode(False), torch.no_grad():
        inputs = example_input.detach().to(device="cpu", dtype=torch.float64, copy=True)
        # A copy, since tracing leaves constants behind as attributes; in float64 from here on, so
        # that constants which the model computes from its weights are not rounded to float32.
        own = copy_model(model).to(device="cpu", dtype=torch.float64)
        if module_rule(own) is not None:  # a lone layer becomes a node instead of being opened
            own = nn.Sequential(own).eval()
        lowering = _Lowering(own, inputs)
        network = fold_batch_norms(lowering.network())
        check_agreement(own, network, inputs)
        check_overwriting(own, lowering.graph, inputs)
    return network


def fold_batch_norms(network: Network) -> Network:
    """Fold each batch norm into the convolution or linear map before it that only it reads."""
    steps = dict(network.steps)
    renamed: dict[str, str] = {}
    readers = network.readers()
    for name, step in network.steps.items():
        inputs = tuple(renamed.get(source, source) for source in step.inputs)
        steps[name] = Step(step.operation, inputs, step.shape)
        before = steps.get(inputs[0])
        if not _is_foldable(step, before) or readers[step.inputs[0]] != 1:
            continue
        assert before is not None
        affine = cast(Affine, before.operation)
        folded = affine.fold(cast(Diagonal, step.operation))
        steps[inputs[0]] = Step(folded, before.inputs, before.shape)
        renamed[name] = inputs[0]
        del steps[name]
    output = renamed.get(network.output, network.output)
    return Network(network.input, network.input_shape, steps, output)


def _is_foldable(step: Step, before: Step | None) -> bool:
    if before is None or not isinstance(step.operation, Diagonal):
        return False
    channels_are_last = isinstance(before.operation, Dense) and len(before.shape) != 2
    if not isinstance(before.operation, Affine) or channels_are_last:
        return False
    return before.operation.folded.count("+") < MAX_FOLDS


class _Tracer(fx.Tracer):
    """Treats every module that has a rule as one node, subclasses that inherit forward too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_rule(m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _Lowering:
    """Walks a traced graph once; holds what each node stands for."""

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self._model = model
        self.graph = _trace(model)
        self._known: dict[fx.Node, Any] = {}
        self._samples: dict[str, Tensor] = {}
        self._steps: dict[str, Step] = {}
        self._example = example_input
        self._input: Value | None = None

    def network(self) -> Network:
        """Lower every node that the output needs."""
        output: Any = None
        for node in self.graph.nodes:
            if node.op == "output":
                output = self._resolve(node.args[0])
            else:
                self._known[node] = self._lower(node)
        if not isinstance(output, Value) or self._input is None:
            fixed = isinstance(output, Tensor)
            raise RobustnessError(
                "the model must return one tensor that depends on its input, got "
                f"{'a constant' if fixed else type(output).__name__}"
            )
        return Network(self._input.name, self._input.shape, self._steps, output.name).trimmed()

    def _lower(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return _attribute(self._model, str(node.target))
        call = self._call(node)
        if node.target is operator.getitem and isinstance(call.args[0], (tuple, list)):
            return call.args[0][call.args[1]]
        values = list(call.values())
        if not values:
            return self._constant(node, call)
        if asks_shape(node):
            return _shape_answer(node, call)
        if node.op != "call_module" and node.target in SPLITTERS:
            return self._pieces(node, call, values)
        return self._step(node.name, call, _operation(node, call), values)

    def _placeholder(self, node: fx.Node) -> Any:
        if self._input is None:
            self._input = Value(node.name, tuple(self._example.shape))
            self._samples[node.name] = self._example
            return self._input
        if node.args:
            return node.args[0]
        raise RobustnessError(f"the model needs a second input {node.name!r}; one is allowed")

    def _call(self, node: fx.Node) -> Call:
        module = None
        label = node.target if isinstance(node.target, str) else _function_name(node.target)
        if node.op == "call_module":
            module = self._model.get_submodule(str(node.target))
            label = type(module).__name__
        args = tuple(self._resolve(argument) for argument in node.args)
        kwargs = {name: self._resolve(argument) for name, argument in node.kwargs.items()}
        return Call(node.name, label, args, kwargs, module)

    def _resolve(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self._known[node])

    def _constant(self, node: fx.Node, call: Call) -> Any:
        """Compute what does not depend on the input: sizes, constants, reshaped weights."""
        if node.op == "call_function" and callable(node.target):
            function = node.target
            found = _bounded(call, lambda call: function(*call.args, **call.kwargs))
            return _finite(found, node.name)
        if node.op == "call_method":
            method = getattr(call.args[0], str(node.target))
            found = _bounded(call, lambda call: method(*call.args[1:], **call.kwargs))
            return _finite(found, node.name)
        return call.refuse("it does not depend on the network's input")

    def _pieces(self, node: fx.Node, call: Call, values: list[Value]) -> tuple[Value, ...]:
        pieces = _bounded(call, lambda call: split(call, SPLITTERS[node.target]))
        return tuple(
            self._step(f"{node.name}_{number}_of_{len(pieces)}", call, piece, values)
            for number, piece in enumerate(pieces)
        )

    def _step(self, name: str, call: Call, operation: Operation, values: list[Value]) -> Value:
        samples = [self._samples[value.name] for value in values]
        sample = _bounded(call, lambda _: operation.run(*samples))
        if sample.ndim < 2 or sample.shape[0] != 1:
            call.refuse(f"its output has shape {tuple(sample.shape)}, without a batch axis")
        value = Value(name, tuple(sample.shape))
        self._samples[name] = sample
        self._steps[name] = Step(operation, tuple(v.name for v in values), value.shape)
        return value


def _operation(node: fx.Node, call: Call) -> Operation:
    if call.module is not None:
        rule = module_rule(call.module)
    elif node.op == "call_method":
        rule = METHOD_RULES.get(str(node.target))
    else:
        rule = function_rule(node.target)
    if rule is None:
        place = f" (module {node.target})" if call.module is not None else ""
        call.refuse(f"the operation is not known{place}")
    return _bounded(call, rule)


def _bounded(call: Call, rule: Callable[[Call], T]) -> T:
    """Apply a rule; what Python refuses is refused with the node's name."""
    try:
        return rule(call)
    except FAILURES as error:
        raise UnsupportedOpError(
            f"operation {call.label!r} at node {call.node!r} cannot be bounded as it is called: "
            f"{error}"
        ) from error


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except (fx.proxy.TraceError, *FAILURES) as error:
        raise RobustnessError(
            f"the graph of {type(model).__name__} cannot be traced: {error}"
        ) from error


def _attribute(model: nn.Module, path: str) -> Any:
    holder, _, name = path.rpartition(".")
    found = getattr(model.get_submodule(holder), name)
    # a copy: the graph may overwrite it in place, and the model is not ours to change
    return _finite(found.detach().clone(), path) if isinstance(found, Tensor) else found


def _finite(value: Any, name: str) -> Any:
    check_tensor(value, f"the constant {name!r} of the model")
    return value


def _function_name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _shape_answer(node: fx.Node, call: Call) -> Any:
    stand_in = torch.empty(call.args[0].shape, dtype=torch.float64, device="meta")
    if node.target is getattr:
        return torch.device("cpu") if call.args[1] == "device" else getattr(stand_in, call.args[1])
    return getattr(stand_in, str(node.target))(*call.args[1:], **call.kwargs)
