"""The listening sockets that the supervisor makes and its workers inherit."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

BACKLOG = 2048
"""Connections that may wait to be accepted, on each socket."""


class PortError(Exception):
    """The address cannot be listened on; the message names it."""


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on an IP address; `::` takes IPv4 too. Raises PortError when it cannot."""
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise PortError(f"MIEN_PORT: cannot listen on {host} port {port}: {error.strerror}") from error


def listen_at(path: Path) -> socket.socket:
    """A unix socket that listens at a new path, for processes of this user only."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def uri_of(listener: socket.socket) -> str:
    """How BentoML's client names the socket: `http://127.0.0.1:3000`, `file:///run/mien/detector.sock`."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return Path(address).as_uri()
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
