"""Deployed clients on this machine, to try a deployment on before it is spread over buildings.

TLS, node authentication, a SuperNode and a folder of its own for every client: what differs from
real life is that all addresses are 127.0.0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedprune.config import Config, Scalar
from fedprune.errors import FederationError
from fedprune.federated.credentials import make_certificates, make_node_keys
from fedprune.federated.flower_engine import importable, write_app
from fedprune.federated.node_settings import budget_settings
from fedprune.federated.superlink import SuperLink, superlink
from fedprune.federated.supernode import SuperNode, supernode
from fedprune.progress import PROGRESS_VARIABLE, Follower, Reporter

LEDGER = "ledger.sqlite"


@dataclass(frozen=True)
class Loopback:
    """A running federation.

    Attributes:
        home: its folder; every client's own folder lies in it, under the client's name.
        link: the SuperLink.
        nodes: the SuperNodes by the clients' names.
    """

    home: Path
    link: SuperLink
    nodes: Mapping[str, SuperNode]

    @property
    def progress(self) -> Path:
        """Where the server app writes how far it is."""
        return _progress(self.home)

    def ledger(self, name: str) -> Path:
        """The ledger of one client."""
        return self.home / name / LEDGER


def own_settings(config: Config, clients: int) -> dict[str, dict[str, Scalar]]:
    """Node configs of clients that share one data root, each taking its own part of the rows.

    The budget of each is what the run asks for; count tables leave if the run asks for them.
    """
    wanted = config.evaluate.tables
    tables = wanted if wanted in ("unprotected", "noised") else "off"
    return {
        f"client-{client}": {
            "partition-id": client,
            "num-partitions": clients,
            "partition": config.data.partition,
            "data-root": str(Path(config.data.root).absolute()) if config.data.root else "",
            "dataset": config.data.dataset,
            "model": config.model.name if ":" in config.model.name else "",
            "tables": tables,
            **budget_settings(config),
        }
        for client in range(clients)
    }


@contextmanager
def loopback(
    home: Path, clients: Mapping[str, Mapping[str, Scalar]], reporter: Reporter
) -> Iterator[Loopback]:
    """Start a SuperLink and one SuperNode a client; stop all of them when the block ends.

    Args:
        home: a new or empty folder.
        clients: node config by client name; a ledger is added where none is named.
        reporter: where to say what has started.

    Raises:
        FederationError: in one sentence, if something does not start.
    """
    if home.exists() and any(home.iterdir()):
        raise FederationError(f"{home} is not empty; a loopback federation needs a new folder")
    home = home.absolute()
    certificates = make_certificates(home / "certificates")
    environment = {PROGRESS_VARIABLE: str(_progress(home)), **importable()}
    with ExitStack() as stack:
        link = stack.enter_context(
            superlink(
                home / "superlink",
                certificates=certificates,
                authenticate=True,
                environment=environment,
            )
        )
        reporter.say(f"SuperLink at {link.address}, TLS, registered clients only")
        nodes: dict[str, SuperNode] = {}
        for name, settings in clients.items():
            keys = make_node_keys(home / "keys", name)
            link.register(keys.public, name)
            own = {"ledger": str(home / name / LEDGER), **settings}
            nodes[name] = stack.enter_context(
                supernode(
                    home / name,
                    link.fleet_address,
                    own,
                    root_certificates=certificates.ca,
                    private_key=keys.private,
                    environment=importable(),
                    wait=False,
                )
            )
        for name, node in nodes.items():
            node.wait_joined()
            reporter.say(f"{name} has joined (process {node.pid})")
        yield Loopback(home, link, nodes)


def run_deployed(
    federation: Loopback,
    config: Config,
    out: Path,
    reporter: Reporter,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Run a configuration's server app on a federation until it has ended.

    Args:
        federation: where.
        config: what; `data.clients` must be the number of clients.
        out: the run folder.
        reporter: hears the server app's progress.
        meanwhile: called some times a second.

    Raises:
        FederationError: with the server app's own sentence, if it failed.
    """
    app = write_app(federation.home / "app", config, out)
    follower = Follower(federation.progress, reporter)  # before a line can be written
    number = federation.link.submit(app)

    def watch() -> None:
        follower.pump()
        meanwhile()

    try:
        status = federation.link.wait(number, meanwhile=watch)
    except BaseException:
        federation.link.stop_run(number)
        raise
    finally:
        follower.close()
    if not status.completed:
        words = follower.failure or status.detail or federation.link.log_of(number, 3)
        raise FederationError(f"the run ended as {status.state}: {words}")


def _progress(home: Path) -> Path:
    return home / "progress.jsonl"
