"""Every client's examples as one stream of batches, with the row of scores each belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import PruningError
from fedprune.hardware.parallel import map_in_order

Progress: TypeAlias = Callable[[int, int], None]


class Source(Protocol):
    """Examples that are made as they are needed, so that they never lie in memory all at once."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs [stop - start, ...] float32 and labels [stop - start] int64."""
        ...


class Passes(Protocol):
    """What gives a row of values for each example of a batch."""

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        ...

    @property
    def workers(self) -> int:
        """Batches that may be worked on at once, each in a thread of its own."""
        ...

    @property
    def num_values(self) -> int:
        """Values of each example."""
        ...

    def batch_size(self, examples: int) -> int:
        """Examples of a fast pass, where there are so many in all."""
        ...

    def of(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Values [batch, num_values] of one batch."""
        ...


@dataclass(frozen=True)
class Clients:
    """Every client's examples, one client after another or mixed.

    Attributes:
        source: The examples.
        rows: For each example the row of its client, [num_examples] int64.
        ids: The distinct client ids in rising order, one for each row.
        batch_size: Examples in one pass, or None for what the model runs fast with.
        progress: Called with the examples done and their number after every pass, or None.
    """

    source: Source
    rows: Tensor
    ids: tuple[int, ...]
    batch_size: int | None = None
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        inputs: Tensor | Source,
        labels: Tensor | None,
        client_ids: Tensor,
        batch_size: int | None,
        progress: Progress | None,
    ) -> Clients:
        """Put examples, labels and client ids together.

        Raises:
            PruningError: if lengths or types do not fit.
        """
        if batch_size is not None and batch_size < 1:
            raise PruningError(f"batch_size must be at least 1, got {batch_size}")
        source = _source(inputs, labels)
        if len(source) == 0:
            raise PruningError("there must be at least one example, got none")
        if client_ids.is_floating_point() or tuple(client_ids.shape) != (len(source),):
            raise PruningError(
                f"client_ids must be {len(source)} integers, one for each example, got "
                f"{str(client_ids.dtype).removeprefix('torch.')} of shape {list(client_ids.shape)}"
            )
        ids, rows = np.unique(client_ids.cpu().numpy(), return_inverse=True)
        return cls(source, torch.from_numpy(rows), tuple(ids.tolist()), batch_size, progress)

    @classmethod
    def of_one(cls, inputs: Tensor, labels: Tensor) -> Clients:
        """All examples are one client's: one minibatch."""
        rows = torch.zeros(len(inputs), dtype=torch.int64)
        return cls.of(inputs, labels, rows, None, None)

    def sum_rows(self, passes: Passes) -> Tensor:
        """Sum values over each client's examples, [num_clients, num_values] float64.

        Batches are read in order in the calling thread and summed in order, so that the sums are
        the same however many threads there are.
        """
        device, examples = passes.device, len(self.source)
        sums = torch.zeros(len(self.ids), passes.num_values, dtype=torch.float64, device=device)
        rows = self.rows.to(device)
        size = self.batch_size or passes.batch_size(examples)
        spans = [(start, min(start + size, examples)) for start in range(0, examples, size)]
        batches = (self.source.batch(*span) for span in spans)
        workers = min(passes.workers, len(spans))
        values = map_in_order(lambda batch: passes.of(*batch), batches, workers)
        for (start, stop), found in zip(spans, values, strict=True):
            sums.index_add_(0, rows[start:stop], found.double())
            if self.progress is not None:
                self.progress(stop, examples)
        return sums

    def mean_rows(self, passes: Passes) -> Tensor:
        """Mean values over each client's examples, [num_clients, num_values] float64."""
        sums = self.sum_rows(passes)
        return sums.div_(self.counts().to(sums.device).unsqueeze(1))

    def counts(self) -> Tensor:
        """Number of each client's examples, [num_clients] int64."""
        return torch.bincount(self.rows, minlength=len(self.ids))


@dataclass(frozen=True)
class _InMemory:
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.inputs[start:stop].clone(), self.labels[start:stop]  # models may overwrite it


@dataclass(frozen=True)
class _Relabelled:
    source: Source
    labels: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.source.batch(start, stop)[0], self.labels[start:stop]


def _source(inputs: Tensor | Source, labels: Tensor | None) -> Source:
    if labels is not None and tuple(labels.shape) != (len(inputs),):
        raise PruningError(
            f"labels must be {len(inputs)} integers, one for each example, got shape "
            f"{list(labels.shape)}"
        )
    if not isinstance(inputs, Tensor):
        return inputs if labels is None else _Relabelled(inputs, labels)
    if labels is None:
        raise PruningError("labels must be given where inputs are a tensor, got None")
    return _InMemory(inputs, labels)
