"""A SuperLink of our own: own port, own home, sure end.

A SuperLink of flwr 1.41 serves everything (fleet, control, app runtime) over HTTP on one port.
With `simulation` it runs apps in Flower's simulation engine on Ray; otherwise SuperNodes join it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedprune.errors import FederationError
from fedprune.federated.control import Control
from fedprune.federated.credentials import Certificates
from fedprune.federated.environment import flower_environment
from fedprune.federated.processes import (
    LOOPBACK,
    Process,
    free_port,
    listens,
    program,
    require_free_port,
    running,
)
from fedprune.federated.reasons import exit_reason

START_SECONDS = 60.0
ANY_HOSTS = {"0.0.0.0": LOOPBACK, "::": "::1"}


class SuperLink(Control):
    """A running SuperLink and its control interface."""

    def __init__(
        self,
        process: Process,
        home: Path,
        address: str,
        root_certificates: Path | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        """Take a started process; `superlink` makes these."""
        super().__init__(
            home, address, root_certificates=root_certificates, environment=environment
        )
        self.root_certificates = root_certificates
        self._process = process

    @property
    def fleet_address(self) -> str:
        """Where SuperNodes join: host:port."""
        return self.address

    @property
    def control_address(self) -> str:
        """Where runs are submitted: host:port."""
        return self.address

    @property
    def pid(self) -> int:
        """The process id of flower-superlink itself."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """What flower-superlink and its helpers print."""
        return self._process.log

    @property
    def alive(self) -> bool:
        """Whether flower-superlink still runs."""
        return self._process.alive


@contextmanager
def superlink(
    home: Path,
    *,
    simulation: bool = False,
    certificates: Certificates | None = None,
    authenticate: bool = False,
    environment: Mapping[str, str] | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    database: Path | None = None,
) -> Iterator[SuperLink]:
    """Run a SuperLink for as long as the block lasts.

    Args:
        home: a folder of its own for Flower's files, its configuration and its logs.
        simulation: run apps in Flower's simulation engine; no SuperNode can join then.
        certificates: speak TLS with these; they must be valid for 127.0.0.1 too, since
            Flower's own helpers connect there.
        authenticate: let only registered SuperNodes in; needs `certificates`.
        environment: variables for the SuperLink and the apps that it runs.
        host: the address to listen on.
        port: the port to listen on; a free one by default.
        database: a file that keeps runs and registered nodes over a restart; memory by default.

    Raises:
        FederationError: in one sentence, if the port is taken, `authenticate` comes without
            `certificates`, or the SuperLink does not start.
    """
    if authenticate and certificates is None:
        raise FederationError("a SuperLink that authenticates SuperNodes needs certificates")
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    if port is None:
        port = free_port(host)
    else:
        require_free_port(port, host)
    command = [program("flower-superlink"), "--host", host, "--port", str(port)]
    command += _secure(certificates)
    command += ["--simulation"] * simulation + ["--enable-supernode-auth"] * authenticate
    command += ["--database", str(database.absolute())] if database is not None else []
    reach = ANY_HOSTS.get(host, host)
    address = f"[{reach}]:{port}" if ":" in reach else f"{reach}:{port}"
    with running(
        "the SuperLink",
        command,
        log=home / "logs" / "superlink.log",
        environment=flower_environment(home, environment),
    ) as process:
        process.wait_for(
            lambda: listens(port, reach), START_SECONDS, f"it listened on {address}", exit_reason
        )
        yield SuperLink(
            process, home, address, certificates.ca if certificates else None, environment
        )


def _secure(certificates: Certificates | None) -> list[str]:
    if certificates is None:
        return ["--insecure"]
    return [
        *("--ssl-ca-certfile", str(certificates.ca.absolute())),
        *("--ssl-certfile", str(certificates.certificate.absolute())),
        *("--ssl-keyfile", str(certificates.key.absolute())),
    ]
