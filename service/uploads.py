"""Request body → image files and form fields. All in memory: no part of a picture is ever on disk."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from handlers.errors import InvalidRequestError, TooLargeError

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096


@dataclass(frozen=True)
class Upload:
    """What a request brought. form: True when it was a multipart form; fields: its fields that are not files."""

    images: tuple[bytes, ...]
    form: bool
    fields: dict[str, str]


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**62


async def read_upload(request: Request, field: str, max_files: int) -> Upload:
    """The body as one picture, or the file fields `field` of a multipart form, one to `max_files` of them.

    Raises InvalidRequestError for a form that cannot be read or lacks the field, TooLargeError for too many files.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return Upload((await request.body(),), False, {})
    # One file more than allowed is read, so that too many of them are an error of their own.
    parser = _InMemoryParser(
        request.headers,
        request.stream(),
        max_files=max_files + 1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooLargeError(f"the form has more files than {max_files}") from None
        raise InvalidRequestError(f"the multipart form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError, LookupError):
        raise InvalidRequestError("the multipart form cannot be read") from None
    try:
        uploads = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
        others = [name for name, value in form.multi_items() if isinstance(value, UploadFile) and name != field]
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        if len(uploads) > max_files:
            raise TooLargeError(f"the form has more files than {max_files}")
        if not uploads or others or field in texts:
            raise InvalidRequestError(f"the form must have its files, one at least, and no text in the field `{field}`")
        return Upload(tuple([await upload.read() for upload in uploads]), True, _unquoted(texts))
    finally:
        await form.close()


def _unquoted(texts: dict[str, str]) -> dict[str, str]:
    """BentoML's client sends every field as JSON: text in quotes, and `null` for what was left out."""
    return {
        name: text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
        for name, text in texts.items()
        if text != "null"
    }
