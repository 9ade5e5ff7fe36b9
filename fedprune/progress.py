"""Progress for people on standard error: bars on a terminal, one line a phase elsewhere.

Standard output is left to results, so `--json` output can be piped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class Reporter(Protocol):
    """Where the program says how far it is."""

    def say(self, text: str) -> None:
        """Print one line."""
        ...

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass items on and count them."""
        ...


class Quiet:
    """Says nothing: for `--json` and for use as a library."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass items on."""
        del label, total
        yield from items


class Terminal:
    """Lines, and bars where standard error is a terminal."""

    def __init__(self) -> None:
        """Write to standard error."""
        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print one line at once."""
        self._console.print(text, markup=False, soft_wrap=True)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass items on under a bar that vanishes when it is full."""
        if not self._console.is_terminal:
            yield from items
            return
        with self._bar() as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.advance(task)

    @contextmanager
    def _bar(self) -> Iterator[Progress]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield progress
