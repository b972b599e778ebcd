"""Pickled messages between a crew and one of its workers, over a socket pair.

A message is four bytes of length, most significant first, and a pickle. Both ends are processes of one program, so
unpickling is no danger. The crew's end never blocks: a worker that hangs must not hang the crew. The worker's does.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from typing import Any

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 18


def packed(message: object) -> bytes:
    """A message as it travels."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class CrewEnd:
    """The crew's end: never blocks, keeps what the worker does not take yet. For one thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.ended = False
        self._unsent = bytearray()
        self._received = bytearray()

    @property
    def has_unsent(self) -> bool:
        """There is something to `flush` once the connection can be written to."""
        return bool(self._unsent)

    def send(self, message: object) -> None:
        """Send now what goes, keep the rest."""
        self._unsent += packed(message)
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as it goes."""
        try:
            while self._unsent:
                del self._unsent[: self.connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # the worker is gone; its end of file says so to the reader
            self._unsent.clear()

    def receive(self) -> list[Any]:
        """The whole messages that have come; `ended` is true from the worker's end on."""
        try:
            while True:
                data = self.connection.recv(_READ_BYTES)
                if not data:
                    self.ended = True
                    break
                self._received += data
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        messages = []
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            end = start + _LENGTH.size + length
            if len(self._received) < end:
                break
            messages.append(pickle.loads(memoryview(self._received)[start + _LENGTH.size : end]))
            start = end
        del self._received[:start]
        return messages

    def close(self) -> None:
        """Close it; the worker takes that as the order to end."""
        self.connection.close()


class WorkerEnd:
    """The worker's end: blocks. `send` may be called from any thread, `receive` from one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message. Raises OSError when the crew is gone."""
        data = packed(message)
        with self._lock:
            self._connection.sendall(data)

    def receive(self) -> Any:
        """The next message. Raises EOFError when the crew is gone."""
        head = self._file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        (length,) = _LENGTH.unpack(head)
        body = self._file.read(length)
        if len(body) < length:
            raise EOFError
        return pickle.loads(body)
