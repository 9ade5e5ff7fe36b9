"""A SuperNode that runs its own client app, whatever code a server sends.

In Flower the app's code (the FAB) comes from whoever submits a run: a SuperNode unpacks it, puts it
first on Python's path and runs it. A client that must refuse a server's wishes cannot take its
code from that server. Flower starts its helper programs by bare name, so a folder that comes first
in PATH decides what they are: here `flwr-clientapp` is Flower's own program, except that it never
unpacks the FAB and always runs the client app that is installed here; all other programs that a
server could ask for are refused. Checked with flwr 1.41; in doubt nothing is run.

    python -m fedprune.federated.pinned MODULE:ATTRIBUTE [flwr-clientapp's arguments]
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedprune.errors import FederationError

REFUSED_PROGRAMS = (
    "flwr-agentapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)
_RUNNER = "flwr.supernode.runtime.run_clientapp"
_REPLACED = ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn")


def write_programs(folder: Path, reference: str) -> Path:
    """Write the programs that a pinned SuperNode finds first.

    Args:
        folder: where to.
        reference: the client app as "package.module:attribute".

    Returns:
        The folder, to be put first in PATH.
    """
    pinned = [sys.executable, "-P", "-m", "fedprune.federated.pinned", reference]
    folder.mkdir(parents=True, exist_ok=True)
    _write_script(folder / "flwr-clientapp", f'exec {shlex.join(pinned)} "$@"')
    for name in REFUSED_PROGRAMS:
        words = f"{name}: this SuperNode runs {reference} and nothing else"
        _write_script(folder / name, f"echo {shlex.quote(words)} >&2; exit 1")
    return folder


def main(arguments: Sequence[str]) -> None:
    """Run Flower's client program for one message, with the installed client app.

    Raises:
        FederationError: if this version of Flower loads client apps in another way.
    """
    reference, *rest = arguments
    runner = importlib.import_module(_RUNNER)
    missing = [name for name in _REPLACED if not hasattr(runner, name)]
    if missing:
        raise FederationError(
            f"this version of Flower cannot be kept to its own client app: {_RUNNER} has no "
            f"{', '.join(missing)}; nothing is run"
        )
    for name, replacement in zip(_REPLACED, (_nothing, _refuse, _loader(reference)), strict=True):
        setattr(runner, name, replacement)
    sys.argv = ["flwr-clientapp", *rest]
    importlib.import_module("flwr.supernode.cli").flwr_clientapp()


def load(reference: str) -> Any:
    """Import an installed client app.

    Raises:
        FederationError: if there is none of that name.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise FederationError(f"no client app {reference!r} is installed: {error}") from None


def _loader(reference: str) -> Callable[..., Callable[..., Any]]:
    return lambda *_, **__: lambda *_, **__: load(reference)


def _nothing(*_: Any, **__: Any) -> None:
    """Leave the FAB where it is."""


def _refuse(*_: Any, **__: Any) -> None:
    raise FederationError("a server's app cannot install packages here")


def _write_script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1:])
