"""Dividing rows over clients: every row to exactly one, no client without training rows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprune.data.rows import Dataset, Index
from fedprune.errors import DataError
from fedprune.randomness import SimulationRandomness

Split = Literal["train", "test"]
LARGEST_ALPHA = 1e12  # beyond it every share is 1/clients to rounding, and sums would overflow


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which rows of one split belong to which client.

    Attributes:
        order: [n] int64, all rows, those of client 0 first, then those of client 1, and so on.
        offsets: [num_clients + 1] int64; client c has order[offsets[c]:offsets[c + 1]].
    """

    order: Index
    offsets: Index

    def sizes(self) -> Index:
        """Count the rows of each client: [num_clients] int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Federation:
    """A data set divided over clients."""

    kind: str
    train: Assignment
    test: Assignment

    @property
    def num_clients(self) -> int:
        """Count the clients."""
        return len(self.train.offsets) - 1

    def train_index(self, client: int) -> Index:
        """Give the training rows of one client: [rows] int64."""
        return self._index("train", client)

    def test_index(self, client: int) -> Index:
        """Give the test rows of one client: [rows] int64, maybe none."""
        return self._index("test", client)

    def row_order(self, split: Split) -> Index:
        """Give all rows of a split in the order of the clients that hold them: [n] int64."""
        return self._assignment(split).order

    def client_ids(self, split: Split) -> Index:
        """Tell who holds each row of `row_order(split)`: [n] int64, never falling."""
        sizes = self._assignment(split).sizes()
        return np.repeat(np.arange(self.num_clients, dtype=np.int64), sizes)

    def _index(self, split: Split, client: int) -> Index:
        if not 0 <= client < self.num_clients:
            raise DataError(f"client must be in 0 to {self.num_clients - 1}, got {client}")
        assignment = self._assignment(split)
        return assignment.order[assignment.offsets[client] : assignment.offsets[client + 1]]

    def _assignment(self, split: Split) -> Assignment:
        return {"train": self.train, "test": self.test}[split]


@dataclass(frozen=True)
class Request:
    """What a partition is asked for, with its own stream of random numbers."""

    dataset: Dataset
    clients: int
    alpha: float
    shards_per_client: int
    generator: np.random.Generator


# The owner of every row: of the training rows [n_train] and of the test rows [n_test].
Owners = tuple[Index, Index]


def partition(
    dataset: Dataset,
    kind: str,
    *,
    clients: int,
    seed: int,
    alpha: float = 0.3,
    shards_per_client: int = 2,
) -> Federation:
    """Divide a data set over clients; the seed decides everything that is random.

    Test rows go where the like training rows went: by the same shares of every class for
    dirichlet and shards, to the same site for natural. A client that dirichlet leaves without
    training rows gets one from whoever has most.

    Args:
        dataset: rows to divide.
        kind: a key of `PARTITIONS`: "iid", "dirichlet", "shards" or "natural".
        clients: how many; for natural the number of sites.
        seed: names the division.
        alpha: concentration for dirichlet; the smaller, the fewer classes a client sees.
        shards_per_client: runs of equal labels that each client gets, for shards.

    Raises:
        DataError: if the kind is unknown, a number is out of range, there are fewer training
            rows than clients (or shards), or the data set has no such sites.
    """
    if kind not in PARTITIONS:
        raise DataError(f"data.partition must be one of {', '.join(PARTITIONS)}, got {kind!r}")
    if not 1 <= clients <= len(dataset.train):
        raise DataError(
            f"data.clients must be in 1 to {len(dataset.train)}, the training rows of dataset "
            f"{dataset.name!r}, got {clients}"
        )
    generator = SimulationRandomness(seed).stream("partition").generator
    request = Request(dataset, clients, alpha, shards_per_client, generator)
    train_owners, test_owners = PARTITIONS[kind](request)
    return Federation(
        kind=kind,
        train=_assignment(train_owners, clients, generator),
        test=_assignment(test_owners, clients, generator),
    )


def iid(request: Request) -> Owners:
    """Deal shuffled rows out one by one: sizes differ by at most one."""

    def deal(count: int) -> Index:
        return request.generator.permutation(np.arange(count, dtype=np.int64) % request.clients)

    return deal(len(request.dataset.train)), deal(len(request.dataset.test))


def dirichlet(request: Request) -> Owners:
    """Draw every class's shares over the clients from Dir(alpha, ..., alpha).

    Source: Yurochkin et al. 2019, section 4.1; Li et al. 2022 (NIID-Bench), section 4.1.
    """
    dataset, generator = request.dataset, request.generator
    if not (request.alpha > 0 and math.isfinite(request.alpha)):
        raise DataError(f"data.alpha must be a number above 0, got {request.alpha}")
    concentration = np.full(request.clients, min(request.alpha, LARGEST_ALPHA))
    shares = generator.dirichlet(concentration, size=dataset.num_classes)
    train_owners = _deal_by_shares(dataset.train.labels, shares, generator)
    train_owners = _without_empty(train_owners, request.clients, generator)
    return train_owners, _like_train(request, train_owners)


def shards(request: Request) -> Owners:
    """Cut the rows, sorted by label, into equal runs and deal each client a few of them.

    Source: McMahan et al. 2017, section 3 ("pathological non-IID").
    """
    labels, generator = request.dataset.train.labels, request.generator
    most = len(labels) // request.clients
    if not 1 <= request.shards_per_client <= most:
        raise DataError(
            f"data.shards_per_client must be in 1 to {most}, since {request.clients} clients share "
            f"{len(labels)} training rows, got {request.shards_per_client}"
        )
    shuffled = generator.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    count = request.clients * request.shards_per_client
    cuts = np.arange(count + 1) * len(labels) // count
    holders = generator.permutation(np.arange(count, dtype=np.int64) % request.clients)
    train_owners = np.empty(len(labels), dtype=np.int64)
    train_owners[by_label] = np.repeat(holders, np.diff(cuts))
    return train_owners, _like_train(request, train_owners)


def natural(request: Request) -> Owners:
    """Give every site its own rows."""
    dataset, clients = request.dataset, request.clients
    if dataset.train.sites is None or dataset.test.sites is None:
        others = ", ".join(name for name in PARTITIONS if name != "natural")
        raise DataError(
            f"data.partition must be one of {others} for dataset {dataset.name!r}, which has no "
            f"natural sites, got 'natural'"
        )
    if clients != len(dataset.site_names):
        raise DataError(
            f"data.clients must be {len(dataset.site_names)} for the natural partition of dataset "
            f"{dataset.name!r} ({', '.join(dataset.site_names)}), got {clients}"
        )
    empty = np.flatnonzero(np.bincount(dataset.train.sites, minlength=clients) == 0)
    if len(empty):
        raise DataError(
            f"{dataset.site_names[empty[0]]} of dataset {dataset.name!r} has no training rows"
        )
    return dataset.train.sites, dataset.test.sites


PARTITIONS: dict[str, Callable[[Request], Owners]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "natural": natural,
}


def _like_train(request: Request, train_owners: Index) -> Index:
    """Deal the test rows of each class by the clients' counts of its training rows."""
    dataset = request.dataset
    cells = dataset.train.labels * request.clients + train_owners
    counts = np.bincount(cells, minlength=dataset.num_classes * request.clients)
    shares = counts.reshape(dataset.num_classes, request.clients).astype(np.float64)
    shares[shares.sum(axis=1) == 0] = 1.0  # a class that nobody trained on goes to all alike
    return _deal_by_shares(dataset.test.labels, shares, request.generator)


