"""Programs that fedprune starts beside itself: their ports, their logs and their sure end.

Every program runs under a guard (`guard.py`) that stops it and all that it started when the block
that started it is left, when an exception or Ctrl-C passes through, and when this process is
terminated or killed. Only what was started here is ever signalled, by process id.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedprune.errors import FederationError

LOOPBACK = "127.0.0.1"
GRACE_SECONDS = 5.0
_GUARD = Path(__file__).with_name("guard.py")
_GUARD_SECONDS = 10.0  # the guard's own work after the grace is over
_LOG_TAIL_BYTES = 65536
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MEANING = re.compile(r"[A-Za-z]{2}")
_EMPTY_LOG_LINE = re.compile(r"^(INFO|WARNING|ERROR|DEBUG)\s*:\s*")


class Process:
    """One running program under its guard."""

    def __init__(
        self, name: str, guard: subprocess.Popen[bytes], pid: int, log: Path, log_start: int
    ) -> None:
        """Take a started guard; `running` makes these."""
        self.name, self.pid, self.log = name, pid, log
        self._guard, self._log_start = guard, log_start

    @property
    def alive(self) -> bool:
        """Whether the program itself still runs."""
        return self._guard.poll() is None and _exists(self.pid)

    @property
    def exit_code(self) -> int | None:
        """Its exit code, 128 + n if signal n ended it; None while anything of it runs."""
        return self._guard.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for the program and all it started to end; give the exit code, None if late."""
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Kill the program at once by its id, as a power cut would; what it started ends too."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
        self.wait(_GUARD_SECONDS)

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """End the program and everything it started, first asking, then insisting."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        if self.wait(grace_seconds + _GUARD_SECONDS) is None:  # cannot happen, but must not last
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()

    def lines(self) -> list[str]:
        """Give what this process printed, the last part of it; not what others left in its log."""
        return tail(self.log, self._log_start)

    def last_words(self) -> str:
        """Give the last line that says something."""
        lines = [meaning for line in self.lines() if (meaning := _meaning_of(line))]
        return lines[-1] if lines else "it said nothing"

    def wait_for(
        self,
        ready: Callable[[], bool],
        seconds: float,
        what: str,
        explain: Callable[[Sequence[str]], str] = lambda _: "",
    ) -> None:
        """Wait until something holds.

        Args:
            ready: what must hold.
            seconds: the longest to wait.
            what: what is waited for, in words.
            explain: finds the reason for an early end in the printed lines, "" if it cannot.

        Raises:
            FederationError: with the reason, if the program ends first or time runs out.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                code = self.wait(_GUARD_SECONDS)
                reason = explain(self.lines()) or (
                    f"ended with exit code {code} before {what}: {self.last_words()}"
                )
                raise FederationError(f"{self.name}: {reason} ({self.log})")
            if time.monotonic() > end:
                raise FederationError(
                    f"{self.name} was not ready after {seconds:g} seconds: still waiting until "
                    f"{what}; its last words: {self.last_words()} ({self.log})"
                )
            time.sleep(0.05)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Iterator[Process]:
    """Run a program for as long as the block lasts; its output is appended to `log`.

    Args:
        name: what people call it, for error messages.
        command: the program and its arguments.
        log: the file for standard output and standard error.
        environment: variables on top of this process's own.
        cwd: its working directory; this process's own by default.
        grace_seconds: what it gets between being asked to end and being killed.

    Raises:
        FederationError: if the program cannot be started.
    """
    process = _start(name, command, log, {**os.environ, **(environment or {})}, cwd, grace_seconds)
    try:
        yield process
    finally:
        process.stop(grace_seconds)


def _start(
    name: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cwd: Path | None,
    grace_seconds: float,
) -> Process:
    guard_command = [sys.executable, "-I", "-S", str(_GUARD), str(grace_seconds), str(os.getpid())]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        log_start = output.tell()
        guard = subprocess.Popen(
            [*guard_command, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,  # Ctrl-C at a terminal is ours to handle
        )
    try:
        assert guard.stdout is not None
        with guard.stdout as words:
            first = words.readline()
    except BaseException:
        guard.kill()
        raise
    process = Process(name, guard, int(first or 0), log, log_start)
    if not first:
        process.stop()
        raise FederationError(f"{name} cannot be started: {process.last_words()}")
    return process


def program(name: str) -> str:
    """Find one of Flower's commands where this interpreter's packages put them, then in PATH.

    Raises:
        FederationError: if it is nowhere.
    """
    own = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    own.append(Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))))
    found = shutil.which(name, path=os.pathsep.join(map(str, own))) or shutil.which(name)
    if found is None:
        raise FederationError(
            f"the command {name} is missing: is flwr installed for {sys.executable}?"
        )
    return found


def free_port(host: str = LOOPBACK) -> int:
    """Ask the system for a TCP port that nobody uses now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int, host: str = LOOPBACK) -> None:
    """Check that a port can be listened on.

    Raises:
        FederationError: naming address and port, if it is taken or may not be used.
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FederationError(f"cannot listen on {host}:{port}: {reason}") from None


def listens(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def tail(path: Path, start: int = 0) -> list[str]:
    """Read the last lines of a file that may still grow, without colours.

    Args:
        path: the file; one that is not there has no lines.
        start: where in the file to begin at the earliest, in bytes.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return _COLOUR.sub("", text).splitlines()


def _meaning_of(line: str) -> str:
    meaning = _EMPTY_LOG_LINE.sub("", line).strip()
    return meaning if _MEANING.search(meaning) else ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
