"""Traces of when clients can be reached: intervals on a clock, from a CSV file.

The header is `client,start,end`; each further line says that a client is there from `start` up to,
but not including, `end`, in seconds since the trace began. A client without a line is never there.
After its last end a trace repeats, as the traces of FedScale (Lai et al. 2022), whose lists of
active and inactive times hold the same intervals, are used too.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedprune.data.files import read_text
from fedprune.errors import DataError

HEADER = ("client", "start", "end")

Index = NDArray[np.int64]
Seconds = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AvailabilityTrace:
    """Disjoint intervals that do not touch, by client and time.

    Attributes:
        num_clients: clients are numbered 0 to num_clients - 1.
        clients: [intervals] int64, whose they are, rising.
        starts, ends: [intervals] float64, seconds.
    """

    num_clients: int
    clients: Index
    starts: Seconds
    ends: Seconds

    @property
    def period(self) -> float:
        """Seconds after which the trace repeats."""
        return float(self.ends.max())

    def until(self, seconds: float) -> Seconds:
        """Say until when each client stays that is there at a time.

        Args:
            seconds: on the clock, at least 0.

        Returns:
            [num_clients] float64: when it leaves, on the same clock; infinity if it never does,
            nan if it is not there.
        """
        laps, time = divmod(seconds, self.period)
        there = (self.starts <= time) & (time < self.ends)
        found = np.full(self.num_clients, np.nan)
        found[self.clients[there]] = laps * self.period + self._leaves[there]
        return found

    def next_arrival(self, seconds: float, clients: Sequence[int] | Index) -> float:
        """Give the first time, `seconds` or later, at which one of the clients is there.

        Infinity if none of them ever is.
        """
        time = seconds % self.period
        own = np.isin(self.clients, clients)
        starts, ends = self.starts[own], self.ends[own]
        if not len(starts):
            return math.inf
        if ((starts <= time) & (time < ends)).any():
            return seconds
        ahead = np.where(starts > time, starts - time, starts - time + self.period)
        return float(seconds + ahead.min())

    @cached_property
    def share(self) -> float:
        """The part of the time that a client of the trace is there, on average."""
        named = len(np.unique(self.clients))
        return float((self.ends - self.starts).sum() / (self.period * named))

    @cached_property
    def _leaves(self) -> Seconds:
        """When an interval's client leaves: past the trace's end, where it is there again at 0."""
        early = np.zeros(self.num_clients)
        first = self.starts == 0
        early[self.clients[first]] = self.ends[first]
        last = self.ends == self.period
        after = early[self.clients] + self.period
        leaves = np.where(last, after, self.ends)
        return np.where(last & (self.starts == 0), np.inf, leaves)


def read_availability(path: str | Path, num_clients: int) -> AvailabilityTrace:
    """Read a trace for clients 0 to num_clients - 1.

    Raises:
        DataError: naming the file and the line, if it cannot be read, a line is malformed, names
            an unknown client or a negative or empty interval, or two intervals of one client
            overlap.
    """
    path = Path(path)
    text = read_text(path)
    return parse_availability(text, str(path), num_clients)


def parse_availability(text: str, name: str, num_clients: int) -> AvailabilityTrace:
    """Read a trace from its text; `name` is the file's in complaints.

    Raises:
        DataError: as `read_availability` does.
    """
    rows = list(_rows(text.removeprefix("\ufeff"), name, num_clients))
    if not rows:
        raise DataError(f"{name} has no interval: at least one line client,start,end is needed")
    lines = np.array([row[0] for row in rows], dtype=np.int64)
    clients = np.array([row[1] for row in rows], dtype=np.int64)
    starts, ends = (np.array([row[i] for row in rows], dtype=np.float64) for i in (2, 3))
    order = np.lexsort((starts, clients))
    lines, clients, starts, ends = lines[order], clients[order], starts[order], ends[order]
    same = clients[1:] == clients[:-1]
    wrong = np.flatnonzero(same & (starts[1:] < ends[:-1]))
    if len(wrong):
        first = wrong[0]
        earlier, later = sorted((int(lines[first]), int(lines[first + 1])))
        raise DataError(
            f"{name} line {later}: an interval of client {clients[first]} overlaps the one in line "
            f"{earlier}"
        )
    begins = np.concatenate([[True], ~(same & (starts[1:] == ends[:-1]))])
    closes = np.concatenate([begins[1:], [True]])
    return AvailabilityTrace(num_clients, clients[begins], starts[begins], ends[closes])


def _rows(text: str, name: str, num_clients: int) -> Iterator[tuple[int, int, float, float]]:
    """Give (line, client, start, end) of every line that is not blank."""
    reader = csv.reader(text.splitlines())
    try:
        header = [field.strip() for field in next(reader, [])]
        if tuple(header) != HEADER:
            raise DataError(
                f"{name} line 1: the header must be {','.join(HEADER)}, got {','.join(header)!r}"
            )
        for fields in reader:
            if any(field.strip() for field in fields):
                where = f"{name} line {reader.line_num}"
                yield reader.line_num, *_interval(fields, where, num_clients)
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num}: {error}") from None


def _interval(fields: Sequence[str], where: str, num_clients: int) -> tuple[int, float, float]:
    if len(fields) != len(HEADER):
        raise DataError(f"{where}: client,start,end are needed, got {len(fields)} fields")
    try:
        client, start, end = int(fields[0]), float(fields[1]), float(fields[2])
    except ValueError:
        raise DataError(
            f"{where}: a whole number and two numbers are needed, got {','.join(fields)!r}"
        ) from None
    if not 0 <= client < num_clients:
        raise DataError(
            f"{where}: client must be one of 0 to {num_clients - 1} (data.clients = "
            f"{num_clients}), got {client}"
        )
    if not 0 <= start < end < math.inf:
        raise DataError(
            f"{where}: start must be at least 0 and below end, both finite, got start = {start:g} "
            f"and end = {end:g}"
        )
    return client, start, end
