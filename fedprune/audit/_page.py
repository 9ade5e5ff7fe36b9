"""What a report page is made of; the template lays it out, the sections fill it."""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.audit._drawing import Plot


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row and whose others are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    strong: frozenset[int] = frozenset()
    words: frozenset[int] = frozenset()  # columns of words, set to the left
    bars: tuple[float, ...] = ()  # one share a row, drawn in a last column


@dataclass(frozen=True)
class Note:
    """A sentence that stands out: `good`, `bad` or `mind`."""

    kind: str
    words: str


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen."""

    label: str
    value: str
    remark: str


@dataclass(frozen=True)
class Section:
    """One part of the page, in the order it is read."""

    anchor: str
    title: str
    lead: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    plots: tuple[Plot, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    bullets_title: str = ""
    bullets: tuple[str, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()


@dataclass(frozen=True)
class Opening:
    """The first screen: what was done, what it cost, what it protects."""

    run: str
    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
