"""A user's own data, named by "package.module:function" of the user's own code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedprune.data.checks import check
from fedprune.data.rows import Dataset
from fedprune.errors import DataError, FedpruneError
from fedprune.named import function_named


def load_own(reference: str, root: str | Path, *, seed: int) -> Dataset:
    """Call the user's function and check what it gives.

    An error that fedprune itself raises inside the function, as `data.from_arrays` does, comes
    out as one sentence with the reference before it. Any other exception is a bug of the
    function: it comes out as it is, traceback and all, with a note that says which function.

    Args:
        reference: "package.module:function" of a function that takes (root, *, seed) and gives
            a `Dataset`.
        root: the folder `data.root`, handed on as it is.
        seed: for whatever the function draws at random, such as the rows it holds out.

    Raises:
        ConfigError: if there is no such function.
        DataError: if it cannot be called so, or what it gives is not a sound data set.
    """
    where = f"data.dataset = {reference!r}"
    function = function_named(reference, "data.dataset")
    _check_signature(function, where)
    try:
        dataset = _checked(function(root, seed=seed))
    except FedpruneError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"raised by {where}")
        raise
    return dataset


def _check_signature(function: Callable[..., Any], where: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none to look at
        return
    try:
        signature.bind("", seed=0)
    except TypeError as error:
        raise DataError(f"{where} must take (root, *, seed): {error}") from None


def _checked(found: object) -> Dataset:
    if not isinstance(found, Dataset):
        raise DataError(f"it must give a data.Dataset, got {type(found).__name__}")
    check(found)
    return found
