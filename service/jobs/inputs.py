"""Whether an input that a caller names lies in one of the roots that jobs may read."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from handlers.errors import InvalidRequestError
from service.jobs.roots import SPECIAL, SPECIAL_IN_URLS, Root
from service.problems import ForbiddenError

MAX_INPUT_CHARACTERS = 1024

_MAX_COMPONENT_BYTES = 255
_ESCAPED_AT_MOST = 4


@dataclass(frozen=True)
class Place:
    """An input inside a root. components: below it, none for the root itself."""

    root: Root
    components: tuple[str, ...]

    @property
    def name(self) -> str:
        """As callers name it."""
        return "/".join((self.root.name, *self.components))

    @property
    def location(self) -> str:
        """Where it is: an absolute folder with the links of the root itself resolved, or a URL."""
        base = os.path.realpath(self.root.location) if self.root.is_local else self.root.location
        return "/".join((base.rstrip("/"), *self.components)) or "/"


def find_place(text: str, roots: Sequence[Root]) -> Place:
    """Where an input lies, by its text alone: nothing is looked up.

    Raises InvalidRequestError for a text that names nothing in any root, ForbiddenError for one outside all of them.
    """
    for form in _unescaped(text):
        _check_text(form)
    names = text.removesuffix("/").split("/")
    for root in roots:
        own = root.name.split("/")
        if names[: len(own)] == own:
            return Place(root, _checked_components(names[len(own) :]))
    raise ForbiddenError("the input is outside the roots that jobs may read")


def check_folder(place: Place) -> None:
    """Look whether a local input is a folder that is reached without any link below its root. Blocks.

    Raises InvalidRequestError, with one text whatever is wrong. Buckets are not looked at.
    """
    if not place.root.is_local:
        return
    try:
        os.close(_open_folder(place))
    except OSError:
        raise InvalidRequestError(f"there is no folder {place.name}") from None


def _open_folder(place: Place) -> int:
    descriptor = os.open(os.path.realpath(place.root.location), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in place.components:
        try:
            found = os.open(component, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = found
    return descriptor


def _unescaped(text: str) -> Iterator[str]:
    """The text, and what percent escapes would make of it, level by level. Raises InvalidRequestError."""
    for _ in range(_ESCAPED_AT_MOST):
        yield text
        inner = unquote(text, errors="replace")
        if inner == text:
            return
        text = inner
    raise InvalidRequestError("the input is escaped too often")


def _check_text(text: str) -> None:
    if not text or len(text) > MAX_INPUT_CHARACTERS:
        raise InvalidRequestError(f"the input must have 1 to {MAX_INPUT_CHARACTERS} characters")
    if text.startswith(("/", "~")) or re.match(r"[A-Za-z]:(?!//)", text):
        raise ForbiddenError("an input begins with the name of a root, never with a folder of the machine")
    scheme, separator, rest = text.partition("://")
    special = SPECIAL_IN_URLS if separator else SPECIAL
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text) or special & set(text):
        raise InvalidRequestError("the input must be plain text without control characters and patterns")
    # A host with a port or a password, a chain of file systems, a scheme without its slashes.
    host = (rest if separator else text).partition("/")[0]
    if ":" in host or "::" in text or (separator and not scheme.isalnum()):
        raise ForbiddenError("the input is outside the roots that jobs may read")
    _checked_components((rest if separator else text).removesuffix("/").split("/"))


def _checked_components(components: Sequence[str]) -> tuple[str, ...]:
    for component in components:
        if not component or component.startswith("."):
            raise InvalidRequestError("the input must not have empty, `..` or hidden parts")
        if len(component.encode("utf-8", "replace")) > _MAX_COMPONENT_BYTES:
            raise InvalidRequestError(f"a part of the input is over {_MAX_COMPONENT_BYTES} bytes")
    return tuple(components)
