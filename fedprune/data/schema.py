"""What is public about a data set: all that a server needs to know without having rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedprune.data.groups import CLASS, MAX_GROUPS, attributes, crossed_names
from fedprune.errors import DataError

MAX_CLASSES = 10_000
MAX_NAME = 200  # characters
MAX_ATTRIBUTES = 50
MAX_DIMENSIONS = 8
MAX_INPUT_SIZE = 100_000_000  # numbers in one example
# Above what the largest schema allowed takes: every name full of characters that JSON escapes.
MAX_JSON = 2 * MAX_NAME * MAX_GROUPS * MAX_ATTRIBUTES + 1_000_000


@dataclass(frozen=True)
class Schema:
    """The public description of a data set; it may come from a stranger, so sizes are bounded.

    Attributes:
        num_classes: labels are 0 to num_classes - 1.
        input_shape: [C, H, W] or [features] of one example.
        input_unit: the unit of a distance between inputs, in words.
        input_std: what the inputs were divided by, a channel; None where they were not.
        groups: attribute to the names of its groups, in the order of their codes.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    input_unit: str
    input_std: tuple[float, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            DataError: naming the first that is wrong or too large.
        """
        if not _is_whole(self.num_classes) or not 1 <= self.num_classes <= MAX_CLASSES:
            raise _wrong("num_classes", f"a whole number in 1 to {MAX_CLASSES}", self.num_classes)
        _check_shape(self.input_shape)
        _check_name("input_unit", self.input_unit)
        if self.input_std is not None:
            _check_std(self.input_std, self.input_shape[0])
        _check_groups(self.groups)

    def group_names(self, groups: str) -> tuple[str, ...]:
        """Name the groups of "sex" or of a crossing such as "sex x race", as `Rows.group` does.

        Raises:
            DataError: if there is no such attribute, the groups would be too many, or two of them
                would have one name.
        """
        asked = attributes(groups, self.groups)
        return crossed_names([self.groups[attribute] for attribute in asked])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; "0", "1", ... where there are none."""
        named = self.groups.get(CLASS, ())
        numbers = tuple(str(label) for label in range(self.num_classes))
        return named if len(named) == self.num_classes else numbers

    def to_json(self) -> str:
        """Write one line of JSON."""
        table = {
            "num_classes": self.num_classes,
            "input_shape": self.input_shape,
            "input_unit": self.input_unit,
            "input_std": self.input_std,
            "groups": dict(self.groups),
        }
        return json.dumps(table, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read what `to_json` wrote.

        Raises:
            DataError: if the text is not such a line or a value is wrong or too large.
        """
        table = _parse(text)
        keys = set(cls.__dataclass_fields__)
        if set(table) != keys:
            wrong = sorted(keys ^ set(table), key=str)[0]
            said = "unknown" if wrong in table else "missing"
            raise DataError(
                f"a data schema has {', '.join(sorted(keys))}; {_short(wrong)} is {said}"
            )
        groups = table["groups"]
        if isinstance(groups, dict):
            groups = {name: _tuple(names) for name, names in groups.items()}
        return cls(
            num_classes=table["num_classes"],
            input_shape=_tuple(table["input_shape"]),
            input_unit=table["input_unit"],
            input_std=_tuple(table["input_std"]),
            groups=groups,
        )


def _parse(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_JSON:
        raise DataError(f"a data schema must be JSON text of at most {MAX_JSON} characters")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a data schema must be a line of JSON: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"a data schema must be a JSON object, got {_short(table)}")
    return table


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_shape(shape: object) -> None:
    if (
        not isinstance(shape, tuple)
        or not 1 <= len(shape) <= MAX_DIMENSIONS
        or not all(_is_whole(size) and size >= 1 for size in shape)
        or math.prod(shape) > MAX_INPUT_SIZE
    ):
        allowed = (
            f"1 to {MAX_DIMENSIONS} whole numbers of at least 1, at most {MAX_INPUT_SIZE} together"
        )
        raise _wrong("input_shape", allowed, shape)


def _check_std(std: object, channels: int) -> None:
    good = isinstance(std, tuple) and len(std) == channels and all(map(_is_positive, std))
    if not good:
        raise _wrong("input_std", f"{channels} numbers above 0, one a channel, or null", std)


def _check_groups(groups: object) -> None:
    if not isinstance(groups, Mapping) or len(groups) > MAX_ATTRIBUTES:
        raise _wrong("groups", f"a table of at most {MAX_ATTRIBUTES} attributes", groups)
    for attribute, names in groups.items():
        _check_name("an attribute of groups", attribute)
        if not isinstance(names, tuple) or not 1 <= len(names) <= MAX_GROUPS:
            raise _wrong(f"groups of {attribute}", f"1 to {MAX_GROUPS} names", names)
        for name in names:
            _check_name(f"a group of {attribute}", name)
        if len(set(names)) < len(names):
            raise _wrong(f"groups of {attribute}", "names that differ", names)


def _check_name(what: str, name: object) -> None:
    # Printable only: names end up in messages, tables and pages of whoever reads a run.
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise _wrong(what, f"1 to {MAX_NAME} printable characters", name)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf  # type: ignore[operator]


def _wrong(what: str, allowed: str, value: object) -> DataError:
    return DataError(f"{what} of a data schema must be {allowed}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "..."
