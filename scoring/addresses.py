"""What an address says before anything is asked: its kind, and whether it is fit to be used and shown."""

from __future__ import annotations

import re
from urllib.parse import unquote

from scoring.errors import InputError, OptionsError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_LOCAL_PROTOCOLS = ("file", "local")
_CONFINABLE_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Those where a path is one key and nothing on the other side, a link say, can lead out of a prefix."""


_SECRET_NAMES = re.compile(
    r"[?&;](x-amz-(signature|security-token|credential)|x-goog-(signature|credential)|signature|sig|token|access_token"
    r"|api_?key|password|secret)=",
    re.IGNORECASE,
)


def is_url(address: str) -> bool:
    """Whether it has a protocol, a local one included."""
    return _URL.match(address) is not None


def protocol_of(url: str) -> str:
    """In small letters."""
    return url.partition("://")[0].lower()


def local_path_of(url: str) -> str | None:
    """The path of a `file://` URL, None for one of another protocol. Raises InputError when it is not absolute."""
    protocol, _, rest = url.partition("://")
    if protocol.lower() not in _LOCAL_PROTOCOLS:
        return None
    if not rest.startswith("/"):
        raise InputError("a file:// URL needs an absolute path: file:///folder/picture.jpg")
    return rest


def s3_parts(url: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def shown_url(url: str) -> str:
    """A URL without what may be a signature: the query of a web address."""
    return url.partition("?")[0] if protocol_of(url) in ("http", "https") else url


def refuse_unsafe(url: str) -> None:
    """Raises OptionsError for URLs that hold credentials or are signed, InputError for those that chain protocols.

    No message repeats the URL.
    """
    if "::" in url:
        raise InputError("chained URLs (such as simplecache::s3://…) are not read")
    server = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    user, at, _ = server.rpartition("@")
    if at and (":" in user or protocol_of(url) in ("s3", "s3a", "gs", "gcs", "http", "https")):
        raise OptionsError("credentials do not belong in a URL: give them by the environment")
    if _SECRET_NAMES.search(unquote(url)):
        raise OptionsError("a URL with a signature, token or key in its query is not read: the results would show it")


def refuse_unconfined(url: str) -> None:
    """Raises InputError for URLs that may mean something else than what lies below them as written."""
    protocol, _, rest = url.partition("://")
    if protocol.lower() not in _CONFINABLE_PROTOCOLS:
        raise InputError(f"{protocol.lower()}:// is not allowed here")
    if not rest.strip("/"):
        raise InputError("the URL names no bucket")
    steps = unquote(rest).replace("\\", "/").removesuffix("/").split("/")
    if any(step in (".", "..") for step in steps) or (protocol.lower() != "memory" and "" in steps):
        raise InputError("a URL with '.', '..' or empty parts is not allowed here")
    if any(ord(character) < 32 for character in unquote(rest)):
        raise InputError("a URL with control characters is not allowed here")
