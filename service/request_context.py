"""The id of the request that the current task works for."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar, Token

HEADER = "X-Request-ID"
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_request_id: ContextVar[str] = ContextVar("mien_request_id", default="")


def current_request_id() -> str:
    """The id, or an empty string outside a request."""
    return _request_id.get()


def enter_request(wanted: str | None) -> Token[str]:
    """Take the caller's id when it is short and plain (it goes into logs and headers), else make a new one."""
    acceptable = wanted is not None and _ACCEPTABLE.fullmatch(wanted)
    return _request_id.set(wanted if wanted and acceptable else uuid.uuid4().hex)


def leave_request(token: Token[str]) -> None:
    """Undo `enter_request`."""
    _request_id.reset(token)
