"""The oracle: what each unit's removal does to the loss, exactly; the yardstick of every criterion.

It costs as many passes as there are units, so it can be interrupted: sums are kept in a file after
every batch, and whoever asks the same again goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.hardware.parallel import map_in_order
from fedprune.pruning.scores.clients import Clients, Progress, Source
from fedprune.pruning.scores.removals import Removals
from fedprune.pruning.scores.sums_file import SumsFile
from fedprune.pruning.structure.layout import UnitLayout


def oracle(
    model: nn.Module,
    layout: UnitLayout,
    inputs: Tensor | Source,
    labels: Tensor | None = None,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The change of the mean loss when each unit alone is removed: L(removed) − L.

    The network is in evaluation mode, batch norms folded; each number equals, to rounding, the
    difference of two evaluations, of the model and of `mask_model` without that unit. The only unit
    of a group is silenced like any other, though surgery would refuse it. Of a `GateLayout` each
    gate is closed. The numbers are the same for any number of threads and however often it was
    interrupted.

    Args:
        model: The model; it is not changed.
        layout: Its units, or its separate gates.
        inputs: [num_examples, ...], or a `Source`.
        labels: [num_examples]; None takes the source's own.
        state: A file that is written after every batch and read at the start, so that a run that
            was interrupted goes on; None keeps nothing.
        progress: Called with the examples done and their number after every batch.

    Returns:
        [num_units] float64, below 0 where the loss is better without the unit. The criterion
        `oracle` is its absolute value (Molchanov et al. 2019).

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if there is no example, lengths do not fit, or the state file is damaged or
            belongs to another network or other examples.
        ModelError: if a label is no class or a loss is not finite.
    """
    ids = torch.zeros(len(inputs), dtype=torch.int64)
    return oracle_clients(model, layout, inputs, labels, ids, state=state, progress=progress)[0]


def oracle_clients(
    model: nn.Module,
    layout: UnitLayout,
    inputs: Tensor | Source,
    labels: Tensor | None,
    client_ids: Tensor,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """`oracle` for every client's own examples, at the price of one for all of them.

    Args:
        model: The model; it is not changed.
        layout: Its units, or its separate gates.
        inputs: [num_examples, ...], or a `Source`.
        labels: [num_examples]; None takes the source's own.
        client_ids: Each example's client, [num_examples] integers.
        state: As of `oracle`.
        progress: As of `oracle`.

    Returns:
        [num_clients, num_units] float64; row i belongs to the i-th smallest client id.

    Raises:
        LayoutMismatchError, PruningError, ModelError: as `oracle`.
    """
    clients = Clients.of(inputs, labels, client_ids, None, progress)
    return loss_changes(model, layout, clients, state)


def loss_changes(
    model: nn.Module, layout: UnitLayout, clients: Clients, state: Path | None = None
) -> Tensor:
    """`oracle_clients` for clients that have been put together: [num_clients, num_units]."""
    removals = Removals(model, layout)
    examples = len(clients.source)
    size = removals.batch_size(examples)
    spans = [(start, min(start + size, examples)) for start in range(0, examples, size)]
    sums, done = torch.zeros(len(clients.ids), len(layout), dtype=torch.float64), 0
    kept = None if state is None else SumsFile(state, _digest(model, layout, clients, spans))
    if kept is not None:
        sums, done = kept.load(sums)
    left = spans[done:]
    for number, found in enumerate(_in_batches(removals, clients, left), done + 1):
        start, stop = spans[number - 1]
        sums.index_add_(0, clients.rows[start:stop], found.T.cpu())
        if kept is not None:
            kept.store(sums, number)
        if clients.progress is not None:
            clients.progress(stop, examples)
    return _finite(sums / clients.counts().unsqueeze(1), layout)


def _in_batches(
    removals: Removals, clients: Clients, spans: list[tuple[int, int]]
) -> Iterator[Tensor]:
    """The change of every example's loss without each unit, [num_units, batch] a batch."""
    if not spans:
        return

    def changes(batch: tuple[Tensor, Tensor]) -> Tensor:
        whole, without = removals.losses(*batch)
        return without - whole

    removals.look_at(clients.source.batch(0, min(2, len(clients.source)))[0])
    batches = (clients.source.batch(*span) for span in spans)
    with _full_products(removals.device):
        yield from map_in_order(changes, batches, min(removals.workers, len(spans)))


@contextmanager
def _full_products(device: torch.device) -> Iterator[None]:
    """Convolutions in full float32 on a GPU too: differences of losses are small."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic,
                     allow_tf32=False):  # fmt: skip
        yield


def _digest(
    model: nn.Module, layout: UnitLayout, clients: Clients, spans: list[tuple[int, int]]
) -> str:
    """Name everything that the sums rest on: the network, its units, examples and batches."""
    text = hashlib.sha256(f"{layout.fingerprint} {spans}".encode())
    state = model.state_dict()
    for name in sorted(state):
        _add(text, name, state[name])
    _add(text, "rows", clients.rows)
    for span in spans:
        inputs, labels = clients.source.batch(*span)
        _add(text, "inputs", inputs)
        _add(text, "labels", labels)
    return text.hexdigest()


def _add(text: Any, name: str, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    text.update(f"{name} {plain.dtype} {list(plain.shape)}".encode())
    text.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def _finite(changes: Tensor, layout: UnitLayout) -> Tensor:
    finite = changes.isfinite().all(0)
    if not bool(finite.all()):
        unit = int((~finite).nonzero()[0])
        raise ModelError(f"the loss of {layout.model_name} without unit {unit} is not finite")
    return changes
