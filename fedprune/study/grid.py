"""A grid of configurations: every combination of the values that some keys are swept over."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune import config as configuration
from fedprune.config import KEEP_KEYS, Config, Scalar
from fedprune.errors import ConfigError

JsonDict = dict[str, Any]

_OPTION = "--over"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_UNFIT = re.compile(r"[^A-Za-z0-9.+-]+")
_LONGEST_PART = 24  # characters of one setting in a cell's name
KEEPS = tuple(f"prune.{key}" for key in KEEP_KEYS)


@dataclass(frozen=True)
class Axis:
    """One key and the values that it is swept over, in the order given."""

    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Cell:
    """One configuration of a grid.

    Attributes:
        name: of its folder: its number and what is special about it.
        settings: the swept keys' values in it.
        config: the whole configuration.
    """

    name: str
    settings: Mapping[str, Scalar]
    config: Config


@dataclass(frozen=True)
class Grid:
    """A configuration and the keys that are swept over; equal grids are the same sweep."""

    base: Config
    axes: tuple[Axis, ...]

    def to_json(self) -> JsonDict:
        """Give plain values."""
        over = [{"key": axis.key, "values": list(axis.values)} for axis in self.axes]
        return {"over": over, "config": self.base.model_dump()}

    @staticmethod
    def from_json(stored: Mapping[str, Any], source: str) -> Grid:
        """Read what `to_json` gave.

        Raises:
            ConfigError: if it is no such thing, naming the source.
        """
        try:
            base = configuration.parse(stored["config"], source)
            axes = tuple(Axis(str(one["key"]), tuple(one["values"])) for one in stored["over"])
        except (KeyError, TypeError):
            raise ConfigError(f"{source} does not describe a sweep") from None
        return Grid(base, axes)

    @property
    def digest(self) -> str:
        """SHA-256 of what is swept over what, wherever the folder lies."""
        stated = self.to_json()
        stated["config"] = self.base.model_copy(update={"out": ""}).model_dump()
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()

    def cells(self) -> tuple[Cell, ...]:
        """Check every combination's configuration; the last key varies fastest.

        Raises:
            ConfigError: naming the first combination that is not allowed.
        """
        keys = [axis.key for axis in self.axes]
        combinations = list(itertools.product(*(axis.values for axis in self.axes)))
        width = max(3, len(str(len(combinations))))
        return tuple(
            self._cell(f"{number:0{width}}", dict(zip(keys, values, strict=True)))
            for number, values in enumerate(combinations, start=1)
        )

    def _cell(self, number: str, settings: Mapping[str, Scalar]) -> Cell:
        flat: dict[str, Scalar] = {**configuration.to_flat(self.base)}
        if any(key in KEEPS for key in settings):
            flat |= dict.fromkeys(KEEPS, "")
        source = " ".join(f"{_OPTION} {setting}" for setting in in_words(settings))
        config = configuration.from_flat({**flat, **settings}, source)
        parts = [_part(key, value) for key, value in settings.items()]
        return Cell("_".join([number, *parts]), settings, config)


def make_grid(path: str | Path | None, sets: Sequence[str], over: Sequence[str]) -> Grid:
    """Read a configuration file, `--set` and `--over key=value,value,...` options.

    Args:
        path: of the TOML file; None for the built-in default.
        sets: `--set` options: a key is set or swept, not both.
        over: `--over` options; values are written as in TOML, strings also without quotes.

    Raises:
        ConfigError: if the configuration is not allowed, nothing is swept, an option is malformed,
            or a key is named twice or has no values.
    """
    if not over:
        raise ConfigError(f"a sweep needs at least one {_OPTION} key=value,value,...")
    axes = tuple(_axis(text) for text in over)
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{_OPTION} names {key} {keys.count(key)} times")
    _check_keys(keys, [text.partition("=")[0].strip() for text in sets])
    return Grid(_base(path, sets, axes), axes)


def _base(path: str | Path | None, sets: Sequence[str], axes: Sequence[Axis]) -> Config:
    """What every combination starts from; it may take a swept key to make sense at all."""
    try:
        return configuration.load(path, sets)
    except ConfigError as error:
        first = [f"{axis.key}={json.dumps(axis.values[0])}" for axis in axes]
        try:
            return configuration.load(path, [*sets, *first])
        except ConfigError:
            raise error from None


def in_words(settings: Mapping[str, Scalar]) -> list[str]:
    """Write settings as `--set` would take them."""
    return [f"{key}={_written(value)}" for key, value in settings.items()]


def _check_keys(keys: Sequence[str], set_keys: Sequence[str]) -> None:
    if "out" in keys:
        raise ConfigError(f"{_OPTION} cannot sweep over out: a sweep names its cells' folders")
    keeps = [key for key in keys if key in KEEPS]
    if len(keeps) > 1:
        raise ConfigError(
            f"{_OPTION} can sweep over one of {', '.join(KEEPS)}, since one of them is the "
            f"budget, got {' and '.join(keeps)}"
        )
    for key in set_keys:
        if key in keys or (keeps and key in KEEPS):
            raise ConfigError(
                f"--set {key} and {_OPTION} {key if key in keys else keeps[0]} contradict each "
                "other: name the key in one of them"
            )


def _axis(text: str) -> Axis:
    key, separator, listed = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"{_OPTION} wants key=value,value,..., got {text!r}")
    if not listed.strip():
        raise ConfigError(f"{_OPTION} {key} must list at least one value, got none")
    values = _values(listed)
    if any(value is None for value in values):
        raise ConfigError(f"{_OPTION} {key} has an empty value in {listed!r}")
    known: list[Scalar] = []
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"{_OPTION} {key} wants single values, got {value!r}")
        if value in known:
            raise ConfigError(f"{_OPTION} {key} lists {_written(value)} twice")
        known.append(value)
    return Axis(key, tuple(known))


def _values(listed: str) -> list[Any]:
    """Read a list as TOML does, else piece by piece; None stands for an empty piece."""
    try:
        found = tomllib.loads(f"values = [{listed}]")
    except tomllib.TOMLDecodeError:
        return [_value(piece.strip()) for piece in listed.split(",")]
    trailing = [None] if listed.rstrip().endswith(",") else []
    return [*found["values"], *trailing]


def _value(piece: str) -> Any:
    if not piece:
        return None
    if _NUMBER.fullmatch(piece):  # .5 and 1. are no TOML
        return float(piece) if re.search("[.eE]", piece) else int(piece)
    try:
        return tomllib.loads(f"value = {piece}")["value"]
    except tomllib.TOMLDecodeError:
        return piece


def _written(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _part(key: str, value: Scalar) -> str:
    """A setting as a part of a folder's name: the key's last word and the value."""
    told = _UNFIT.sub("-", _written(value)).strip("-.")[:_LONGEST_PART]
    return f"{key.rpartition('.')[2]}-{told}"
