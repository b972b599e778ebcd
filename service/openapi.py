"""The OpenAPI schema: request bodies and errors, which FastAPI cannot tell from the doors' signatures.

`python -m service.openapi` prints it; docs/openapi.json is its committed copy, and a test compares them.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.middleware import TIMEOUT_HEADER
from service.problems import MEDIA_TYPE, PROBLEMS
from service.request_context import HEADER
from service.schemas import Problem

_BINARY = {"type": "string", "format": "binary"}
_BINARIES = {"type": "array", "items": _BINARY, "minItems": 1}
_IMAGE_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/tiff",
    "application/octet-stream",
)
_PROBLEM = {"$ref": "#/components/schemas/Problem"}

_HEADERS = {
    "RequestId": {
        "name": HEADER,
        "in": "header",
        "description": "comes back in the answer and in log lines; a new one if it is missing or not of this form",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
    },
    "Timeout": {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "milliseconds after which the caller no longer wants the answer; can only shorten the service's",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    },
}

Extra = dict[str, Any]


def one_file(field: str, options: type[BaseModel]) -> Extra:
    """A picture as the body, or in a multipart form with the options."""
    return _body({**_form(field, _BINARY, options), **_raw_content()})


def files(field: str, options: type[BaseModel]) -> Extra:
    """Several pictures in a multipart form, with the options."""
    return _body(_form(field, _BINARIES, options))


def crops(field: str, options: type[BaseModel]) -> Extra:
    """A picture as the body, or several in a multipart form with the options."""
    return _body({**_form(field, _BINARIES, options), **_raw_content()})


def form_file(field: str, options: type[BaseModel]) -> Extra:
    """A picture in a multipart form, with the options."""
    return _body(_form(field, _BINARY, options))


def _form(field: str, schema: Extra, options: type[BaseModel]) -> Extra:
    properties = {field: schema, **options.model_json_schema()["properties"]}
    return {"multipart/form-data": {"schema": {"type": "object", "required": [field], "properties": properties}}}


def _raw_content() -> Extra:
    return {media_type: {"schema": _BINARY} for media_type in _IMAGE_TYPES}


def _body(content: Extra) -> Extra:
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, Extra]:
    """The errors of a door, by status, each with the codes it may have and an example."""
    found: dict[int | str, Extra] = {}
    for status in statuses:
        codes = [code for code, row in PROBLEMS.items() if row.status == status]
        examples = {
            code: {
                "value": Problem(
                    type=f"urn:mien:problem:{code}",
                    title=PROBLEMS[code].title,
                    status=status,
                    detail="one sentence for a person",
                    code=code,
                    request_id="2f1c8e5c6f0b4f0e9a57d8f2f3c2a1b0",
                ).model_dump()
            }
            for code in codes
        }
        found[status] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": {MEDIA_TYPE: {"schema": _PROBLEM, "examples": examples}},
        }
        if any(PROBLEMS[code].retry for code in codes):
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "in seconds"}}
    return found


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """The schema of an application, with one kind of error and the two ways to send an API key."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path in schema["paths"].values():
        for operation in path.values():
            # FastAPI's own, for parameters that are not valid; here they are a 400.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    components["parameters"] = _HEADERS
    for path in schema["paths"].values():
        path["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS]
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["security"] = [{}, {"bearer": []}, {"header": []}]
    return schema


if __name__ == "__main__":
    from service.edge import build_rest_app
    from service.settings import Settings

    print(json.dumps(build_rest_app(Settings.model_construct()).openapi(), indent=1))
