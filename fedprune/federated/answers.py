"""What many clients answered to one question: one record of columns instead of a message each.

A client that is asked alone answers with Flower records. Clients of a simulation that are asked
together answer the same fields at once, one column a field; what is alike in all answers is kept
once. Either form can be written as the other, so the server's code reads columns only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import Scalar
from fedprune.errors import FederationError, FedpruneError
from fedprune.federated.messages import (
    answer_content,
    checked_number,
    checked_weights,
    weights_of,
)
from fedprune.progress import Reporter

T = TypeVar("T")
Rows: TypeAlias = NDArray[np.uint8]
Column: TypeAlias = NDArray[Any] | Sequence[Scalar | bytes]
Outcome: TypeAlias = RecordDict | FedpruneError


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of several clients to one question.

    Attributes:
        clients: [n] int64, whose answers these are, in the order in which they were asked.
        columns: field -> its n values: byte strings as [n, size] uint8, whole numbers as [n], or
            any sequence.
        shared: field -> the value that it has in all answers.
        failures: client -> why there is no answer of it.
        weights: the models that came with the answers, n of them, each [size] float32 or None;
            empty where the question was not about training.
    """

    clients: NDArray[np.int64]
    columns: Mapping[str, Column] = field(default_factory=dict)
    shared: Mapping[str, Scalar | bytes] = field(default_factory=dict)
    failures: Mapping[int, FedpruneError] = field(default_factory=dict)
    weights: Sequence[Tensor | None] = ()

    @staticmethod
    def of(clients: Sequence[int], outcomes: Sequence[Outcome]) -> Answers:
        """Put the "answer" records of single clients together; all have the same fields.

        Raises:
            FederationError: if one has other fields than the first.
        """
        pairs = list(zip(clients, outcomes, strict=True))
        failures = {c: found for c, found in pairs if not isinstance(found, RecordDict)}
        answered = [(c, found) for c, found in pairs if isinstance(found, RecordDict)]
        records = [dict(found.config_records["answer"]) for _, found in answered]
        names = records[0].keys() if records else ()
        for client, record in zip((c for c, _ in answered), records, strict=True):
            if record.keys() != names:
                raise FederationError(f"client {client} answers with other fields than the rest")
        columns: dict[str, Any] = {name: [record[name] for record in records] for name in names}
        weights: list[Tensor | None] = []
        if any(found.array_records for _, found in answered):
            weights = [weights_of(found) for _, found in answered]
        numbers = np.array([c for c, _ in answered], np.int64)
        return Answers(numbers, columns, {}, failures, weights)

    @staticmethod
    def none(clients: Sequence[int], error: FedpruneError) -> Answers:
        """Every client fails for the same reason."""
        return Answers(np.empty(0, dtype=np.int64), failures=dict.fromkeys(clients, error))

    def __len__(self) -> int:
        """Count the answers; failures are not among them."""
        return len(self.clients)

    @property
    def first(self) -> int:
        """The first client that answered: the one to name where there is but one."""
        return int(self.clients[0])

    def one_by_one(self) -> Iterator[Answers]:
        """Take the answers apart again."""
        for i in range(len(self)):
            columns = {name: column[i : i + 1] for name, column in self.columns.items()}
            weights = self.weights[i : i + 1]
            yield Answers(self.clients[i : i + 1], columns, self.shared, weights=weights)

    def without(self, clients: Collection[int]) -> Answers:
        """Leave some clients' answers out; failures stay."""
        kept = [i for i, client in enumerate(self.clients.tolist()) if client not in clients]
        columns = {
            name: column[kept] if isinstance(column, np.ndarray) else [column[i] for i in kept]
            for name, column in self.columns.items()
        }
        weights = [self.weights[i] for i in kept] if self.weights else ()
        return Answers(self.clients[kept], columns, self.shared, self.failures, weights)

    def outcomes(self, asked: Sequence[int]) -> list[Outcome]:
        """Write as Flower records: one outcome for each of the clients asked, in their order."""
        contents = self._contents()
        return [self.failures[c] if c in self.failures else next(contents) for c in asked]

    def rows(self, name: str, what: str) -> Rows:
        """Read byte strings of one size: [n, size] uint8.

        Raises:
            FederationError: naming the client where it is the only one, if there are none, or
                they differ in size.
        """
        column = self.columns.get(name, ())
        if isinstance(column, np.ndarray) and column.ndim == 2:
            return np.asarray(column, dtype=np.uint8)
        values = [value for value in column if isinstance(value, bytes)]
        sizes = {len(value) for value in values}
        if len(values) != len(self) or len(sizes) != 1:
            raise FederationError(f"client {self.first} sent no {what}")
        return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), sizes.pop())

    def models(self, size: int) -> list[Tensor]:
        """Read the weights that came with the answers: n times [size] float32, finite.

        Raises:
            FederationError: naming the first client whose weights are none.
        """
        found = self.weights or [None] * len(self)
        pairs = zip(self.clients.tolist(), found, strict=True)
        return [checked_weights(client, weights, size) for client, weights in pairs]

    def numbers(self, name: str, least: float = -math.inf) -> list[float]:
        """Read a finite number of every answer.

        Raises:
            FederationError: naming the first client that has sent none of at least `least`.
        """
        values = self.columns.get(name, [None] * len(self))
        pairs = zip(self.clients.tolist(), values, strict=True)
        return [checked_number(client, name, value, least) for client, value in pairs]

    def alike(self, name: str) -> Scalar | bytes | None:
        """Read a field that has to be the same in all answers; None where it is not."""
        values = set(self.columns.get(name, ()))
        return values.pop() if len(values) == 1 else self.shared.get(name)

    def _contents(self) -> Iterator[RecordDict]:
        for i, client in enumerate(self.clients.tolist()):
            fields = {name: _value(column, i) for name, column in self.columns.items()}
            weights = self.weights[i] if self.weights else None
            yield answer_content(client, {**self.shared, **fields}, weights)


