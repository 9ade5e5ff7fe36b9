"""The process that workers are forked from: it imports once, has one thread, and never computes.

It also sees to it that no worker outlives the run: when the parent is gone, however it went, all
workers are killed, also those that hang.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import wait

from fedprune.federated.workers.channel import Channel, Frame

_LOOK_SECONDS = 2.0  # how often to look whether the parent is still the parent
_FEW_SECONDS = 0.01


def main(descriptor: int) -> None:
    """Serve the parent on a socket until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.dup2(2, 1)  # standard output is for results: what a user's network prints goes elsewhere
    parent = os.getppid()
    channel = Channel(socket.socket(fileno=descriptor))
    from fedprune.federated.workers import worker

    worker.preload()
    nursery = _Nursery(channel)
    with contextlib.suppress(OSError):  # the parent may be gone already, which is seen below
        channel.send("ready")
    try:
        while os.getppid() == parent:
            if not wait([channel.fileno()], _LOOK_SECONDS):
                continue
            frame = channel.receive()
            if frame is None:
                break
            nursery.handle(frame)
    finally:
        nursery.kill_all()
    os._exit(0)


class _Nursery:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: set[int] = set()

    def handle(self, frame: Frame) -> None:
        if frame.kind == "fork":
            self._fork(frame.descriptors[0])
        else:
            self._channel.send("end", how=self._end(int(frame.fields["pid"])))

    def _fork(self, descriptor: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._channel.close()
            _work(descriptor)
        os.close(descriptor)  # or the parent would not see the worker's end
        self._children.add(pid)
        self._channel.send("forked", pid=pid)

    def _end(self, pid: int) -> str:
        """Make sure that a worker is gone, and say how it went."""
        if pid not in self._children:
            return "ended"
        for _ in range(100):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                break
            time.sleep(_FEW_SECONDS)
        else:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        self._children.discard(pid)
        return _in_words(status)

    def kill_all(self) -> None:
        for pid in self._children:
            with contextlib.suppress(OSError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, signal.SIGKILL)


def _work(descriptor: int) -> None:
    """Be a worker; does not return."""
    from fedprune.federated.workers import worker

    code = 1
    try:
        worker.serve(Channel(socket.socket(fileno=descriptor)))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        hint = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"
    return f"ended with exit status {os.waitstatus_to_exitcode(status)}"
