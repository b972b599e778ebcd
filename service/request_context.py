"""The id and the deadline of the request that the current task works for."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar, Token

HEADER = "X-Request-ID"
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_request_id: ContextVar[str] = ContextVar("mien_request_id", default="")
_deadline_s: ContextVar[float] = ContextVar("mien_deadline_s", default=math.inf)


def current_request_id() -> str:
    """The id, or an empty string outside a request."""
    return _request_id.get()


def enter_request(wanted: str | None) -> Token[str]:
    """Take the caller's id when it is short and plain (it goes into logs and headers), else make a new one."""
    acceptable = wanted is not None and _ACCEPTABLE.fullmatch(wanted)
    return _request_id.set(wanted if wanted and acceptable else uuid.uuid4().hex)


def enter_batch(request_ids: Iterable[str]) -> Token[str]:
    """Take the ids of all requests that are worked for at once, each one once, with `+` between them."""
    return _request_id.set("+".join(dict.fromkeys(request_ids)))


def leave_request(token: Token[str]) -> None:
    """Undo `enter_request` or `enter_batch`."""
    _request_id.reset(token)


def current_deadline_s() -> float:
    """When the request's time is over, on the clock of `time.monotonic`; infinity outside a request."""
    return _deadline_s.get()


def set_deadline(deadline_s: float) -> None:
    """Set the deadline of the current task and of those that it starts."""
    _deadline_s.set(deadline_s)
