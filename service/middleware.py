"""Pure-ASGI middleware around the REST door: what holds for every request, whatever its address.

Each request gets an id, security headers, a deadline, one log line and one count. It is refused before its body is read
when its headers or its body are too large, when its API key does not do, or when there is too much work already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from handlers.errors import ExpiredError, HandlerError, InternalError, InvalidRequestError, TooLargeError
from service import metrics, tracing
from service.admission import Admission
from service.api_keys import ApiKeys, Scope
from service.problems import problem_response
from service.request_context import HEADER, current_request_id, enter_request, leave_request, set_deadline

logger = logging.getLogger(__name__)

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
# Nobody receives it; logs and counts tell a caller who hung up from a failure of ours (nginx's number).
_CLIENT_CLOSED_REQUEST = 499
# Digits of a Content-Length that are read as a number.
_LONGEST_LENGTH = 18

ASGIScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[ASGIScope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Policy:
    """What requests may cost and who may send them, by address.

    timeout_s: of every request. open_paths: need no key. scopes: by address, whatever lies below it included, `infer`
    elsewhere. work_paths: addresses whose POST is work for the models, with the most bytes of a body. max_body_bytes:
    anywhere else. is_download: addresses whose answer may last; once it has begun, `timeout_s` is for each piece.
    """

    timeout_s: float
    max_header_bytes: int
    open_paths: frozenset[str] = frozenset()
    scopes: dict[str, Scope] = field(default_factory=dict)
    work_paths: dict[str, int] = field(default_factory=dict)
    max_body_bytes: int = 64 * 1024
    is_download: Callable[[str], bool] = lambda path: False

    def scope_of(self, path: str) -> Scope:
        """The scope that an address needs."""
        while path:
            if path in self.scopes:
                return self.scopes[path]
            path = path.rpartition("/")[0]
        return "infer"


class RequestMiddleware:
    """The outermost layer of ours: answers also what nobody caught.

    Starlette's own handler of unexpected exceptions runs outside all middleware, where the id is gone already.
    """

    def __init__(self, app: App, policy: Policy, keys: ApiKeys, admission: Admission) -> None:
        self._app, self._policy, self._keys, self._admission = app, policy, keys, admission

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        token = enter_request(headers.get(HEADER))
        exchange = _Exchange(receive, send)
        started = time.monotonic()
        try:
            with tracing.span_from(headers, "request", method=scope["method"]) as span:
                await self._answer(scope, headers, exchange)
                span.set_attribute("status", exchange.status)
        finally:
            exchange.end()
            self._record(scope, exchange.status, time.monotonic() - started)
            leave_request(token)

    async def _answer(self, scope: ASGIScope, headers: Headers, exchange: _Exchange) -> None:
        try:
            try:
                self._check_headers(scope)
                scope["mien.caller"] = self._check_key(scope["path"], headers)
                timeout_s = self._timeout_s(headers)
                max_bytes = self._body_limit(scope, headers, exchange)
                set_deadline(time.monotonic() + timeout_s)
                work = scope["method"] == "POST" and scope["path"] in self._policy.work_paths
                with self._admission.request(max_bytes) if work else nullcontext():
                    async with asyncio.timeout(timeout_s) as limit:
                        if self._policy.is_download(scope["path"]):
                            exchange.keep_alive(limit, self._policy.timeout_s)
                        await self._app(scope, exchange.receive, exchange.send)
            except TimeoutError:
                raise ExpiredError("the request's time is over") from None
        except ClientDisconnect:
            await exchange.hang_up()
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            await exchange.hang_up()
        except HandlerError as error:
            await exchange.refuse(scope, problem_response(error))
        except Exception:
            logger.exception("unexpected failure")
            await exchange.refuse(scope, problem_response(InternalError("unexpected failure")))

    def _check_headers(self, scope: ASGIScope) -> None:
        n_bytes = len(scope["path"]) + len(scope.get("query_string", b""))
        n_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
        if n_bytes > self._policy.max_header_bytes:
            raise TooLargeError(f"headers and address are over {self._policy.max_header_bytes} bytes")

    def _check_key(self, path: str, headers: Headers) -> str | None:
        if path in self._policy.open_paths:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else None
        return self._keys.check(headers.get("x-api-key", bearer), self._policy.scope_of(path))

    def _timeout_s(self, headers: Headers) -> float:
        wanted = headers.get(TIMEOUT_HEADER)
        if wanted is None:
            return self._policy.timeout_s
        if not (wanted.isascii() and wanted.isdigit() and 0 < len(wanted) < 10 and int(wanted)):
            raise InvalidRequestError(f"{TIMEOUT_HEADER}: must be a whole number of milliseconds, at least 1")
        return min(int(wanted) / 1000, self._policy.timeout_s)

    def _body_limit(self, scope: ASGIScope, headers: Headers, exchange: _Exchange) -> int:
        """Set the limit of the body, and return how many bytes it will have at most."""
        limit = self._policy.work_paths.get(scope["path"], self._policy.max_body_bytes)
        exchange.max_body_bytes = limit
        declared = headers.get("content-length", "")
        # Servers refuse a wrong length themselves; what has no meaning here is bounded as the body comes in.
        if not declared.isdecimal() or len(declared) > _LONGEST_LENGTH:
            return limit
        if int(declared) > limit:
            raise exchange.too_large()
        return int(declared)

    def _record(self, scope: ASGIScope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", None) or (
            scope["path"] if scope["path"] in self._policy.work_paths else "unmatched"
        )
        metrics.REQUESTS.labels(route, str(status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(duration_s)
        logger.info(
            "request",
            extra={
                "method": scope["method"],
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
                **({"caller": scope["mien.caller"]} if scope.get("mien.caller") else {}),
            },
        )


class _Exchange:
    """One request's messages: counts the body, adds headers to the answer, cancels the work of a caller who hung up."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._n_body_bytes = 0
        self._answered = False
        self._renew: Callable[[], None] = lambda: None
        self.max_body_bytes = 0
        self.status = 500

    @property
    def client_gone(self) -> bool:
        """True when the caller hung up before the answer."""
        return self._gone.is_set()

    def keep_alive(self, limit: asyncio.Timeout, piece_s: float) -> None:
        """Give each message of the answer `piece_s` of its own, once the first one is taken."""

        def renew() -> None:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + piece_s)

        self._renew = renew

    async def receive(self) -> Message:
        """The next message. Raises TooLargeError once more than the limit has come in (a chunked body, say)."""
        if self._watch is not None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._n_body_bytes += len(message.get("body", b""))
            if self._n_body_bytes > self.max_body_bytes:
                raise self.too_large()
            if not message.get("more_body", False):
                self._watch = asyncio.create_task(self._watch_for_hang_up())
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status, self._answered = message["status"], True
            headers = MutableHeaders(scope=message)
            headers[HEADER] = current_request_id()
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        elif not message.get("more_body", False):
            self.end()
        await self._send(message)
        self._renew()

    async def refuse(self, scope: ASGIScope, response: Response) -> None:
        """Send an error unless an answer has begun; then the connection must break, so the error goes on."""
        if self._answered:
            raise RuntimeError("failed after the answer had begun")
        self.end()  # nothing is left to cancel, and the refusal must not be
        self._renew = lambda: None
        await response(scope, self._receive, self.send)

    async def hang_up(self) -> None:
        """Answer a caller who is gone: BentoML's timer holds on to the request until an answer has begun."""
        if not self._answered:
            self.status = _CLIENT_CLOSED_REQUEST
            self._answered = True
            await self._send({"type": "http.response.start", "status": _CLIENT_CLOSED_REQUEST, "headers": []})
            await self._send({"type": "http.response.body", "body": b""})

    def end(self) -> None:
        """Stop watching the caller."""
        if self._watch is not None:
            self._watch.cancel()

    def too_large(self) -> TooLargeError:
        """The error for a body over the limit."""
        return TooLargeError(f"the request body is over {self.max_body_bytes} bytes")

    async def _watch_for_hang_up(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._task is not None:
            self._gone.set()
            self._task.cancel()
