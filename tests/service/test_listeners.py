from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from service.listeners import PortError, listen, listen_at, uri_of
from tests.service.server_process import free_port


@pytest.mark.parametrize(
    ("host", "reached_at"), [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])]
)
def test_a_port_is_listened_on_once_and_a_second_time_is_an_error_that_names_it(
    host: str, reached_at: list[str]
) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("no IPv6 here")
    port = free_port()

    with listen(host, port):
        for address in reached_at:
            socket.create_connection((address, port), timeout=5).close()
        with pytest.raises(PortError, match=f"MIEN_PORT: cannot listen on {host} port {port}: Address already in use"):
            listen(host, port)


def test_a_port_can_be_listened_on_again_while_old_connections_linger() -> None:
    port = free_port()
    with listen("127.0.0.1", port) as listener:
        client = socket.create_connection(("127.0.0.1", port))
        listener.accept()[0].close()  # the side that closes first keeps the address for a minute
        client.close()

    listen("127.0.0.1", port).close()


def test_a_unix_socket_is_for_its_owner_only_and_not_inherited_unasked(tmp_path: Path) -> None:
    path = tmp_path / "detector.sock"

    with listen_at(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not os.get_inheritable(listener.fileno())


def test_uris_are_those_that_the_client_of_bentoml_understands(tmp_path: Path) -> None:
    from bentoml._internal.utils.uri import path_to_uri, uri_to_path

    path = tmp_path / "a name.sock"
    with listen_at(path) as unix, listen("127.0.0.1", free_port()) as tcp:
        assert uri_of(unix) == path_to_uri(str(path))
        assert uri_to_path(uri_of(unix)) == str(path)
        assert uri_of(tcp) == f"http://127.0.0.1:{tcp.getsockname()[1]}"


def test_the_uri_of_an_ipv6_address_has_brackets() -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 here")

    with listen("::1", port := free_port()) as listener:
        assert uri_of(listener) == f"http://[::1]:{port}"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
