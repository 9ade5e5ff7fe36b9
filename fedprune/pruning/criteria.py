"""How important each unit is: one row of scores for a model, or one for every client.

A criterion is two functions, one for minibatches and one for clients; `CRITERIA` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError, PruningError
from fedprune.pruning.gates import GateGradients
from fedprune.pruning.layout import UnitLayout
from fedprune.pruning.members import Layer
from fedprune.randomness import SimulationRandomness

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Progress: TypeAlias = Callable[[int, int], None]

DEFAULT_BATCH_SIZE = 250


@runtime_checkable
class Source(Protocol):
    """Examples that are made as they are needed, so that they never lie in memory all at once."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs [stop - start, ...] float32 and labels [stop - start] int64."""
        ...


@dataclass(frozen=True)
class Clients:
    """Every client's examples, one after another or mixed.

    Attributes:
        source: The examples.
        rows: For each example the row of its client, [num_examples] int64.
        ids: The distinct client ids in rising order, one for each row.
        batch_size: Examples in one pass.
        progress: Called with the examples done and their number after every pass, or None.
    """

    source: Source
    rows: Tensor
    ids: tuple[int, ...]
    batch_size: int
    progress: Progress | None


@dataclass(frozen=True)
class Criterion:
    """One way to score units.

    Attributes:
        of_batches: From model, layout, minibatches and seed to [num_units].
        of_clients: From model, layout, clients and seed to [num_clients, num_units].
    """

    of_batches: Callable[[nn.Module, UnitLayout, Batches, int | None], Tensor]
    of_clients: Callable[[nn.Module, UnitLayout, Clients, int | None], Tensor]


def score(
    model: nn.Module,
    layout: UnitLayout,
    batches: Batches,
    criterion: str = "taylor",
    *,
    seed: int | None = None,
) -> Tensor:
    """Score every unit on minibatches; higher = more important.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        batches: Minibatches (inputs [batch, ...], labels [batch]); the score is their mean.
            Criteria that see no data ignore them.
        criterion: A key of `CRITERIA`.
        seed: For `random`, which needs one.

    Returns:
        [num_units] float32.

    Raises:
        PruningError: if the criterion is unknown or there is no minibatch.
        ModelError: if a label is no class, or a loss or score is not finite.
    """
    scores = _find(criterion).of_batches(model, layout, batches, seed)
    return _finite(scores, criterion, layout)


