"""Progress for people on standard error: bars on a terminal, one line a phase elsewhere.

Standard output is left to results, so `--json` output can be piped.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

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

PROGRESS_VARIABLE = "FEDPRUNE_PROGRESS"
_RELAY_SECONDS = 0.25  # how often a count is written for another process
_LINE_SECONDS = 5.0  # and how often it is printed into a log


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


class AppReporter(Reporter, Protocol):
    """A reporter of a process that nobody watches directly: it can also say why it failed."""

    def fail(self, sentence: str) -> None:
        """Say why the work cannot be finished."""
        ...


class Relay:
    """Writes what it is told into a file, as JSON lines, for `Follower` in another process."""

    def __init__(self, path: str | Path) -> None:
        """Append to a file."""
        self._path = Path(path)
        self._numbers = itertools.count(1)

    def say(self, text: str) -> None:
        """Pass a line on."""
        self._write({"say": text})

    def fail(self, sentence: str) -> None:
        """Pass on why the work cannot be finished."""
        self._write({"fail": sentence})

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass items on and write the count, a few times a second at most."""
        number, done, written = next(self._numbers), 0, time.monotonic()
        self._write({"start": number, "label": label, "total": total})
        try:
            for item in items:
                yield item
                done += 1
                if time.monotonic() - written >= _RELAY_SECONDS:
                    self._write({"at": number, "done": done})
                    written = time.monotonic()
        finally:
            self._write({"end": number, "done": done})

    def _write(self, event: Mapping[str, str | int]) -> None:
        line = json.dumps(event) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line.encode())  # one write: lines of two processes never mix
        finally:
            os.close(handle)


class Lines:
    """Plain lines on standard output, for a log that somebody may read later."""

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def fail(self, sentence: str) -> None:
        """Print why the work cannot be finished."""
        print(f"error: {sentence}", flush=True)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass items on and print the count every few seconds."""
        printed = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - printed >= _LINE_SECONDS:
                print(f"{label} {done}/{total}", flush=True)
                printed = time.monotonic()


class Follower:
    """Replays what a `Relay` writes into a reporter of this process.

    Attributes:
        failure: the sentence with which the other process failed, None if it did not.
    """

    def __init__(self, path: str | Path, reporter: Reporter) -> None:
        """Follow a file from its present end on; it need not exist yet."""
        self._path, self._reporter = Path(path), reporter
        self._place = self._path.stat().st_size if self._path.exists() else 0
        self._bars: dict[int, _Bar] = {}
        self.failure: str | None = None

    def pump(self) -> None:
        """Replay the lines that are complete by now."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._place)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._place += len(complete) + len(newline)
        for line in complete.splitlines():
            self._replay(json.loads(line))

    def close(self) -> None:
        """Replay what is left and take down bars whose end was never written."""
        self.pump()
        self._take_down()

    def _take_down(self) -> None:
        for number in list(self._bars):
            self._bars.pop(number).close()

    def _replay(self, event: Mapping[str, Any]) -> None:
        if "say" in event:
            self._reporter.say(event["say"])
        elif "fail" in event:
            self.failure = event["fail"]
        elif "start" in event:
            self._take_down()  # a terminal shows one bar at a time
            bar = _Bar(self._reporter, event["label"], event["total"])
            self._bars[event["start"]] = bar
        elif "at" in event and event["at"] in self._bars:
            self._bars[event["at"]].advance(event["done"])
        elif "end" in event and event["end"] in self._bars:
            bar = self._bars.pop(event["end"])
            bar.advance(event["done"])
            bar.close()


class _Bar:
    """A reporter's `track`, driven from outside by counts instead of by a loop."""

    def __init__(self, reporter: Reporter, label: str, total: int) -> None:
        self._total, self._taken = total, 0
        self._items = reporter.track(range(total), label, total)
        self.advance(0)

    def advance(self, done: int) -> None:
        """Take items until `done` of them are counted: asking for the next counts the last."""
        while self._taken <= min(done, self._total):
            self._taken += 1
            if next(self._items, None) is None:
                return

    def close(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None:
            close()


def from_environment() -> AppReporter:
    """Make the reporter of a process that another one started.

    The variable FEDPRUNE_PROGRESS names the file that the other process follows; without it lines
    are printed.
    """
    path = os.environ.get(PROGRESS_VARIABLE, "")
    return Relay(path) if path else Lines()
