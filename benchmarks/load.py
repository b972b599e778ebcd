"""Requests to a running service from a process of its own: as many at once as asked, or at a fixed rate."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass
class Answers:
    """What came back. statuses: how many of each; latencies_s: of the answers with status 200, in order of arrival."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies_s) / self.duration_s

    def quantile_s(self, share: float) -> float:
        """The latency that `share` of the good answers did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    """Sends one picture to `/v1/analyze` again and again. For a `benchmarks.workers.Worker`."""

    def prepare(self, url: str, picture: bytes) -> None:
        """Where to send what."""
        self._url, self._picture = f"{url}/v1/analyze", picture

    def closed(self, n_clients: int, duration_s: float) -> Answers:
        """`n_clients` at once, each with its next request as soon as it has an answer."""
        return asyncio.run(self._closed(n_clients, duration_s))

    def open(self, rate: float, duration_s: float) -> Answers:
        """`rate` requests a second, whatever comes of them."""
        return asyncio.run(self._open(rate, duration_s))

    async def _closed(self, n_clients: int, duration_s: float) -> Answers:
        answers = Answers()
        async with _session() as session:
            started = time.perf_counter()

            async def client() -> None:
                while time.perf_counter() < started + duration_s:
                    await self._request(session, answers)

            await asyncio.gather(*(client() for _ in range(n_clients)))
            answers.duration_s = time.perf_counter() - started
        return answers

    async def _open(self, rate: float, duration_s: float) -> Answers:
        answers = Answers()
        async with _session() as session:
            started = time.perf_counter()
            requests = []
            for number in range(int(rate * duration_s)):
                await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
                requests.append(asyncio.create_task(self._request(session, answers)))
            await asyncio.gather(*requests)
            answers.duration_s = time.perf_counter() - started
        return answers

    async def _request(self, session: aiohttp.ClientSession, answers: Answers) -> None:
        sent = time.perf_counter()
        try:
            async with session.post(self._url, data=self._picture) as response:
                await response.read()
                answers.statuses[str(response.status)] += 1
                if response.status == 200:
                    answers.latencies_s.append(time.perf_counter() - sent)
        except (aiohttp.ClientError, TimeoutError) as error:
            answers.statuses[type(error).__name__] += 1


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=_TIMEOUT,
        headers={"Content-Type": "application/octet-stream"},
    )
