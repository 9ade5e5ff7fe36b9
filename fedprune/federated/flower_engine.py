"""Runs on Flower's own simulation engine (Ray), started and stopped from here.

A small app folder names fedprune's server app and client app and holds the configuration; a
SuperLink in simulation mode with a port, a home and a Ray folder of its own runs it. Works from any
folder and from an installed wheel. Flower calls a run without an error "finished:completed", and
nothing else counts as success.
"""

from __future__ import annotations

import os
import shutil
import site
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

import fedprune
from fedprune import config as configuration
from fedprune.config import Config, Scalar
from fedprune.errors import ConfigError, FederationError
from fedprune.federated.processes import listens
from fedprune.federated.superlink import SuperLink, superlink
from fedprune.federated.supernode import CLIENT_APP
from fedprune.progress import PROGRESS_VARIABLE, Follower, Reporter

SERVER_APP = "fedprune.federated.server:app"
_LONGEST_RAY_FOLDER = 40  # characters; the paths of Ray's sockets must stay under 107


class FlowerEngine:
    """A running simulation SuperLink that several runs can share, one after the other."""

    def __init__(self, link: SuperLink, work: Path) -> None:
        """Take a started SuperLink; `flower_simulation` makes these."""
        self.link, self._work = link, work

    def run(self, config: Config, out: Path, reporter: Reporter) -> None:
        """Run one configuration with one seed into a run folder, and wait for its end.

        Args:
            config: the experiment; `data.clients` nodes are simulated.
            out: the run folder, which the server app makes.
            reporter: hears what the server app says.

        Raises:
            FederationError: with the server app's own sentence, if the run failed.
        """
        app = write_app(self._work / "app", config, out)
        follower = Follower(_progress(self._work), reporter)
        number = self.link.submit(app, federation_config=resources(config))
        try:
            status = self.link.wait(number, meanwhile=follower.pump)
        finally:
            follower.close()
        if not status.completed:
            raise FederationError(follower.failure or self.link.reason(number, status))


def run_on_flower(config: Config, out: Path, reporter: Reporter) -> None:
    """Run one configuration with one seed on Flower's simulation engine.

    Raises:
        FederationError: in one sentence; everything that was started is stopped.
    """
    with flower_simulation(config) as engine:
        engine.run(config, out, reporter)


@contextmanager
def flower_simulation(
    config: Config, further: Mapping[str, str] | None = None
) -> Iterator[FlowerEngine]:
    """Keep a simulation SuperLink for as long as the block lasts, for one or several runs.

    Args:
        config: its engine table says where clients run.
        further: environment variables of the server apps.

    Raises:
        FederationError: if it does not start.
    """
    check_resources(config)
    work = Path(tempfile.mkdtemp(prefix="fedprune-"))
    try:
        home = work / "home"
        environment = {
            PROGRESS_VARIABLE: str(_progress(work)),
            **importable(),
            **_ray(config, work),
            **(further or {}),
        }
        with superlink(home, simulation=True, environment=environment) as link:
            yield FlowerEngine(link, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_app(folder: Path, config: Config, out: Path) -> Path:
    """Write a folder that `flwr run` takes as an app: fedprune's apps with one configuration.

    Args:
        folder: where to; what an earlier call wrote there is replaced.
        config: the experiment.
        out: its run folder.

    Returns:
        The folder.
    """
    located = config.model_copy(update={"out": str(out.absolute())})
    app = {
        "publisher": "fedprune",
        "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
        "config": _nested(configuration.to_flat(located)),
    }
    project = {
        "name": "fedprune",
        "version": fedprune.__version__,
        "description": "A run of fedprune",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return folder


def resources(config: Config) -> dict[str, Scalar]:
    """Say in Flower's words how many nodes there are and what each may use."""
    engine = config.engine
    found: dict[str, Scalar] = {
        "num-supernodes": config.data.clients,
        "client-resources-num-cpus": engine.cpus_per_client,
        "client-resources-num-gpus": engine.gpus_per_client,
    }
    if engine.actors:
        found["init-args-num-cpus"] = engine.actors * engine.cpus_per_client
    return found


def check_resources(config: Config) -> None:
    """Refuse what Ray cannot give.

    Raises:
        ConfigError: naming the key.
        FederationError: if no Ray cluster is where the configuration says.
    """
    engine, there = config.engine, os.cpu_count() or 1
    if engine.ray_address and engine.actors:
        raise ConfigError(
            f"engine.actors must be 0 with engine.ray_address = {engine.ray_address!r}: a running "
            f"cluster decides how many fit, got {engine.actors}"
        )
    if not engine.ray_address and not engine.actors and engine.cpus_per_client > there:
        raise ConfigError(
            f"engine.cpus_per_client must be at most {there} on this machine, "
            f"got {engine.cpus_per_client}"
        )
    if engine.ray_address:
        _require_cluster(engine.ray_address)


def _require_cluster(address: str) -> None:
    """Check that somebody listens there: Ray itself would try for a long time."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"engine.ray_address must be host:port or empty, got {address!r}")
    if not listens(int(port), host.strip("[]")):
        raise FederationError(f"no Ray cluster answers at engine.ray_address = {address!r}")


def importable() -> dict[str, str]:
    """Let Flower's processes import fedprune, and a user's `module:function` from this folder."""
    paths = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    own = str(Path(fedprune.__file__).parents[1])
    if own not in [*site.getsitepackages(), site.getusersitepackages()]:
        paths.append(own)  # a checkout that is not installed
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}


def _ray(config: Config, work: Path) -> dict[str, str]:
    """Name the cluster to join, or keep a cluster of our own out of Ray's shared folder."""
    if config.engine.ray_address:
        return {"RAY_ADDRESS": config.engine.ray_address}
    if len(str(work)) > _LONGEST_RAY_FOLDER:
        return {"RAY_ADDRESS": "local"}
    return {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(work)}


def _progress(work: Path) -> Path:
    return work / "progress.jsonl"


def _nested(flat: Mapping[str, Scalar]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for dotted, value in flat.items():
        *path, key = dotted.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[key] = value
    return tables
