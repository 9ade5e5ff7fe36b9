"""Groups that fairness is measured by: attributes of rows, and crossings of several attributes.

The names of a crossing come from the attributes' names alone, never from the rows, so that every
client and the server speak of the same groups in the same order.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError

MAX_GROUPS = 1000  # a table of counts for each leaves every client
CLASS = "class"  # the attribute that every data set has: a row's label
_BETWEEN = re.compile(r"\s*[*,]\s*|\s+x\s+")


@dataclass(frozen=True, eq=False)
class GroupColumn:
    """One attribute of every row: `codes` [n] int64 index into `names`."""

    codes: NDArray[np.int64]
    names: tuple[str, ...]


def attributes(question: str, names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Read which attributes are asked for: "sex", or "sex x race" (also "sex*race", "sex,race").

    Args:
        question: `data.groups`. The whole text is an attribute wherever there is one of that name.
        names: every attribute that there is, with the names of its groups.

    Raises:
        DataError: if an attribute is unknown or named twice, or there would be too many groups.
    """
    asked = (question,) if question in names else tuple(_BETWEEN.split(question.strip()))
    for attribute in asked:
        if attribute not in names:
            raise DataError(_unknown(attribute, question, names))
        if asked.count(attribute) > 1:
            raise DataError(f"data.groups must not name {attribute} twice, got {question!r}")
    count = math.prod(len(names[attribute]) for attribute in asked)
    if count > MAX_GROUPS:
        raise DataError(f"data.groups = {question!r} makes {count} groups; at most {MAX_GROUPS}")
    return asked


def names_classes(question: str) -> bool:
    """Whether groups are divided by the label itself, alone or crossed with other attributes."""
    return CLASS in _BETWEEN.split(question.strip())


def crossed_names(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Name every combination, the last attribute changing fastest: "female, Black" and so on.

    Raises:
        DataError: if two combinations would have one name, as "a, b" with "c" and "a" with "b, c".
    """
    known: dict[str, tuple[str, ...]] = {}
    for parts in itertools.product(*names):
        name = ", ".join(parts)
        if name in known:
            raise DataError(
                f"two groups of a crossing would both be called {name!r}: "
                f"{' with '.join(map(repr, known[name]))}, and {' with '.join(map(repr, parts))}; "
                "rename the groups of one attribute"
            )
        known[name] = parts
    return tuple(known)


def cross(columns: Sequence[GroupColumn]) -> GroupColumn:
    """Give the column of all combinations of the columns' groups, in the order of their names.

    Raises:
        DataError: if two combinations would have one name.
    """
    codes = np.zeros_like(columns[0].codes)
    for column in columns:
        codes = codes * len(column.names) + column.codes
    return GroupColumn(codes, crossed_names([column.names for column in columns]))


def _unknown(attribute: str, question: str, names: Mapping[str, Sequence[str]]) -> str:
    if not names:
        return f"data.groups must be an attribute of the rows, which have none, got {question!r}"
    allowed = ", ".join(names)
    if len(names) > 1:
        allowed += f" or a crossing such as {' x '.join(list(names)[:2])!r}"
    where = "" if attribute == question else f" in {question!r}"
    return f"data.groups must be one of {allowed}, got {attribute!r}{where}"
