"""What is wrong with a value, in one sentence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fedprune.config.tables import Config


def sentence(error: ErrorDetails) -> str:
    """Say which key is wrong, what it may be and what it is."""
    path = [str(part) for part in error["loc"] if not _is_type_tag(part)]
    key, value = ".".join(path), error["input"]
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known_keys(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key {key}{hint}"
    if isinstance(value, float) and math.isnan(value):
        return f"{key} must be {_allowed(path)}, got nan"
    return f"{key} must be {_allowed(path)}, got {value!r}"


def _is_type_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part.startswith("constrained") or part in ("float", "none"))


def known_keys() -> list[str]:
    """List every dotted key of the configuration, in order."""
    keys: list[str] = []
    for name, value in Config().model_dump().items():
        keys += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return keys


def _allowed(path: Iterable[str]) -> str:
    table: type[BaseModel] = Config
    described = "a table"
    for part in path:
        field = table.model_fields.get(part)
        if field is None:
            return described
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            table, described = field.annotation, "a table"
        else:
            described = field.description or _describe(field.annotation)
    return described


def _describe(annotation: Any) -> str:
    arguments = getattr(annotation, "__args__", ())
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    for argument in arguments:
        for extra in getattr(argument, "__metadata__", ()):
            if getattr(extra, "description", None):
                return str(extra.description)
    return "a value of the documented type"