def score_clients(
    model: nn.Module,
    layout: UnitLayout,
    inputs: Tensor | Source,
    labels: Tensor | None,
    client_ids: Tensor,
    criterion: str = "taylor",
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Score every unit for every client, in one batched pass over all their examples.

    A client's examples are one minibatch: its row is what `score` gives for
    `[(its inputs, its labels)]`, however the examples are ordered or batched here.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        inputs: [num_examples, ...], or a `Source` that makes them as they are needed.
        labels: [num_examples]; None takes the source's own.
        client_ids: Each example's client, [num_examples] integers.
        criterion: A key of `CRITERIA`.
        batch_size: Examples in one pass; it changes speed and memory, scores only by rounding.
        seed: For `random`, which needs one.
        progress: Called with the examples done and their number.

    Returns:
        [num_clients, num_units] float32; row i belongs to the i-th smallest client id.

    Raises:
        PruningError: if the criterion is unknown or lengths do not fit.
        ModelError: if a label is no class, or a loss or score is not finite.
    """
    found = _find(criterion)
    clients = _clients(inputs, labels, client_ids, batch_size, progress)
    return _finite(found.of_clients(model, layout, clients, seed), criterion, layout)


def _find(criterion: str) -> Criterion:
    if criterion not in CRITERIA:
        raise PruningError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    return CRITERIA[criterion]


def _finite(scores: Tensor, criterion: str, layout: UnitLayout) -> Tensor:
    finite = scores.isfinite().reshape(-1, len(layout)).all(0)
    if not bool(finite.all()):
        unit = int((~finite).nonzero()[0])
        raise ModelError(
            f"the {criterion} score of unit {unit} of {layout.model_name} is not finite; weights "
            f"and inputs must be"
        )
    return scores.float()


@dataclass(frozen=True)
class _InMemory:
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.inputs[start:stop], self.labels[start:stop]


@dataclass(frozen=True)
class _Relabelled:
    source: Source
    labels: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.source.batch(start, stop)[0], self.labels[start:stop]


def _clients(
    inputs: Tensor | Source,
    labels: Tensor | None,
    client_ids: Tensor,
    batch_size: int,
    progress: Progress | None,
) -> Clients:
    if batch_size < 1:
        raise PruningError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(inputs, Tensor):
        if labels is None:
            raise PruningError("labels must be given where inputs are a tensor, got None")
        source: Source = _InMemory(inputs, labels)
    else:
        source = inputs if labels is None else _Relabelled(inputs, labels)
    for name, values in (("labels", labels), ("client_ids", client_ids)):
        if values is not None and (values.ndim != 1 or len(values) != len(source)):
            raise PruningError(
                f"{name} must be one for each of the {len(source)} examples, got shape "
                f"{list(values.shape)}"
            )
    if len(source) == 0 or client_ids.is_floating_point():
        raise PruningError(
            f"client_ids must be integers for at least one example, got {len(source)} of "
            f"{str(client_ids.dtype).removeprefix('torch.')}"
        )
    ids, rows = client_ids.cpu().unique(return_inverse=True)
    return Clients(source, rows, tuple(ids.tolist()), batch_size, progress)


# --- taylor ------------------------------------------------------------------------------


def _taylor(model: nn.Module, layout: UnitLayout, batches: Batches, seed: int | None) -> Tensor:  # noqa: ARG001
    """Mean over minibatches of (∂L/∂z)², L the minibatch's mean loss (Molchanov et al. 2019)."""
    gates = GateGradients(model, layout)
    total, count = torch.zeros(len(layout), dtype=torch.float64), 0
    for inputs, labels in batches:
        one = _clients(
            inputs, labels, torch.zeros(len(inputs), dtype=torch.long), DEFAULT_BATCH_SIZE, None
        )
        total += _squared_means(gates, layout, one)[0]
        count += 1
    if count == 0:
        raise PruningError("taylor needs at least one minibatch, got none")
    return total / count


def _taylor_of_clients(
    model: nn.Module,
    layout: UnitLayout,
    clients: Clients,
    seed: int | None,  # noqa: ARG001
) -> Tensor:
    return _squared_means(GateGradients(model, layout), layout, clients)


def _squared_means(gates: GateGradients, layout: UnitLayout, clients: Clients) -> Tensor:
    """(Mean of the examples' gate gradients)² for each client, [num_clients, num_units]."""
    sums = torch.zeros(len(clients.ids), len(layout), dtype=torch.float64)
    examples = len(clients.source)
    for start in range(0, examples, clients.batch_size):
        stop = min(start + clients.batch_size, examples)
        inputs, labels = clients.source.batch(start, stop)
        sums.index_add_(0, clients.rows[start:stop], gates.of(inputs, labels).double().cpu())
        if clients.progress is not None:
            clients.progress(stop, examples)
    counts = torch.bincount(clients.rows, minlength=len(clients.ids))
    return sums.div_(counts.unsqueeze(1)).square_()


# --- criteria that see no data -----------------------------------------------------------


def _norms(model: nn.Module, layout: UnitLayout, power: int) -> Tensor:
    """Norm of the weights that produce each unit, [num_units]; without biases and batch norm."""
    layout.check_model(model)
    modules = dict(model.named_modules())
    powers = torch.zeros(len(layout), dtype=torch.float64)
    for layer in layout.layers:
        if layer.kind in ("conv", "depthwise", "linear") and not layer.is_selection:
            _add_powers(powers, layer, modules[layer.name], power)
    return powers.pow(1 / power)


def _add_powers(powers: Tensor, layer: Layer, module: nn.Module, power: int) -> None:
    weight = module.get_parameter("weight").detach().double().cpu()
    by_output = weight.transpose(0, 1) if getattr(module, "transposed", False) else weight
    owned = torch.from_numpy(layer.out_units >= 0)
    sums = by_output.abs().pow(power).flatten(1).sum(1)
    powers.index_add_(0, torch.from_numpy(layer.out_units)[owned], sums[owned])


def _magnitude(power: int) -> Criterion:
    """The norm of a unit's weights (Han et al. 2015); the same for every client."""

    def of_batches(
        model: nn.Module,
        layout: UnitLayout,
        batches: Batches,
        seed: int | None,  # noqa: ARG001
    ) -> Tensor:
        return _norms(model, layout, power)

    def of_clients(
        model: nn.Module,
        layout: UnitLayout,
        clients: Clients,
        seed: int | None,  # noqa: ARG001
    ) -> Tensor:
        return _norms(model, layout, power).expand(len(clients.ids), -1)

    return Criterion(of_batches, of_clients)


def _random(model: nn.Module, layout: UnitLayout, batches: Batches, seed: int | None) -> Tensor:  # noqa: ARG001
    return _uniform(_seeded(seed).stream("random scores"), len(layout))


def _random_of_clients(
    model: nn.Module,
    layout: UnitLayout,
    clients: Clients,
    seed: int | None,  # noqa: ARG001
) -> Tensor:
    streams = (_seeded(seed).stream("random scores", "client", one) for one in clients.ids)
    return torch.stack([_uniform(stream, len(layout)) for stream in streams])


def _seeded(seed: int | None) -> SimulationRandomness:
    if seed is None:
        raise PruningError("the criterion random needs a seed, got None")
    return SimulationRandomness(seed)


def _uniform(stream: SimulationRandomness, count: int) -> Tensor:
    return torch.from_numpy(stream.generator.random(count))


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(_random, _random_of_clients),
    "magnitude": _magnitude(2),
    "magnitude_l1": _magnitude(1),
    "magnitude_l2": _magnitude(2),
    "taylor": Criterion(_taylor, _taylor_of_clients),
}
