"""The end of an API process without losing requests that a client could believe were taken.

uvicorn closes its connections as soon as none of them has a request in work. Requests that are on their way just then
get a reset: those on connections that are kept alive, and those on connections that nobody has accepted yet. Of 16 busy
clients one to seven lost a request at every stop.
"""

from __future__ import annotations

import asyncio
import socket
import time

import uvicorn

LINGER_S = 1.0
"""How long connections without a request stay open at the end, so that a request on its way still arrives."""

_CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
    """Refuses new connections, answers on those that there are and says that each answer was the last, then ends."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the server. uvicorn calls this once it shall exit."""
        await self._stop_listening(sockets or [])
        self._announce_the_end()
        end_s = time.monotonic() + LINGER_S
        while self.server_state.connections and not self.force_exit and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    async def _stop_listening(self, listeners: list[socket.socket]) -> None:
        # Connections that wait to be accepted would be reset with the last descriptor of their listener.
        kept = [listener.dup() for listener in listeners]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        await asyncio.sleep(0)  # the loop closes its own descriptor
        waiting = []
        for listener in kept:
            listener.setblocking(False)
            with listener:
                try:
                    while True:
                        waiting.append(listener.accept()[0])
                except BlockingIOError:
                    pass
        for connection in waiting:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        state = self.server_state
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=state, app_state=self.lifespan.state
        )
        return protocol

    def _announce_the_end(self) -> None:
        headers = [*self.server_state.default_headers, _CLOSE]
        self.server_state.default_headers = headers
        for connection in self.server_state.connections:
            # A request in work took the headers when it came; once its answer has begun they have no effect.
            cycle = getattr(connection, "cycle", None)
            if cycle is not None:
                cycle.default_headers = headers


def drain_at_the_end() -> None:
    """Let the uvicorn servers that this process makes from now on be draining ones."""
    uvicorn.Server = DrainingServer  # type: ignore[misc]
