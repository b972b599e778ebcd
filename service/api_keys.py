"""API keys from a file that may change while the service runs.

A line is `NAME KEY SCOPES`; `#` starts a comment. NAME goes into logs and owns jobs. KEY is the key itself, or
`sha256:` and its digest in hexadecimal. SCOPES, with commas, are `infer` (pictures and models), `metrics` and `jobs`;
`infer` if left out.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from service.problems import ForbiddenError, UnauthenticatedError
from service.settings import SettingsError

logger = logging.getLogger(__name__)

Scope = Literal["infer", "metrics", "jobs"]
_SHORTEST_KEY = 16
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept: its name for logs, the SHA-256 of the key, and what it may do."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]


class ApiKeys:
    """The keys of a file, read again when the file changes. Without a file everybody may do everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen = None if path is None else _fingerprint(path)
        self._keys = () if path is None else read_api_keys(path)

    def check(self, key: str | None, scope: Scope) -> str | None:
        """The name of the caller, None when no keys are needed. Raises UnauthenticatedError or ForbiddenError."""
        if self._path is None:
            return None
        self._refresh(self._path)
        digest = hashlib.sha256((key or "").encode()).digest()
        # Every key is compared, so that the time says nothing about which one matched.
        matching = [known for known in self._keys if hmac.compare_digest(known.digest, digest)]
        if key is None or not matching:
            raise UnauthenticatedError("send an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if scope not in matching[0].scopes:
            raise ForbiddenError(f"this key does not have the scope `{scope}`")
        return matching[0].name

    def _refresh(self, path: Path) -> None:
        """Take over a changed file. One that cannot be read, or is wrong, leaves the keys as they are."""
        seen = _fingerprint(path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = read_api_keys(path)
            logger.info("read %d API keys again", len(self._keys))
        except SettingsError as error:
            logger.error("the API keys are left as they were: %s", error)


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of the file. Raises SettingsError with the line's number, and never with a key."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"MIEN_API_KEYS_FILE: {path} cannot be read ({type(error).__name__})") from None
    keys = [
        _parse(line, f"MIEN_API_KEYS_FILE: {path}, line {number}")
        for number, line in enumerate((line.partition("#")[0].split() for line in lines), 1)
        if line
    ]
    if not keys:
        raise SettingsError(f"MIEN_API_KEYS_FILE: {path} has no key")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise SettingsError(f"MIEN_API_KEYS_FILE: {path} has a name or a key twice")
    return tuple(keys)


def _parse(words: list[str], where: str) -> ApiKey:
    if not 2 <= len(words) <= 3:
        raise SettingsError(f"{where}: must be NAME KEY SCOPES")
    name, key = words[:2]
    scopes = words[2].split(",") if len(words) == 3 else ["infer"]
    if not set(scopes) <= set(get_args(Scope)):
        # Not named: in a line whose words are in the wrong order it is the key.
        raise SettingsError(f"{where}: the scopes are {', '.join(get_args(Scope))}, with commas")
    digest = _DIGEST.fullmatch(key)
    if digest is None and key.lower().startswith("sha256:"):
        raise SettingsError(f"{where}: `sha256:` goes before 64 hexadecimal digits in lower case")
    if digest is None and len(key) < _SHORTEST_KEY:
        raise SettingsError(f"{where}: a key has at least {_SHORTEST_KEY} characters")
    hashed = bytes.fromhex(digest[1]) if digest else hashlib.sha256(key.encode()).digest()
    return ApiKey(name, hashed, frozenset(scope for scope in get_args(Scope) if scope in scopes))


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
