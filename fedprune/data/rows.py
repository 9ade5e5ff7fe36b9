"""Rows of a data set: compact inputs, labels, groups, and the public constants that scale them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.data.groups import GroupColumn, attributes, cross
from fedprune.data.schema import Schema
from fedprune.errors import DataError

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Scaling:
    """x = (stored / divisor - mean) / std, with one public constant a channel.

    `mean` and `std` are both None where the divisor is all there is.
    """

    divisor: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def apply(self, stored: Tensor) -> Tensor:
        """Scale stored inputs [batch, channels, ...] to float32 network inputs."""
        scaled = stored.to(torch.float32) / self.divisor
        if self.mean is None or self.std is None:
            return scaled
        per_channel = [-1] + [1] * (stored.ndim - 2)
        mean = torch.tensor(self.mean, dtype=torch.float32).view(per_channel)
        std = torch.tensor(self.std, dtype=torch.float32).view(per_channel)
        return scaled.sub_(mean).div_(std)  # in place: `scaled` is our own copy


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one split.

    Attributes:
        stored: [n, *input_shape] in the type that takes least memory, such as uint8 pixels.
        labels: [n] int64.
        scaling: how stored inputs become network inputs.
        groups: attribute name to its column.
        sites: [n] int64, who holds each row by nature; None where nobody does.
    """

    stored: NDArray[np.generic]
    labels: Index
    scaling: Scaling = Scaling()
    groups: Mapping[str, GroupColumn] = field(default_factory=dict)
    sites: Index | None = None

    def __post_init__(self) -> None:
        """Check that every column has one entry a row.

        Raises:
            DataError: if one has not.
        """
        columns = {"labels": self.labels}
        columns |= {f"group {name}": column.codes for name, column in self.groups.items()}
        if self.sites is not None:
            columns["sites"] = self.sites
        for name, column in columns.items():
            if column.shape != (len(self.stored),):
                raise DataError(
                    f"{name} must have one entry for each of the {len(self.stored)} rows, "
                    f"got shape {list(column.shape)}"
                )

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.stored)

    def inputs(self, index: Index | slice) -> Tensor:
        """Give network inputs [batch, *input_shape] float32 of the rows at `index`."""
        return self.scaling.apply(torch.from_numpy(np.array(self.stored[index])))

    def targets(self, index: Index | slice) -> Tensor:
        """Give labels [batch] int64 of the rows at `index`."""
        return torch.from_numpy(np.array(self.labels[index]))

    def group(self, name: str) -> GroupColumn:
        """Give the column of one attribute, or of several crossed, as in "sex x race".

        A crossing has every combination of the attributes' names, also those without rows.

        Raises:
            DataError: if the data have no such attribute, the groups would be too many, or two of
                them would have one name.
        """
        asked = attributes(name, {known: column.names for known, column in self.groups.items()})
        if len(asked) == 1:
            return self.groups[asked[0]]
        return cross([self.groups[attribute] for attribute in asked])

    def take(self, index: Index) -> Rows:
        """Copy the rows at `index` [m] into rows of their own, in that order."""
        groups = {
            name: GroupColumn(column.codes[index], column.names)
            for name, column in self.groups.items()
        }
        sites = None if self.sites is None else self.sites[index]
        return Rows(self.stored[index], self.labels[index], self.scaling, groups, sites)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its training and test rows.

    Attributes:
        name: how it is asked for.
        num_classes: labels are 0 to num_classes - 1.
        input_shape: [C, H, W] or [features] of one example.
        input_std: what the inputs were divided by, a channel, after they had the unit
            `input_unit`; None where they were not. A distance in network inputs times this is a
            distance in that unit.
        input_unit: the unit of a distance between inputs, in words.
        site_names: the natural sites that `Rows.sites` points to; empty where there are none.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    train: Rows
    test: Rows
    input_unit: str
    input_std: tuple[float, ...] | None = None
    site_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check both parts against the data set's description.

        Raises:
            DataError: if there are no training rows, or labels, shapes or groups do not fit.
        """
        if len(self.train) == 0:
            raise DataError(f"dataset {self.name!r} has no training rows")
        for part, rows in (("train", self.train), ("test", self.test)):
            self._check_part(part, rows)
        groups = [
            {name: tuple(column.names) for name, column in rows.groups.items()}
            for rows in (self.train, self.test)
        ]
        if groups[0] != groups[1]:
            raise DataError(
                f"train and test rows of dataset {self.name!r} must have the same groups, "
                f"got {_in_words(groups[0])} and {_in_words(groups[1])}"
            )

    @property
    def schema(self) -> Schema:
        """What is public about the data: enough for a server that has no rows.

        Raises:
            DataError: if there are more classes or groups, or longer names, than a schema holds.
        """
        return Schema(
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            input_unit=self.input_unit,
            input_std=self.input_std,
            groups={name: column.names for name, column in self.train.groups.items()},
        )

    def _check_part(self, part: str, rows: Rows) -> None:
        if rows.stored.shape[1:] != self.input_shape:
            raise DataError(
                f"{part} inputs of dataset {self.name!r} have shape "
                f"{list(rows.stored.shape[1:])}, not {list(self.input_shape)}"
            )
        of = f"of dataset {self.name!r}"
        _check_range(f"{part} labels {of}", rows.labels, self.num_classes)
        if rows.sites is not None:
            _check_range(f"{part} sites {of}", rows.sites, len(self.site_names))
        for name, column in rows.groups.items():
            _check_range(f"{part} codes of group {name} {of}", column.codes, len(column.names))


def _in_words(groups: Mapping[str, tuple[str, ...]]) -> str:
    described = [f"{name} ({', '.join(names)})" for name, names in groups.items()]
    return "; ".join(described) or "none"


def _check_range(what: str, codes: Index, count: int) -> None:
    outside = codes[(codes < 0) | (codes >= count)]
    if len(outside):
        raise DataError(f"{what} must be in 0 to {count - 1}, got {outside[0]}")
