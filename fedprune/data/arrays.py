"""A data set from plain arrays, for those who bring their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.data.checks import check
from fedprune.data.groups import MAX_GROUPS, GroupColumn
from fedprune.data.rows import Dataset, Index, Rows, Scaling
from fedprune.data.schema import MAX_CLASSES
from fedprune.errors import DataError

Part = tuple[ArrayLike, ArrayLike]
Group = tuple[ArrayLike, ArrayLike, Sequence[str]]


def from_arrays(
    name: str,
    *,
    train: Part,
    test: Part,
    num_classes: int,
    groups: Mapping[str, Group] | None = None,
    class_names: Sequence[str] | None = None,
    sites: Group | None = None,
    scaling: Scaling | None = None,
    input_unit: str = "input unit",
) -> Dataset:
    """Make a data set of inputs that are ready for a network, or that `scaling` makes ready.

    Scale by public constants, not by what is computed from the rows: means and extremes of a
    client's own rows are not covered by the privacy budget. For the same reason the number of
    classes and the names of groups are given here and not counted.

        data.from_arrays(
            "patients",
            train=(train_inputs, train_labels),
            test=(test_inputs, test_labels),
            num_classes=2,
            groups={"sex": (train_sex, test_sex, ("female", "male"))},
        )

    Args:
        name: what the data set is called in messages.
        train: inputs [n, *input_shape] of any numeric type, and labels [n] of whole numbers.
        test: the same for rows that nothing is trained on; there may be none.
        num_classes: labels are 0 to num_classes - 1.
        groups: attribute to (codes of the training rows [n], codes of the test rows [m], names);
            a code is an index into the names.
        class_names: what the classes are called; "0", "1" and so on where it is not given.
        sites: who holds each row by nature, told as a group is; for the natural partition.
        scaling: how inputs as they are stored, such as uint8 pixels, become network inputs.
        input_unit: the unit of a distance between inputs before `scaling` divides them by its
            std, in words.

    Returns:
        The data set, with the group "class" beside those given (up to 1,000 classes).

    Raises:
        DataError: if arrays do not fit each other, or labels or codes are not whole numbers in
            range.
    """
    classes = _class_names(name, num_classes, class_names)
    shared = Shared(name, classes, groups or {}, sites, scaling or Scaling())
    dataset = Dataset(
        name=name,
        num_classes=len(classes),
        input_shape=np.shape(train[0])[1:],
        train=_rows(shared, 0, train),
        test=_rows(shared, 1, test),
        input_unit=input_unit,
        input_std=shared.scaling.std,
        site_names=() if sites is None else tuple(sites[2]),
    )
    check(dataset)
    return dataset


@dataclass(frozen=True)
class Shared:
    """What the training rows, part 0, and the test rows, part 1, have in common."""

    name: str
    class_names: tuple[str, ...]
    groups: Mapping[str, Group]
    sites: Group | None
    scaling: Scaling


def _class_names(name: str, num_classes: int, given: Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(num_classes, int | np.integer) or not 1 <= num_classes <= MAX_CLASSES:
        raise DataError(
            f"num_classes of dataset {name!r} must be a whole number in 1 to {MAX_CLASSES}, "
            f"got {num_classes!r}"
        )
    names = tuple(str(label) for label in range(num_classes)) if given is None else tuple(given)
    if len(names) != num_classes:
        raise DataError(
            f"class_names of dataset {name!r} must be {num_classes} names, got {len(names)}"
        )
    return names


def _rows(shared: Shared, number: int, part: Part) -> Rows:
    what = f"{('train', 'test')[number]} %s of dataset {shared.name!r}"
    stored = _numeric(part[0], what % "inputs")
    labels = _whole(part[1], len(stored), what % "labels")
    columns = {}
    if len(shared.class_names) <= MAX_GROUPS:
        columns["class"] = GroupColumn(labels, shared.class_names)
    for attribute, group in shared.groups.items():
        columns[attribute] = _column(
            group, number, len(stored), what % f"codes of group {attribute}"
        )
    sites = None
    if shared.sites is not None:
        sites = _column(shared.sites, number, len(stored), what % "sites").codes
    return Rows(stored, labels, shared.scaling, columns, sites)


def _column(group: Group, number: int, count: int, what: str) -> GroupColumn:
    if not isinstance(group, tuple | list) or len(group) != 3:
        raise DataError(f"{what} must be given as (train codes, test codes, names)")
    return GroupColumn(_whole(group[number], count, what), tuple(group[2]))


def _numeric(values: ArrayLike, what: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        raise DataError(
            f"{what} must be numbers [n, *input_shape], got {array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows is found and named as not finite
            return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="))


def _whole(values: ArrayLike, count: int, what: str) -> Index:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise DataError(f"{what} must be whole numbers [n], got {array.dtype} {list(array.shape)}")
    if len(array) != count:
        raise DataError(f"{what} must be one for each of the {count} rows, got {len(array)}")
    with np.errstate(invalid="ignore"):  # what is not finite differs from its conversion
        whole = array.astype(np.int64)
    wrong = np.flatnonzero(whole != array)
    if len(wrong):
        raise DataError(f"{what} must be whole numbers, got {array[wrong[0]]} in row {wrong[0]}")
    return whole
