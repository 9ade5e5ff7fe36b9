"""Other ways to run the same network: laid out, folded, exported or compiled.

Each way is built, run once and compared with the network itself; where it does not work here, or
says something else, it is skipped with the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedprune.copying import copy_model
from fedprune.errors import ConfigError
from fedprune.hardware._modes import evaluating, threads_set_to

_CLOSE = 1e-3  # of the largest output: other kernels round otherwise


@dataclass(frozen=True)
class Variants:
    """A network in several ways.

    Attributes:
        models: By name, ready for `latency` and `compare`.
        skipped: From the name of a way that does not work here to the reason.
    """

    models: dict[str, nn.Module]
    skipped: dict[str, str]


class Prepared(nn.Module):
    """Something that is called with a batch, made to look like any other network."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        """Take what is called; its modes are its own affair."""
        super().__init__()
        self._run = [run]  # in a list: not a submodule, which an exported program cannot be

    def forward(self, batch: Tensor) -> Tensor:
        """Call it."""
        return self._run[0](batch)


def variants(
    model: nn.Module, batch: Tensor, names: Iterable[str] | None = None, *, threads: int = 1
) -> Variants:
    """Build a network in several ways for batches of one shape.

    Args:
        model: The network; it is left as it is and taken in evaluation mode.
        batch: [batch, ...]; what is exported or compiled may only take this shape.
        names: Keys of `VARIANTS`; None for all.
        threads: Threads that a compiler may count on.

    Raises:
        ConfigError: if a name is unknown.
    """
    wanted = list(VARIANTS) if names is None else list(names)
    unknown = [name for name in wanted if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, got {unknown[0]!r}")
    found, skipped = Variants({}, {}), {}
    with evaluating([model]), threads_set_to(threads):
        expected = model(batch)
        for name in wanted:
            built, reason = _try(name, model, batch, expected)
            if built is None:
                skipped[name] = reason
            else:
                found.models[name] = built
    return Variants(found.models, skipped)


def _try(
    name: str, model: nn.Module, batch: Tensor, expected: Tensor
) -> tuple[nn.Module | None, str]:
    try:
        # What is copied or traced in inference mode can be used nowhere else.
        with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations of ways that still work here
            own = copy_model(model).eval().requires_grad_(False)
            built = VARIANTS[name](own, batch.clone())
            answer = built(batch.clone())
    except Exception as error:  # what a compiler without a compiler raises cannot be listed
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    gap = float((answer - expected).abs().max())
    if not gap <= _CLOSE * float(expected.abs().max()):
        return None, f"its outputs differ by {gap:.2g}"
    return built, ""


def _eager(model: nn.Module, batch: Tensor) -> nn.Module:
    del batch
    return model


def _channels_last(model: nn.Module, batch: Tensor) -> nn.Module:
    if batch.ndim != 4:
        raise ValueError(f"channels last is for images, got inputs of {batch.ndim} dimensions")
    model = model.to(memory_format=torch.channels_last)
    return Prepared(lambda images: model(images.contiguous(memory_format=torch.channels_last)))


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution into it; for evaluation only.

    Args:
        model: A network that `torch.fx` can trace; it is copied.

    Raises:
        Exception: whatever `torch.fx` raises where it cannot trace the network.
    """
    traced = symbolic_trace(copy_model(model).eval())
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        before: Any = node.args[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, _FOLDABLE) and len(before.users) == 1 and _once(traced, before):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _once(traced: torch.fx.GraphModule, call: torch.fx.Node) -> bool:
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == call.target]
    return len(calls) == 1


def _folded(model: nn.Module, batch: Tensor) -> nn.Module:
    del batch
    return fold_norms(model)


def _folded_channels_last(model: nn.Module, batch: Tensor) -> nn.Module:
    return _channels_last(fold_norms(model), batch)


def _frozen(model: nn.Module, batch: Tensor) -> nn.Module:
    traced = torch.jit.freeze(torch.jit.trace(model, batch))  # type: ignore[no-untyped-call]
    fast: Any = torch.jit.optimize_for_inference(traced)
    for _ in range(3):  # the first calls specialise
        fast(batch)
    return Prepared(fast)


def _exported(model: nn.Module, batch: Tensor) -> nn.Module:
    return Prepared(torch.export.export(model, (batch,)).module())


def _compile_alone(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """`torch.compile`, with what is compiled kept apart from every other network's.

    The compiler keeps its results by code object. Networks of one class share the code of their
    forward pass: from the ninth on they would silently not be compiled at all
    (`recompile_limit`), and a call would try the guards of all others first.
    """

    def call(batch: Tensor) -> Tensor:
        answer: Tensor = model(batch)
        return answer

    code = call.__code__.replace(co_name=f"call_{next(_COMPILED)}")
    alone = FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
    return torch.compile(alone, dynamic=False, options={"freezing": True})


_COMPILED = count(1)


def _compiled(model: nn.Module, batch: Tensor) -> nn.Module:
    del batch
    return Prepared(_compile_alone(model))


def _compiled_channels_last(model: nn.Module, batch: Tensor) -> nn.Module:
    del batch
    run = _compile_alone(model.to(memory_format=torch.channels_last))
    return Prepared(lambda images: run(images.contiguous(memory_format=torch.channels_last)))


VARIANTS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "eager": _eager,
    "channels_last": _channels_last,
    "folded": _folded,
    "folded_channels_last": _folded_channels_last,
    "frozen": _frozen,
    "exported": _exported,
    "compiled": _compiled,
    "compiled_channels_last": _compiled_channels_last,
}
