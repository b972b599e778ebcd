"""The folders and buckets that jobs may read, as MIEN_SCORING_ROOTS names them.

A root is `/data/photos`, `photos=/data/2026/photos` or `s3://bucket/prefix`. Callers name inputs in it as `photos/may`
and `s3://bucket/prefix/may`: no address of this machine is ever theirs to give or to learn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SPECIAL = frozenset("*?[]\\")
"""Patterns, and what separates folders elsewhere: no input has them."""
SPECIAL_IN_URLS = SPECIAL | frozenset("#@")
"""And what begins a fragment or a host in an address."""

_URL = re.compile(r"([a-z][a-z0-9]{0,15})://([^/]+)(?:/(.*))?", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,254}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})


@dataclass(frozen=True)
class Root:
    """A place that jobs may read. name: how callers begin an input. location: absolute folder, or a URL."""

    name: str
    location: str

    @property
    def is_local(self) -> bool:
        """A folder of this machine rather than a bucket."""
        return "://" not in self.location


def parse_roots(texts: Sequence[str]) -> tuple[Root, ...]:
    """The roots of a setting's parts. Raises ValueError for one that is wrong, or two with one name."""
    roots = tuple(_parse_root(text) for text in texts)
    names = [root.name for root in roots]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two roots have the name {name}; give one another as in other=/the/folder")
    return roots


def _parse_root(text: str) -> Root:
    if "://" in text:
        matched = _URL.fullmatch(text.rstrip("/"))
        if not matched or matched[1] not in _PROTOCOLS or not _BUCKET.fullmatch(matched[2]):
            raise ValueError(f"{text}: a bucket is one of {', '.join(sorted(_PROTOCOLS))}, then ://BUCKET/PREFIX")
        if any(part in ("", ".", "..") for part in (matched[3] or "x").split("/")) or SPECIAL_IN_URLS & set(text):
            raise ValueError(f"{text}: the prefix must be plain")
        return Root(matched[0], matched[0])
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        name, folder = "", text
    path = Path(folder)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text}: must be an absolute folder or a bucket's URL")
    name = name or path.name
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text}: needs a name of letters, digits, `.`, `_` and `-`, as in photos=/the/folder")
    return Root(name, str(path))
