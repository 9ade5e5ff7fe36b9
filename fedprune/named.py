"""A user's own function by its name, "package.module:function", as uvicorn names an app."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedprune.errors import ConfigError

SEPARATOR = ":"


def is_reference(name: str) -> bool:
    """Whether a name points to a user's own function rather than into a catalogue."""
    return SEPARATOR in name


def function_named(reference: str, key: str) -> Callable[..., Any]:
    """Import the function that `reference` names; the current folder is looked in first.

    Args:
        reference: "package.module:function".
        key: the configuration key that it was given for, named in every complaint.

    Raises:
        ConfigError: if the name is malformed, the module cannot be imported or has no such
            function.
    """
    module_name, _, name = reference.partition(SEPARATOR)
    if not all(part.isidentifier() for part in module_name.split(".")) or not name.isidentifier():
        raise ConfigError(f'{key} must look like "package.module:function", got {reference!r}')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key} = {reference!r} cannot be imported: {error}") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{key} = {reference!r}: module {module_name} has no function {name!r}")
    function: Callable[..., Any] = found
    return function
