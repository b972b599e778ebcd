"""Each test here fails when BentoML mends the trap it describes; then our workaround can go."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import bentoml
import pytest
from _bentoml_impl.client.proxy2 import AsyncClient, RemoteProxy, SessionManager
from _bentoml_impl.serde import PickleSerde
from aiohttp import web

from service.analyzer import call_runner
from service.app import Mien
from service.runners import RUNNER_CONNECTION, DetectorRunner, pickled


@asynccontextmanager
async def _served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _slow_request_while_others_pass(**connection: float) -> int:
    """Start a request, make two more while it is in flight, and return its status."""
    arrived, others_done = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        arrived.set()
        await others_done.wait()
        return web.Response()

    async def fast(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/slow", slow), web.get("/fast", fast)])
    async with _served(app) as url:
        manager = SessionManager(url, timeout=30, headers={}, **connection)  # type: ignore[arg-type]

        async def status_of(path: str) -> int:
            async with (await manager.get_session()).get(path) as response:
                return response.status

        in_flight = asyncio.create_task(status_of("/slow"))
        await arrived.wait()
        try:
            for _ in range(2):
                assert await status_of("/fast") == 200
            others_done.set()
            return await in_flight
        finally:
            others_done.set()
            in_flight.cancel()
            await manager.close()


def test_trap_the_client_closes_its_session_with_requests_in_flight() -> None:
    try:
        status = asyncio.run(_slow_request_while_others_pass(max_requests=1))
    except aiohttp.ClientConnectionError:
        return
    pytest.fail(
        f"the request in flight got {status}: BentoML no longer breaks it, so RUNNER_CONNECTION in service/runners.py "
        "can go"
    )


def test_our_connection_settings_spare_the_request_in_flight() -> None:
    assert asyncio.run(_slow_request_while_others_pass(**RUNNER_CONNECTION)) == 200


def test_the_client_of_every_runner_uses_our_connection_settings() -> None:
    Mien.inject_config()
    runners = [dependency.on for dependency in Mien.dependencies.values()]
    assert {runner.name for runner in runners} == {"mien_detector", "mien_emotion"}

    for runner in runners:
        manager = RemoteProxy("http://127.0.0.1:1", service=runner).to_async._session_manager
        assert {"max_requests": manager.max_requests, "max_age": manager.max_age} == RUNNER_CONNECTION


_RESULT = pickle.dumps("result")


class _ClosingRunner:
    """A runner that closes its connection just as a second request comes in on it, as the real one does after 5 s."""

    def __init__(self) -> None:
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._read_request(reader)
        answer = pickle.dumps([_RESULT])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.bentoml+pickle\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(answer) + answer)
        await writer.drain()
        await self._read_request(reader)
        writer.close()

    @staticmethod
    async def _read_request(reader: asyncio.StreamReader) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)


async def _second_call(wrapped: bool) -> tuple[list[Any], int]:
    """Call the runner twice over BentoML's client, bare or through `call_runner`; the second result, connections."""
    runner = _ClosingRunner()
    server = await asyncio.start_server(runner.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = AsyncClient(
        f"http://127.0.0.1:{port}",
        service=DetectorRunner,
        media_type=PickleSerde.media_type,
        server_ready_timeout=0,
    )
    async with server, client:

        async def bare(items: list[Any]) -> list[Any]:
            results: list[Any] = await client.detect(items)
            return results

        assert await bare([b"first"]) == [_RESULT]
        second = call_runner("detect", pickled(bare), ["second"]) if wrapped else bare([b"second"])
        return await second, runner.connections


def test_trap_the_client_does_not_repeat_a_call_on_a_connection_that_just_closed() -> None:
    try:
        asyncio.run(_second_call(wrapped=False))
    except aiohttp.ClientConnectionError:
        return
    pytest.fail(
        "BentoML's client now survives a lost connection: the retry in call_runner of service/analyzer.py can go"
    )


def test_our_call_of_a_runner_survives_a_connection_that_just_closed() -> None:
    assert asyncio.run(_second_call(wrapped=True)) == (["result"], 2)


@dataclass(frozen=True)
class _Item:
    value: int


@bentoml.service(name="trap_echo")
class _Echo:
    @bentoml.api(batchable=True)
    def echo(self, items: list[Any]) -> list[Any]:
        return items


def test_trap_dataclasses_reach_a_runner_as_dicts() -> None:
    serde, spec = PickleSerde(), _Echo.apis["echo"].input_spec
    sent = spec.from_inputs(items=[_Item(1)])
    (received,) = serde.deserialize_model(serde.serialize_model(sent), spec).items

    assert received == {"value": 1}, (
        f"a dataclass now arrives as {received!r}: the pickling in service/runners.py can go"
    )
