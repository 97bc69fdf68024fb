"""How a process that waits, warm, is told what to do: over a socket, with environment and open files of the asker."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Bytes of a request that say how long the rest of it is.
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Request:
    """What a process is to do, with which environment, and three open files for its standard streams."""

    environment: Mapping[str, str]
    streams: Sequence[int]
    order: Mapping[str, Any]

    def send(self, door: socket.socket) -> None:
        """Send it; the streams stay open here."""
        text = json.dumps([dict(self.environment), dict(self.order)]).encode()
        socket.send_fds(door, [len(text).to_bytes(_LENGTH_BYTES)], list(self.streams))
        door.sendall(text)

    @classmethod
    def received(cls, door: socket.socket) -> Request | None:
        """Return the next request, or None where the other end is closed."""
        length, streams, _, _ = socket.recv_fds(door, _LENGTH_BYTES, 3)
        text = b""
        while length and len(text) < int.from_bytes(length):
            if not (piece := door.recv(int.from_bytes(length) - len(text))):
                return None
            text += piece
        if not length:
            return None
        environment, order = json.loads(text)
        return cls(environment, streams, order)

    def enter(self) -> None:
        """Make this process's environment and standard streams those of the request."""
        os.environ.clear()
        os.environ.update(self.environment)
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        self.close()

    def close(self) -> None:
        """Close the streams here."""
        for stream in self.streams:
            os.close(stream)
