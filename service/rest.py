"""The REST door: translates HTTP to `Analyzer.analyze` and back, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.routing import Match

from handlers.detection.settings import SMALLEST_MIN_FACE_SIZE_PX
from handlers.errors import HandlerError, InvalidRequestError
from handlers.results import Analysis
from service.analyzer import Analyzer, Options
from service.middleware import RequestMiddleware
from service.problems import MEDIA_TYPE, MethodNotAllowedError, NotFoundError, Problem, problem_response
from service.schemas import AnalysisBody
from service.settings import Settings

_IMAGE = {"type": "string", "format": "binary"}
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": _IMAGE}}
            },
            **{f"image/{kind}": {"schema": _IMAGE} for kind in ("jpeg", "png", "webp", "bmp", "gif", "tiff")},
            "application/octet-stream": {"schema": _IMAGE},
        },
    }
}
_PROBLEM: dict[str, Any] = {"model": Problem, "content": {MEDIA_TYPE: {}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {**_PROBLEM, "description": "`invalid_request`"},
    404: {**_PROBLEM, "description": "`model_not_found`"},
    413: {**_PROBLEM, "description": "`too_large`"},
    415: {**_PROBLEM, "description": "`unsupported_format`"},
    422: {**_PROBLEM, "description": "`corrupt_image`, `empty_image`"},
    503: {**_PROBLEM, "description": "`unavailable`"},
    504: {**_PROBLEM, "description": "`timeout`"},
}


def build_rest_app(settings: Settings) -> FastAPI:
    """The REST application. Its `state.analyzer` must be set before it answers."""
    app = FastAPI(
        title="Mien",
        description="Reads facial expressions in photographs. Scores describe expressions, not feelings.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(RequestMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(HandlerError, _handler_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_api_route(
        "/v1/analyze",
        analyze,
        methods=["POST"],
        response_model_exclude_none=True,
        responses=_PROBLEMS,
        openapi_extra=_IMAGE_BODY,
        summary="Faces and expressions of one picture",
    )
    app.add_api_route(
        "/{path:path}",
        unknown_path,
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        include_in_schema=False,
    )
    return app


async def analyze(
    request: Request,
    model: Annotated[str | None, Query(description="a served model; the first one if left out")] = None,
    top_k: Annotated[int | None, Query(ge=1, le=100, description="keep the likeliest labels only")] = None,
    min_face_size: Annotated[
        int | None, Query(ge=SMALLEST_MIN_FACE_SIZE_PX, le=10_000, description="smallest face looked for, in pixels")
    ] = None,
    landmarks: Annotated[bool, Query(description="include the five landmarks")] = False,
) -> AnalysisBody:
    """Analyse one picture, sent as the body itself or as the field `image` of a multipart form."""
    analyzer: Analyzer = request.app.state.analyzer
    spec = analyzer.spec(model)
    image = await _read_image(request)
    (result,) = await analyzer.analyze([image], Options(model, min_face_size))
    if not isinstance(result, Analysis):
        raise result
    return AnalysisBody.of(result, spec.tag, top_k, landmarks)


async def _read_image(request: Request) -> bytes:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    try:
        async with request.form(max_files=1, max_fields=10) as form:
            upload = form.get("image")
            if not isinstance(upload, UploadFile):
                raise InvalidRequestError("the form has no file field `image`")
            return await upload.read()
    except (MultiPartException, HTTPException) as error:
        raise InvalidRequestError(f"the multipart form cannot be read: {getattr(error, 'detail', error)}") from None


async def unknown_path(request: Request, path: str) -> None:
    """Every address that no other route has."""
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is Match.PARTIAL:
            allow = ", ".join(sorted(route.methods))
            raise MethodNotAllowedError(f"{request.method} is not a method of this address", allow)
    raise NotFoundError("no such address")


async def _handler_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HandlerError)
    return problem_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return problem_response(InvalidRequestError(detail))


async def _http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return problem_response(MethodNotAllowedError(str(error.detail), allow))
    kind = NotFoundError if error.status_code == 404 else InvalidRequestError
    return problem_response(kind(str(error.detail)))
