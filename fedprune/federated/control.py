"""Talking to a SuperLink through Flower's own commands: submit, watch and stop runs.

Everything goes through the `flwr` command with a home folder of its own, so that neither the
user's Flower configuration nor a SuperLink that listens on Flower's fixed local port takes part.
`flwr run` and `flwr log` exit with 0 also when an app crashed: the final status of the run, which
only `flwr list` knows, is what counts. Checked with flwr 1.41.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedprune.config import Scalar
from fedprune.errors import FederationError
from fedprune.federated.environment import flower_environment
from fedprune.federated.processes import program, running, tail
from fedprune.federated.reasons import exit_reason, unreachable

COMMAND_SECONDS = 60.0
STATUS_SECONDS = 20.0  # how often the status is asked for while the log still streams
LATE_STATUS_SECONDS = 2.0  # and after the log has ended
_CONNECTION = "fedprune"
_UNAVAILABLE = "Connection to the SuperLink is unavailable"
_FAILED = re.compile(r"^\w+ failed with exception: ")
_SILENT = "No heartbeat received from the task"
_CHATTER = ("Using SuperLink:", "Listing all nodes", "Displaying information", "✋ Stopping run")


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        state: "pending", "starting", "running", "finished:completed", "finished:failed" or
            "finished:stopped".
        detail: the app's own sentence about a failure, or Flower's; "" if there is none.
    """

    state: str
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether the app came to its end without an error."""
        return self.state == "finished:completed"


class Control:
    """One SuperLink's control interface."""

    def __init__(
        self,
        home: Path,
        address: str,
        *,
        root_certificates: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Remember where the SuperLink is; nothing is sent yet.

        Args:
            home: a folder for Flower's own files; its config.toml is written here.
            address: host:port of the SuperLink.
            root_certificates: the CA certificate that signed the SuperLink's; None speaks
                without TLS.
            environment: variables for Flower's commands, on top of this process's own.
        """
        self.home, self.address = home.absolute(), address
        self.root_certificates = root_certificates
        self._environment = flower_environment(self.home, environment)
        connection: dict[str, Scalar] = {"address": address, "insecure": root_certificates is None}
        if root_certificates is not None:
            connection["root-certificates"] = str(root_certificates.absolute())
        self.home.mkdir(parents=True, exist_ok=True)
        superlinks = {"default": _CONNECTION, _CONNECTION: connection}
        (self.home / "config.toml").write_text(tomli_w.dumps({"superlink": superlinks}))

    def register(self, public_key: Path, name: str = "") -> int:
        """Let the owner of a key join as a SuperNode; give the node's id.

        Raises:
            FederationError: in Flower's words, for example if the key is registered already.
        """
        named = ["--name", name] if name else []
        answer = self._flwr("supernode", "register", str(public_key), _CONNECTION, *named)
        return int(answer["node-id"])

    def nodes(self) -> list[dict[str, Any]]:
        """List the SuperNodes that this SuperLink knows, with their status."""
        nodes: list[dict[str, Any]] = self._flwr("supernode", "list", _CONNECTION)["nodes"]
        return nodes

    def submit(
        self,
        app: Path,
        run_config: Mapping[str, Scalar] | None = None,
        federation_config: Mapping[str, Scalar] | None = None,
    ) -> int:
        """Start a run of the app in a folder; give the run's id.

        Args:
            app: the folder with the app's pyproject.toml.
            run_config: values for keys of the app's `[tool.flwr.app.config]`.
            federation_config: of a simulation: num-supernodes, client-resources-num-cpus, ...

        Raises:
            FederationError: if the app is refused, or has no such key in its configuration.
        """
        _check_keys(app, run_config or {})
        options = []
        if federation_config:
            pairs = " ".join(f"{k}={_as_toml(v)}" for k, v in federation_config.items())
            options = ["--federation-config", pairs]
        with _toml_file(run_config or {}) as path:
            if run_config:
                options += ["--run-config", str(path)]
            answer = self._flwr("run", str(app.absolute()), _CONNECTION, *options)
        return int(answer["run-id"])

    def status(self, run_id: int) -> RunStatus:
        """Ask how far a run is.

        Raises:
            FederationError: if the SuperLink does not answer or does not know the run.
        """
        (row,) = self._flwr("list", _CONNECTION, "--run-id", str(run_id))["runs"]
        detail = _FAILED.sub("", str(row.get("status-details") or ""))
        return RunStatus(str(row["status"]), "" if detail == "N/A" else detail)

    def reason(self, run_id: int, status: RunStatus) -> str:
        """Say in one sentence why a run did not complete."""
        if status.detail and status.detail != _SILENT:
            return status.detail
        last = "; ".join(filter(None, self.log_of(run_id, 3).split("\n")))
        if status.detail == _SILENT:
            return f"the server app's process died without a word; the last ones were: {last}"
        return f"the run ended as {status.state}; the last words were: {last}"

    def wait(
        self,
        run_id: int,
        *,
        seconds: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> RunStatus:
        """Wait until a run is finished; the app's output goes to `log_file(run_id)` meanwhile.

        Args:
            run_id: the run.
            seconds: the longest to wait; None waits as long as the run lasts. A run whose server
                process died is finished by Flower after about 60 seconds.
            meanwhile: called some times a second.

        Raises:
            FederationError: if the SuperLink goes away or the time is over.
        """
        end = None if seconds is None else time.monotonic() + seconds
        command = [program("flwr"), "log", str(run_id), _CONNECTION, "--stream"]
        name = "Flower's log stream"
        with running(
            name, command, log=self.log_file(run_id), environment=self._environment
        ) as stream:
            asked = time.monotonic()
            while True:
                meanwhile()
                pause = STATUS_SECONDS if stream.alive else LATE_STATUS_SECONDS
                if time.monotonic() - asked > pause or (stream.exit_code is not None):
                    status, asked = self.status(run_id), time.monotonic()
                    if status.finished:
                        meanwhile()
                        return status
                    if stream.exit_code is not None:
                        time.sleep(LATE_STATUS_SECONDS)
                if end is not None and time.monotonic() > end:
                    raise FederationError(
                        f"run {run_id} at {self.address} is not finished after {seconds:g} seconds"
                    )
                time.sleep(0.1)

    def stop_run(self, run_id: int) -> None:
        """Stop a run; one that is finished already is left as it is."""
        try:
            self._flwr("stop", str(run_id), _CONNECTION)
        except FederationError:
            if not self.status(run_id).finished:
                raise

    def log_file(self, run_id: int) -> Path:
        """Name the file that holds the app's output after `wait` or `log_of`."""
        return self.home / "logs" / f"run-{run_id}.log"

    def log_of(self, run_id: int, lines: int = 40) -> str:
        """Give the last lines that the server app printed."""
        path = self.log_file(run_id)
        if not path.exists():
            command = [program("flwr"), "log", str(run_id), _CONNECTION, "--stream"]
            with running(
                "Flower's log stream", command, log=path, environment=self._environment
            ) as stream:
                stream.wait(COMMAND_SECONDS if self.status(run_id).finished else 3.0)
        return "\n".join(tail(path)[-lines:])

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run one flwr command that answers in JSON."""
        try:
            done = subprocess.run(
                [program("flwr"), *arguments, "--format", "json"],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FederationError(
                f"flwr {arguments[0]} got no answer from the SuperLink at {self.address} within "
                f"{COMMAND_SECONDS:g} seconds"
            ) from None
        answer = _json_of(done.stdout)
        if answer is None or not answer.get("success"):
            said = answer.get("error-message", "") if answer else done.stderr or done.stdout
            raise FederationError(self._explain(arguments[0], said))
        return answer

    def _explain(self, command: str, said: str) -> str:
        lines = said.splitlines()
        if any(_UNAVAILABLE in line for line in lines):
            return unreachable(self.address, self.root_certificates)
        words = exit_reason(lines) or " ".join(
            line.strip() for line in lines if not line.startswith(_CHATTER)
        )
        return (
            f"flwr {command} failed at the SuperLink {self.address}: {words or 'no reason given'}"
        )


@contextmanager
def _toml_file(values: Mapping[str, Scalar]) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(suffix=".toml")
    path = Path(name)
    try:
        os.write(handle, tomli_w.dumps(dict(values)).encode())
        os.close(handle)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _as_toml(value: Scalar) -> str:
    return tomli_w.dumps({"v": value}).partition("=")[2].strip()


def _json_of(text: str) -> dict[str, Any] | None:
    with contextlib.suppress(json.JSONDecodeError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            return answer
    return None


def _check_keys(app: Path, run_config: Mapping[str, Scalar]) -> None:
    """Name the key that Flower would only call an invalid run configuration."""
    path = app / "pyproject.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        known = _flat_keys(tables["tool"]["flwr"]["app"].get("config", {}))
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise FederationError(f"{path} does not describe a Flower app: {error!r}") from None
    for key in run_config:
        if key not in known:
            raise FederationError(f"{path} has no key {key} in [tool.flwr.app.config]")


def _flat_keys(tables: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tables.items():
        name = f"{prefix}{key}"
        keys |= _flat_keys(value, f"{name}.") if isinstance(value, dict) else {name}
    return keys
