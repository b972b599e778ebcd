"""The REST doors: translate HTTP to `Analyzer` and back, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from handlers.detection.settings import SMALLEST_MIN_FACE_SIZE_PX
from handlers.errors import HandlerError, InvalidRequestError
from handlers.results import Analysis, DetectedPicture, Emotion
from service import openapi
from service.analyzer import Analyzer, Options
from service.middleware import ASGIScope, Receive, Send
from service.problems import MethodNotAllowedError, NotFoundError, problem_of, problem_response
from service.schemas import (
    AnalysisBody,
    BatchBody,
    ClassificationBody,
    CropResult,
    DetectionBody,
    EmotionBody,
    LegacyBoxesBody,
    LegacyProbabilitiesBody,
    PictureBody,
    PictureResult,
)
from service.settings import Settings
from service.uploads import Upload, read_upload

ONE_PICTURE_PATHS = ("/v1/analyze", "/v1/detect", "/infer")
SEVERAL_PICTURES_PATHS = ("/v1/analyze/batch", "/v1/classify")

MinFaceSize = Annotated[
    int | None, Field(ge=SMALLEST_MIN_FACE_SIZE_PX, le=10_000, description="smallest face looked for, in pixels")
]
Model = Annotated[str | None, Field(max_length=200, description="a served model; the first one if left out")]
TopK = Annotated[int | None, Field(ge=1, le=100, description="keep the likeliest labels only")]
Landmarks = Annotated[bool, Field(description="include the five landmarks")]


class AnalyzeQuery(BaseModel):
    """Options of `/v1/analyze` and `/v1/analyze/batch`."""

    model: Model = None
    top_k: TopK = None
    min_face_size: MinFaceSize = None
    landmarks: Landmarks = False


class DetectQuery(BaseModel):
    """Options of `/v1/detect`."""

    min_face_size: MinFaceSize = None
    landmarks: Landmarks = False


class ClassifyQuery(BaseModel):
    """Options of `/v1/classify`."""

    model: Model = None
    top_k: TopK = None


class LegacyQuery(BaseModel):
    """Options of `/infer`."""

    model_type: Literal["face", "emotion"] = "emotion"


AnyQuery = TypeVar("AnyQuery", bound=BaseModel)


def add_rest_doors(app: FastAPI) -> None:
    """Add the doors that work on pictures. `app.state` must have `settings`, and `analyzer` before they answer."""
    for path, door, summary, files in (
        ("/v1/analyze", analyze, "Faces and expressions of one picture", openapi.one_file("image", AnalyzeQuery)),
        (
            "/v1/analyze/batch",
            analyze_batch,
            "Faces and expressions of several pictures",
            openapi.files("images", AnalyzeQuery),
        ),
        ("/v1/detect", detect, "Faces of one picture", openapi.one_file("image", DetectQuery)),
        ("/v1/classify", classify, "Expressions of face crops", openapi.crops("images", ClassifyQuery)),
        ("/infer", infer, "The contract of an older server", openapi.form_file("file", LegacyQuery)),
    ):
        app.add_api_route(
            path,
            door,
            methods=["POST"],
            response_model_exclude_none=True,
            responses=openapi.problems(400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504),
            openapi_extra=files,
            summary=summary,
            tags=["pictures"],
        )


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors and unknown addresses as problems. Call it last: the route for unknown addresses takes them all."""
    app.add_exception_handler(HandlerError, _handler_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.router.routes.append(Route("/{path:path}", UnknownAddress(), include_in_schema=False))


async def analyze(request: Request, query: Annotated[AnalyzeQuery, Query()]) -> AnalysisBody:
    """Analyse one picture, sent as the body itself or as the field `image` of a multipart form.

    In a form the options may be fields, too.
    """
    analyzer = _analyzer(request)
    analyzer.spec(query.model)
    upload = await read_upload(request, "image", 1)
    options = _with_fields(query, upload)
    (result,) = await analyzer.analyze(upload.images, Options(options.model, options.min_face_size))
    if not isinstance(result, Analysis):
        raise result
    return AnalysisBody.of(result, analyzer.spec(options.model).tag, options.top_k, options.landmarks)


async def analyze_batch(request: Request, query: Annotated[AnalyzeQuery, Query()]) -> BatchBody:
    """Analyse the pictures in the fields `images` of a multipart form; a picture's error is its result."""
    analyzer = _analyzer(request)
    analyzer.spec(query.model)
    upload = await read_upload(request, "images", _settings(request).max_files)
    if not upload.form:
        raise InvalidRequestError("send a multipart form with the file field `images` once or more")
    options = _with_fields(query, upload)
    results = await analyzer.analyze(upload.images, Options(options.model, options.min_face_size))
    return BatchBody(
        model=analyzer.spec(options.model).tag,
        results=[
            PictureResult(index=index, problem=problem_of(result))
            if isinstance(result, HandlerError)
            else PictureResult(
                index=index,
                analysis=PictureBody(**PictureBody.fields_of(result, options.top_k, options.landmarks)),
            )
            for index, result in enumerate(results)
        ],
    )


async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> DetectionBody:
    """Find the faces of one picture, sent as the body itself or as the field `image` of a multipart form."""
    upload = await read_upload(request, "image", 1)
    options = _with_fields(query, upload)
    (result,) = await _analyzer(request).detect(upload.images, Options(None, options.min_face_size))
    if not isinstance(result, DetectedPicture):
        raise result
    return DetectionBody.of(result, options.landmarks)


async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> ClassificationBody:
    """Judge pictures that are nothing but a face, without looking for one.

    Send one as the body itself, or several as the fields `images` of a multipart form; in a form a crop's error is its
    result.
    """
    analyzer = _analyzer(request)
    analyzer.spec(query.model)
    upload = await read_upload(request, "images", _settings(request).max_files)
    options = _with_fields(query, upload)
    results = await analyzer.classify(upload.images, options.model)
    if not upload.form and isinstance(results[0], HandlerError):
        raise results[0]
    return ClassificationBody(
        model=analyzer.spec(options.model).tag,
        results=[
            CropResult(index=index, problem=problem_of(result))
            if isinstance(result, HandlerError)
            else CropResult(index=index, emotion=EmotionBody.of(result, options.top_k))
            for index, result in enumerate(results)
        ],
    )


async def infer(request: Request, query: Annotated[LegacyQuery, Query()]) -> LegacyBoxesBody | LegacyProbabilitiesBody:
    """For clients of an older server: the boxes of a picture, or the probabilities of a picture of a face."""
    upload = await read_upload(request, "file", 1)
    if not upload.form:
        raise InvalidRequestError("send a multipart form with the file field `file`")
    if _with_fields(query, upload).model_type == "face":
        (picture,) = await _analyzer(request).detect(upload.images, Options())
        if not isinstance(picture, DetectedPicture):
            raise picture
        return LegacyBoxesBody(boxes=[list(face.box_px) for face in picture.detections])
    (emotion,) = await _analyzer(request).classify(upload.images, None)
    if not isinstance(emotion, Emotion):
        raise emotion
    return LegacyProbabilitiesBody(probabilities=dict(sorted(emotion.probabilities.items())))


class UnknownAddress:
    """Every address and method that no other route has, methods that nobody knows among them."""

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """ASGI entry point. Raises MethodNotAllowedError or NotFoundError."""
        methods: set[str] = set()
        for route in scope["app"].router.routes:
            if isinstance(route, Route) and route.methods and route.matches(scope)[0] is Match.PARTIAL:
                methods |= route.methods
        if methods:
            allow = ", ".join(sorted(methods))
            raise MethodNotAllowedError(f"this address takes {allow}", allow)
        raise NotFoundError("no such address")


def _analyzer(request: Request) -> Analyzer:
    analyzer: Analyzer = request.app.state.analyzer
    return analyzer


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _with_fields(query: AnyQuery, upload: Upload) -> AnyQuery:
    """The options of the address, and over them those of the form."""
    if not upload.fields:
        return query
    try:
        return type(query).model_validate({**query.model_dump(exclude_unset=True), **upload.fields})
    except ValidationError as error:
        raise InvalidRequestError(_explain(error.errors())) from None


def _explain(errors: Any) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors)


async def _handler_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HandlerError)
    return problem_response(error)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(InvalidRequestError(_explain(error.errors())))


async def _http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NotFoundError if error.status_code == 404 else InvalidRequestError
    return problem_response(kind(str(error.detail)))
