"""Pure-ASGI middleware around the REST door: request id, body limit, one log line and one count a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from handlers.errors import InternalError, TooLargeError
from service import metrics
from service.problems import problem_response
from service.request_context import HEADER, current_request_id, enter_request, leave_request

logger = logging.getLogger(__name__)

# Nobody receives it; logs and counts tell a caller who hung up from a failure of ours (nginx's number).
_CLIENT_CLOSED_REQUEST = 499

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RequestMiddleware:
    """Gives each request its id, refuses bodies over the limit, answers what nobody caught, logs and counts the end.

    Starlette's own handler of unexpected exceptions runs outside all middleware, where the id is gone already.
    """

    def __init__(self, app: App, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        token = enter_request(headers.get(HEADER))
        started = time.monotonic()
        status, answered = 500, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                MutableHeaders(scope=message)[HEADER] = current_request_id()
            await send(message)

        try:
            declared = headers.get("content-length", "")
            if declared.isdigit() and int(declared) > self._max_body_bytes:
                response = problem_response(self._too_large())
                await response(scope, receive, send_with_id)
            else:
                await self._app(scope, self._counted(receive), send_with_id)
        except ClientDisconnect:
            status = _CLIENT_CLOSED_REQUEST
        except Exception:
            logger.exception("unexpected failure")
            if answered:
                raise
            await problem_response(InternalError("unexpected failure"))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", None) or "unmatched"
            metrics.REQUESTS.labels(route, str(status)).inc()
            logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "duration_ms": round((time.monotonic() - started) * 1000, 1),
                },
            )
            leave_request(token)

    def _counted(self, receive: Receive) -> Receive:
        """A receive that raises TooLargeError once more than the limit has come in (a chunked body, say)."""
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            if message["type"] == "http.request":
                n_bytes += len(message.get("body", b""))
                if n_bytes > self._max_body_bytes:
                    raise self._too_large()
            return message

        return counted

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the request body is over {self._max_body_bytes} bytes")
