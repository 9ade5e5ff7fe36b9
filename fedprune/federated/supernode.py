"""A SuperNode of our own: the process that a real client runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from fedprune.config import Scalar
from fedprune.errors import FederationError
from fedprune.federated.environment import flower_environment
from fedprune.federated.pinned import write_programs
from fedprune.federated.processes import (
    LOOPBACK,
    Process,
    free_port,
    program,
    require_free_port,
    running,
)
from fedprune.federated.reasons import exit_reason, refusal

CLIENT_APP = "fedprune.federated.client:app"
JOIN_SECONDS = 30.0
_JOINED = re.compile(r"SuperNode ID: (\d+)")
_START_SECONDS = 30.0  # what Python and Flower need before the first attempt to connect


class SuperNode:
    """A running SuperNode."""

    def __init__(
        self,
        process: Process,
        fleet_address: str,
        root_certificates: Path | None,
        join_seconds: float,
    ) -> None:
        """Take a started process; `supernode` makes these."""
        self._process, self._address, self._seconds = process, fleet_address, join_seconds
        self._root_certificates = root_certificates

    @property
    def node_id(self) -> int | None:
        """The id under which the SuperLink knows it; None before it has joined."""
        found = [match for line in self._process.lines() if (match := _JOINED.search(line))]
        return int(found[-1].group(1)) if found else None

    def wait_joined(self) -> None:
        """Wait until the SuperLink has let it in.

        Raises:
            FederationError: in one sentence, if the SuperLink cannot be reached, has another
                certificate, or does not know the key.
        """
        self._process.wait_for(
            lambda: self.node_id is not None,
            self._seconds + _START_SECONDS,
            f"it joined {self._address}",
            self._explain,
        )

    def _explain(self, lines: Sequence[str]) -> str:
        reason = exit_reason(lines)
        return refusal(reason, self._address, self._root_certificates) if reason else ""

    @property
    def pid(self) -> int:
        """The process id of flower-supernode itself."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """What flower-supernode and its client apps print."""
        return self._process.log

    @property
    def alive(self) -> bool:
        """Whether flower-supernode still runs."""
        return self._process.alive

    def kill(self) -> None:
        """Kill it by its id, in the midst of whatever it does."""
        self._process.kill()


@contextmanager
def supernode(
    home: Path,
    fleet_address: str,
    node_config: Mapping[str, Scalar],
    *,
    root_certificates: Path | None = None,
    private_key: Path | None = None,
    environment: Mapping[str, str] | None = None,
    join_seconds: float = JOIN_SECONDS,
    port: int | None = None,
    wait: bool = True,
    client_app: str | None = CLIENT_APP,
) -> Iterator[SuperNode]:
    """Run a SuperNode for as long as the block lasts.

    Args:
        home: a folder of its own for Flower's files and logs.
        fleet_address: host:port of the SuperLink.
        node_config: what this node tells its client app: partition-id, paths, budgets.
        root_certificates: the CA certificate that signed the SuperLink's; None speaks without
            TLS.
        private_key: the key that was registered at the SuperLink.
        environment: variables for the SuperNode and its client apps.
        join_seconds: how long to try to reach the SuperLink.
        port: the loopback port between the SuperNode and its client apps; a free one by default.
        wait: begin the block when the node has joined; without it call `wait_joined`, so that
            several nodes can start at the same time.
        client_app: the installed client app that answers, "package.module:attribute", whatever
            code the server sends; None runs the server's code, as Flower does by default.

    Raises:
        FederationError: as `SuperNode.wait_joined`, or if the port is taken.
    """
    if private_key is not None and root_certificates is None:
        raise FederationError("a SuperNode with a private key needs root certificates")
    _require_files(private_key, root_certificates)
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    if port is None:
        port = free_port()
    else:
        require_free_port(port)
    command = [program("flower-supernode"), "--superlink", fleet_address]
    command += [
        "--host",
        LOOPBACK,
        "--port",
        str(port),
        "--node-config",
        as_node_config(node_config),
    ]
    command += ["--max-wait-time", f"{join_seconds:g}"]
    if root_certificates is None:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", str(root_certificates.absolute())]
    if private_key is not None:
        command += ["--auth-supernode-private-key", str(private_key.absolute())]
    log = home / "logs" / "supernode.log"
    variables = flower_environment(home, environment)
    if client_app is not None:
        programs = write_programs(home / "bin", client_app)
        variables["PATH"] = f"{programs}{os.pathsep}{variables['PATH']}"
    with running(
        f"SuperNode {home.name}",
        command,
        log=log,
        environment=variables,
    ) as process:
        node = SuperNode(process, fleet_address, root_certificates, join_seconds)
        if wait:
            node.wait_joined()
        yield node


def _require_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.is_file():
            raise FederationError(f"{path} is no file")


def as_node_config(values: Mapping[str, Scalar]) -> str:
    """Write a node config as Flower's command line wants it.

    Raises:
        FederationError: if a string holds both kinds of quotes or a line break.
    """
    return " ".join(f"{key}={_quoted(key, value)}" for key, value in values.items())


def _quoted(key: str, value: Scalar) -> str:
    if not isinstance(value, str):
        return tomli_w.dumps({"v": value}).partition("=")[2].strip()
    if "\n" in value or "'" in value:
        raise FederationError(
            f"a node config cannot hold line breaks or single quotes, got {key} = {value!r}"
        )
    return f"'{value}'"  # a literal string of TOML: nothing is escaped in it
