"""Addresses for operators and tools: probes, metrics, the API's description in two forms, and its page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from service import metrics
from service.problems import NotFoundError, UnavailableError
from service.readiness import Readiness

METRICS_PATH = "/metrics"

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-light-32x32.png": "image/png",
}
OPEN_PATHS = frozenset(
    {"/", "/livez", "/healthz", "/readyz", "/docs", "/openapi.json", "/schema.json"}
    | {f"/docs/{name}" for name in ("init.js", *_ASSETS)}
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mien: API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-light-32x32.png">
</head>
<body>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/init.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });\n"""
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


def add_operator_addresses(app: FastAPI) -> None:
    """Add all of them. `app.state.readiness` must be set before /readyz can say yes."""
    for path, answer in (
        ("/", to_docs),
        ("/livez", livez),
        ("/healthz", livez),
        ("/readyz", readyz),
        (METRICS_PATH, show_metrics),
        ("/openapi.json", show_openapi),
        ("/schema.json", show_bentoml_schema),
        ("/docs", show_docs),
        ("/docs/{name}", show_docs_asset),
    ):
        app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)


async def to_docs() -> Response:
    """The description of the API, for who opens the bare address."""
    return RedirectResponse("docs")


async def livez() -> Response:
    """The process answers."""
    return JSONResponse({"status": "alive"})


async def readyz(request: Request) -> Response:
    """Pictures get through both runners. Answers at once, from what is known."""
    readiness: Readiness | None = getattr(request.app.state, "readiness", None)
    if readiness is None or not readiness.ready:
        raise UnavailableError("no picture gets through the runners at the moment")
    return JSONResponse({"status": "ready"})


async def show_metrics() -> Response:
    """Prometheus metrics of all processes."""
    text, content_type = await anyio.to_thread.run_sync(metrics.render)
    return Response(text, headers={"Content-Type": content_type})


async def show_openapi(request: Request) -> Response:
    """The OpenAPI schema."""
    return JSONResponse(request.app.openapi())


async def show_docs() -> Response:
    """Swagger UI on our own copy of its files: no other host is asked."""
    return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": _PAGE_POLICY})


async def show_docs_asset(name: str) -> Response:
    """A file of the page."""
    if name == "init.js":
        return Response(_START, media_type="text/javascript")
    if name not in _ASSETS:
        raise NotFoundError("no such address")
    # BentoML brings Swagger UI 5 for its own page; a test says when its files move.
    file = files("bentoml._internal.server") / "static_content" / name
    return Response(
        await anyio.to_thread.run_sync(file.read_bytes),
        media_type=_ASSETS[name],
        headers={"Cache-Control": "public, max-age=86400"},
    )


async def show_bentoml_schema() -> Response:
    """What `bentoml.SyncHTTPClient` asks for: our doors as BentoML would describe them, with files only as uploads."""
    return JSONResponse({"name": "mien", "type": "service", "routes": _bentoml_routes()})


def _bentoml_routes() -> list[dict[str, Any]]:
    image = {"type": "file", "format": "image"}
    images = {"type": "array", "items": image}
    model, top_k = {"type": "string"}, {"type": "integer"}
    size, landmarks = {"type": "integer"}, {"type": "boolean"}
    analysis = {"model": model, "top_k": top_k, "min_face_size": size, "landmarks": landmarks}
    return [
        {
            "name": name,
            "route": route,
            "doc": doc,
            "batchable": False,
            "input": {"type": "object", "properties": {field: files, **options}, "required": [field]},
            "output": {"type": "object"},
        }
        for name, route, doc, field, files, options in (
            ("analyze", "/v1/analyze", "Faces and expressions of one picture", "image", image, analysis),
            ("analyze_batch", "/v1/analyze/batch", "The same of several pictures", "images", images, analysis),
            (
                "detect",
                "/v1/detect",
                "Faces of one picture",
                "image",
                image,
                {"min_face_size": size, "landmarks": landmarks},
            ),
            (
                "classify",
                "/v1/classify",
                "Expressions of face crops",
                "images",
                images,
                {"model": model, "top_k": top_k},
            ),
        )
    ]