def _deal_by_shares(
    labels: Index, shares: NDArray[np.float64], generator: np.random.Generator
) -> Index:
    """Deal the rows of every class by `shares` [num_classes, clients]: owners [n].

    A client's count of a class differs from its share of the class by less than one: rows are
    dealt along the cumulated shares, in a random order of clients lest rounding favour some.
    """
    owners = np.empty(len(labels), dtype=np.int64)
    for label, share in enumerate(shares):
        rows = generator.permutation(np.flatnonzero(labels == label))
        clients = generator.permutation(len(share))
        ends = np.cumsum(share[clients])
        cuts = np.floor(ends / ends[-1] * len(rows) + 1e-9).astype(np.int64)
        owners[rows] = np.repeat(clients, np.diff(cuts, prepend=0))
    return owners


def _without_empty(owners: Index, clients: int, generator: np.random.Generator) -> Index:
    """Give every client without rows a random row of whoever has most at that moment."""
    assignment = _assignment(owners, clients, generator)
    repaired = owners.copy()
    sizes = assignment.sizes()
    ends = assignment.offsets[1:].copy()
    richest = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(richest)
    for client in np.flatnonzero(sizes == 0):
        size, donor = heapq.heappop(richest)
        ends[donor] -= 1
        repaired[assignment.order[ends[donor]]] = client
        if size + 1 < -1:
            heapq.heappush(richest, (size + 1, donor))
    return repaired


def _assignment(owners: Index, clients: int, generator: np.random.Generator) -> Assignment:
    """Sort rows by owner, in random order within each."""
    shuffled = generator.permutation(len(owners)).astype(np.int64)
    order = shuffled[np.argsort(owners[shuffled], kind="stable")]
    sizes = np.bincount(owners, minlength=clients)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Assignment(order, offsets)
