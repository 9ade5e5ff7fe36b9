"""A small supervisor between fedprune and a program it starts; run as a script, not imported.

It runs one command and leaves nothing behind: when the command ends, when it is told to stop,
and when fedprune itself is gone, however that happened, it stops the command and everything that
the command started, also what moved into sessions of its own. On Linux it adopts orphans
(PR_SET_CHILD_SUBREAPER), so that no descendant can get out of its sight.

Only the standard library is imported: it must start at once, in any environment. Standard input
is a pipe whose other end fedprune holds: when it closes, all is stopped. The command's process id
is written to standard output; everything else that is printed goes to the log on standard error.

    python guard.py GRACE_SECONDS PARENT_PID COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

PR_SET_CHILD_SUBREAPER = 36
LATE_SECONDS = 2.0  # what a program's own children get after it has ended
POLL_SECONDS = 0.05
LOOK_SECONDS = 0.5
NOT_FOUND = 127
SIGNALLED = 128  # as shells say it: 128 + the signal's number


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or we are told to stop; give its exit code."""
    grace, parent, command = float(arguments[0]), int(arguments[1]), list(arguments[2:])
    adopt_orphans()
    wake_up = signals_as_bytes()
    try:
        program = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
            ],
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    print(program, flush=True)
    ended: dict[int, int] = {}
    while program not in ended and not told_to_stop(wake_up, parent):
        reap(ended)
    stop(program, ended, grace)
    code = os.waitstatus_to_exitcode(ended.get(program, int(signal.SIGKILL)))
    return code if code >= 0 else SIGNALLED - code


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, where the system knows that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def signals_as_bytes() -> int:
    """Turn SIGTERM, SIGINT and SIGCHLD into bytes on a pipe that select can wait for."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writable)
    return readable


def told_to_stop(wake_up: int, parent: int) -> bool:
    """Wait a moment; say whether fedprune wants an end or is gone."""
    ready, _, _ = select.select([0, wake_up], [], [], LOOK_SECONDS)
    if 0 in ready or os.getppid() != parent:  # nobody ever writes: readable means closed
        return True
    if wake_up in ready:
        return any(number != signal.SIGCHLD for number in os.read(wake_up, 4096))
    return False


def stop(program: int, ended: dict[int, int], grace: float) -> None:
    """Ask politely, the program first and then its children; then insist until none is left."""
    if program not in ended:
        send([program], signal.SIGTERM)
        wait_until(lambda: program in ended, ended, grace)
    send(descendants(), signal.SIGTERM)
    wait_until(lambda: not descendants(), ended, LATE_SECONDS if program in ended else 0.0)
    while left := descendants():
        send(left, signal.SIGKILL)
        wait_until(lambda: not descendants(), ended, POLL_SECONDS)
    reap(ended)


def wait_until(done: Callable[[], bool], ended: dict[int, int], seconds: float) -> None:
    """Reap children until something holds or the time is over."""
    end = time.monotonic() + seconds
    while True:
        reap(ended)
        if done() or time.monotonic() >= end:
            return
        time.sleep(POLL_SECONDS)


def reap(ended: dict[int, int]) -> None:
    """Note every child, own or adopted, that has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            ended[pid] = status


def send(pids: Iterable[int], number: int) -> None:
    """Signal processes that may be gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def descendants() -> list[int]:
    """List the living processes below this one."""
    children: dict[int, list[int]] = {}
    for pid, parent in living():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def living() -> list[tuple[int, int]]:
    """List (process id, parent's id) of all processes that are not zombies."""
    if sys.platform == "linux":
        return [pair for name in os.listdir("/proc") if name.isdigit() and (pair := stat_of(name))]
    with subprocess.Popen(["ps", "-axo", "pid=,ppid=,stat="], stdout=subprocess.PIPE) as listing:
        rows = [line.split() for line in listing.communicate()[0].splitlines()]
    found = [(int(row[0]), int(row[1])) for row in rows if not row[2].startswith(b"Z")]
    return [(pid, parent) for pid, parent in found if pid != listing.pid]


def stat_of(name: str) -> tuple[int, int] | None:
    """Read one process's parent from /proc; nothing if it is gone or a zombie."""
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if after_name[0] in (b"Z", b"X"):
        return None
    return int(name), int(after_name[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
