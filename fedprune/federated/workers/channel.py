"""Small messages between processes: JSON with file descriptors beside it, over a socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HEAD = struct.Struct("<IB")  # bytes of JSON, number of descriptors
_MOST_DESCRIPTORS = 8


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        kind: says what it is about.
        fields: plain data.
        descriptors: open files, now the receiver's to close.
    """

    kind: str
    fields: dict[str, Any]
    descriptors: tuple[int, ...] = ()


class Channel:
    """One end of a connected pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        """Take an end of one's own."""
        self._socket = end

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Send a message.

        Raises:
            OSError: if the other side is gone, or does not read for too long.
        """
        body = json.dumps({"kind": kind, **fields}).encode()
        data = memoryview(_HEAD.pack(len(body), len(descriptors)) + body)
        if descriptors:  # they travel with the first byte
            sent = socket.send_fds(self._socket, [data], list(descriptors))
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self) -> Frame | None:
        """Wait for a message; None when the other side is gone."""
        try:
            head, descriptors = self._head()
            if head is None:
                return None
            size, count = _HEAD.unpack(head)
            body = self._exactly(size)
        except OSError:
            return None
        if body is None or len(descriptors) != count:
            return None
        fields = json.loads(body)
        return Frame(fields.pop("kind"), fields, tuple(descriptors))

    def patience(self, seconds: float | None) -> None:
        """Say how long a send or a message that has begun may take; None for ever."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _head(self) -> tuple[bytes | None, list[int]]:
        found, descriptors, _, _ = socket.recv_fds(self._socket, _HEAD.size, _MOST_DESCRIPTORS)
        if not found:
            return None, descriptors
        rest = self._exactly(_HEAD.size - len(found))
        return (None if rest is None else found + rest), descriptors

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)


def pair() -> tuple[Channel, socket.socket]:
    """Make a channel and the other end of it, to be handed to another process."""
    here, there = socket.socketpair()
    return Channel(here), there