Outcomes: TypeAlias = Answers | list[Outcome]
ReadTogether = Callable[[Answers], T]


def _value(column: Column, place: int) -> Scalar | bytes:
    value = column[place]
    if isinstance(value, np.ndarray):
        return value.tobytes()
    plain: Scalar | bytes = value.item() if isinstance(value, np.generic) else value
    return plain


def singly(read: Callable[[Answers], T]) -> Callable[[int, RecordDict], T]:
    """Let a function that reads answers read the records of one client."""

    def read_one(client: int, content: RecordDict) -> T:
        return read(Answers.of([client], [content]))

    return read_one


def read_together(
    answers: Answers, read: ReadTogether[T], failures: dict[int, FedpruneError]
) -> Iterator[T]:
    """Read answers at once; where that fails, each by itself, so that who failed is known.

    The failures are added to `failures`, each under its client.
    """
    if not len(answers):
        return
    try:
        found = read(answers)
    except FedpruneError as error:
        if len(answers) == 1:
            failures[answers.first] = error
        else:
            for one in answers.one_by_one():
                yield from read_together(one, read, failures)
        return
    yield found


def counted(
    reporter: Reporter, heard: Iterable[Answers], label: str, total: int
) -> Iterator[Answers]:
    """Pass answers on; the reporter counts clients."""
    ticks = reporter.track(range(total + 1), label, total) if label else iter(())
    next(ticks, None)  # shows the bar: an item counts once the next one is asked for
    try:
        for answers in heard:
            yield answers
            deque(islice(ticks, len(answers) + len(answers.failures)), maxlen=0)
    finally:
        close = getattr(ticks, "close", None)
        if close is not None:
            close()


def as_rows(texts: Sequence[bytes], size: int) -> Rows:
    """Put byte strings of one size into one array: [len(texts), size] uint8."""
    return np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(len(texts), size)
