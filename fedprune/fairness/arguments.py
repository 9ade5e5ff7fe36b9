"""Arguments that several questions share, refused by name where they fit none."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from fedprune.errors import FairnessError

LEAST_GROUP = 2  # rows: one alone does not vary, so nothing says how sure its figure is
LEAST_RESAMPLES = 100


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, Python's or numpy's; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(value: object, name: str, least: int) -> int:
    """Give a whole number of at least `least`; refuse anything else.

    Raises:
        FairnessError: if it is a fraction, no number or too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise FairnessError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def check_resampling(min_group: object, resamples: object) -> None:
    """Refuse options that no resampling of groups has.

    Raises:
        FairnessError: if either is no whole number or too small.
    """
    check_whole(min_group, "min_group", LEAST_GROUP)
    check_whole(resamples, "resamples", LEAST_RESAMPLES)


def check_names(names: object, groups: int | None = None) -> None:
    """Refuse names that do not tell groups apart.

    Args:
        names: what the groups are called.
        groups: how many there are; any number where it is None.

    Raises:
        FairnessError: if they are no list, one of them is no text or empty, two are equal, or
            their number is another.
    """
    if isinstance(names, str | bytes) or not isinstance(names, Sequence | np.ndarray):
        raise FairnessError(f"names must be a list of the names of groups, got {names!r}")
    if len(names) == 0 or (groups is not None and len(names) != groups):
        needed = "at least 1 group" if groups is None else f"{groups} groups"
        raise FairnessError(f"names must name {needed}, got {len(names)} names")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise FairnessError(f"every name of a group must be a text with words, got {name!r}")
    if len(set(names)) < len(names):
        raise FairnessError(f"names of groups must differ, got {list(names)}")


def check_other(groups: int, found: int) -> None:
    """Refuse tables of other rows that are not of the same groups.

    Raises:
        FairnessError: if they have another number of groups.
    """
    if found != groups:
        raise FairnessError(f"other must have {groups} groups, as the tables do, got {found}")
