"""deploy: certificates, keys, and a loopback federation to try a deployment on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedprune import config as configuration
from fedprune.cli.options import AsJson, ConfigFile, Sets, finish, reporter_for, show
from fedprune.config import Scalar
from fedprune.errors import FederationError

app = typer.Typer(no_args_is_help=True, help="Helpers for real clients: certificates and keys.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write.")]


@app.command()
def certificates(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP address of the SuperLink; may be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a certificate authority and a SuperLink's certificate; nothing is overwritten."""
    from fedprune.federated.credentials import make_certificates

    made = make_certificates(folder, (*(host or ()), "127.0.0.1", "localhost"))
    lines = [
        f"flower-superlink --ssl-ca-certfile {made.ca} --ssl-certfile {made.certificate} "
        f"--ssl-keyfile {made.key} --enable-supernode-auth",
        f"fedprune deploy supernode --root-certificates {made.ca} ...   # at each client",
    ]
    found = {"ca": str(made.ca), "certificate": str(made.certificate), "key": str(made.key)}
    show(found, lines, as_json)


@app.command()
def keys(
    folder: Folder,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One key pair a client.")],
    as_json: AsJson = False,
) -> None:
    """Make key pairs with which SuperNodes prove who they are; nothing is overwritten."""
    from fedprune.federated.credentials import make_node_keys

    made = {name: make_node_keys(folder, name) for name in names}
    lines = []
    for name, pair in made.items():
        lines.append(f"flwr supernode register {pair.public} --name {name}   # at the server")
        lines.append(f"fedprune deploy supernode --private-key {pair.private} ...   # at {name}")
    found = {
        name: {"private": str(pair.private), "public": str(pair.public)}
        for name, pair in made.items()
    }
    show(found, lines, as_json)


@app.command()
def loopback(
    config: ConfigFile = None,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder for keys, ledgers and logs; OUT-federation.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a deployment on this machine: SuperLink with TLS, a SuperNode and a ledger a client.

    The clients share data.root, each takes its own part of the rows; everything that was started
    is stopped at the end.
    """
    settings = configuration.load(config, set_ or ())
    reporter = reporter_for(as_json)
    from fedprune.federated import loopback as federations
    from fedprune.federated.simulate import default_folder
    from fedprune.runs import RunFolder

    folder = (out or default_folder(settings)).absolute()
    place = home or folder.with_name(folder.name + "-federation")
    clients = federations.own_settings(settings, settings.data.clients)
    with federations.loopback(place, clients, reporter) as federation:
        federations.run_deployed(federation, settings, folder, reporter)
    finish(folder, RunFolder.open(folder).read_json("summary.json"), as_json)
    if not as_json:
        print(f"each client's ledger: fedprune ledger verify {place}/client-0/ledger.sqlite ...")


@app.command()
def supernode(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")],
    client: Annotated[int, typer.Option(help="This client's number: 0 to data.clients - 1.")],
    data_root: Annotated[Path, typer.Option(help="Folder with this client's own rows.")],
    ledger: Annotated[Path, typer.Option(help="This client's ledger; made if it is missing.")],
    epsilon: Annotated[float, typer.Option(help="The client-level budget that it enforces.")],
    delta: Annotated[float, typer.Option(help="Of that budget; 0 counts pure epsilon.")] = 0.0,
    record_epsilon: Annotated[
        float | None, typer.Option(help="A record-level budget, as DP-SGD updates need.")
    ] = None,
    record_delta: Annotated[float, typer.Option(help="Of the record-level budget.")] = 1e-5,
    least_colluding: Annotated[
        int, typer.Option(help="Clients of a secure sum that may help the server, at the least.")
    ] = 0,
    head_copy: Annotated[
        Path | None, typer.Option(help="A copy of the ledger's last row, best on another disk.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Public keys of the clients to sum masks with (JSON).")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="The authority that vouches for the SuperLink.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="The key that the SuperLink knows this client by.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The data set's name; the run's by default.")] = "",
    model: Annotated[
        str, typer.Option(help='A "package.module:function" that may be imported.')
    ] = "",
    tables: Annotated[
        bool, typer.Option("--tables", help="Let count tables leave, unprotected.")
    ] = False,
    noised_tables: Annotated[
        bool,
        typer.Option("--noised-tables", help="Let count tables leave with noise, as charged."),
    ] = False,
    home: Annotated[Path, typer.Option(help="Folder for Flower's files and logs.")] = Path(
        "supernode"
    ),
) -> None:
    """Run a real client until it is stopped.

    It answers with the fedprune that is installed here, whatever code a server sends along, from
    its own rows, with its own randomness, and never past its own budget.
    """
    from fedprune.federated.flower_engine import importable
    from fedprune.federated.node_settings import NodeSettings
    from fedprune.federated.supernode import supernode as running_supernode

    settings: dict[str, Scalar] = {
        "partition-id": client,
        "data-root": str(data_root.absolute()),
        "ledger": str(ledger.absolute()),
        "epsilon": epsilon,
        "delta": delta,
        "record-delta": record_delta,
        "least-colluding": least_colluding,
        "tables": "unprotected" if tables else "noised" if noised_tables else "off",
    }
    settings |= {key: value for key, value in (("dataset", dataset), ("model", model)) if value}
    for name, path in (("head-copy", head_copy), ("roster", roster)):
        if path is not None:
            settings[name] = str(path.absolute())
    if record_epsilon is not None:
        settings["record-epsilon"] = record_epsilon
    NodeSettings.of(settings)  # what is wrong is said before anything starts
    with running_supernode(
        home,
        superlink,
        settings,
        root_certificates=root_certificates,
        private_key=private_key,
        environment=importable(),
    ) as node:
        print(f"client {client} has joined {superlink}; log: {node.log}", flush=True)
        while node.alive:
            time.sleep(1.0)
    raise FederationError(f"the SuperNode of client {client} has ended; its log is {node.log}")
