"""The JSON of the REST door. Boxes and points are pixels of the upright picture (after EXIF rotation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field

from handlers.results import (
    LANDMARK_NAMES,
    Analysis,
    Box,
    DetectedPicture,
    Detection,
    Emotion,
    Face,
    Point,
)


class Problem(BaseModel):
    """The body of every error (RFC 9457); `code` is stable."""

    type: str = Field(examples=["urn:mien:problem:corrupt_image"])
    title: str = Field(examples=["The image cannot be decoded"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the image cannot be decoded (OSError)"])
    code: str = Field(examples=["corrupt_image"])
    request_id: str = Field(examples=["2f1c8e5c6f0b4f0e9a57d8f2f3c2a1b0"])


class BoxBody(BaseModel):
    """Edges of the face in pixels; they may lie outside the picture."""

    left: float = Field(examples=[177.3])
    top: float = Field(examples=[65.8])
    right: float = Field(examples=[274.1])
    bottom: float = Field(examples=[189.6])


class PointBody(BaseModel):
    """A point in pixels."""

    x: float
    y: float


class DetectedFaceBody(BaseModel):
    """One face as the detector found it."""

    box: BoxBody
    detection_confidence: float = Field(ge=0, le=1, examples=[0.9998])
    landmarks: dict[str, PointBody] | None = Field(None, description="only with `landmarks=true`")

    @classmethod
    def of(cls, detection: Detection, landmarks: bool) -> Self:
        """Translate a result."""
        return cls(
            box=_box(detection.box_px),
            detection_confidence=detection.confidence,
            landmarks=_points(detection.landmarks_px) if landmarks else None,
        )


class DetectionBody(BaseModel):
    """A picture's faces, the largest first; no face is an empty list."""

    width: int = Field(description="of the upright picture, in pixels", examples=[512])
    height: int = Field(description="of the upright picture, in pixels", examples=[512])
    faces: list[DetectedFaceBody]

    @classmethod
    def of(cls, picture: DetectedPicture, landmarks: bool) -> Self:
        """Translate a result."""
        faces = [DetectedFaceBody.of(detection, landmarks) for detection in picture.detections]
        return cls(width=picture.width, height=picture.height, faces=faces)


class EmotionBody(BaseModel):
    """What a face shows. `probabilities` are calibrated, sum to 1 over all labels, and come likeliest first."""

    emotion: str = Field(examples=["happy"])
    confidence: float = Field(ge=0, le=1, examples=[0.93])
    probabilities: dict[str, float] = Field(examples=[{"happy": 0.93, "surprise": 0.05, "neutral": 0.02}])

    @classmethod
    def of(cls, emotion: Emotion, top_k: int | None) -> Self:
        """Translate a result. top_k: how many of the likeliest labels to keep, None for all."""
        probabilities = _likeliest(emotion.probabilities, top_k)
        return cls(emotion=emotion.label, confidence=emotion.confidence, probabilities=probabilities)


class FaceBody(BaseModel):
    """One face. `probabilities` are calibrated, sum to 1 over all labels, and come likeliest first."""

    box: BoxBody
    detection_confidence: float = Field(ge=0, le=1, examples=[0.9998])
    emotion: str = Field(examples=["happy"])
    confidence: float = Field(ge=0, le=1, examples=[0.93])
    probabilities: dict[str, float] = Field(examples=[{"happy": 0.93, "surprise": 0.05, "neutral": 0.02}])
    landmarks: dict[str, PointBody] | None = Field(None, description="only with `landmarks=true`")

    @classmethod
    def of(cls, face: Face, top_k: int | None, landmarks: bool) -> Self:
        """Translate a result; the arguments are those of `AnalysisBody.of`."""
        return cls(
            box=_box(face.box_px),
            detection_confidence=face.detection_confidence,
            emotion=face.emotion,
            confidence=face.confidence,
            probabilities=_likeliest(face.probabilities, top_k),
            landmarks=_points(face.landmarks_px) if landmarks else None,
        )


class PictureBody(BaseModel):
    """A picture's faces, the largest first; no face is an empty list."""

    width: int = Field(description="of the upright picture, in pixels", examples=[512])
    height: int = Field(description="of the upright picture, in pixels", examples=[512])
    faces: list[FaceBody]

    @classmethod
    def fields_of(cls, analysis: Analysis, top_k: int | None, landmarks: bool) -> dict[str, Any]:
        """The fields for a result."""
        faces = [FaceBody.of(face, top_k, landmarks) for face in analysis.faces]
        return {"width": analysis.width, "height": analysis.height, "faces": faces}


class AnalysisBody(PictureBody):
    """A picture's faces, the largest first, and the model that judged them."""

    model: str = Field(examples=["fer2013-resnet:1.2.0"])

    @classmethod
    def of(cls, analysis: Analysis, model: str, top_k: int | None, landmarks: bool) -> Self:
        """Translate a result. top_k: how many of the likeliest labels to keep, None for all."""
        return cls(model=model, **cls.fields_of(analysis, top_k, landmarks))


class PictureResult(BaseModel):
    """What became of one picture of a batch: `analysis` or `problem`. index: its place in the request."""

    index: int = Field(ge=0)
    analysis: PictureBody | None = None
    problem: Problem | None = None


class BatchBody(BaseModel):
    """One result a picture, in the order of the request."""

    model: str = Field(examples=["fer2013-resnet:1.2.0"])
    results: list[PictureResult]


class CropResult(BaseModel):
    """What became of one face crop: `emotion` or `problem`. index: its place in the request."""

    index: int = Field(ge=0)
    emotion: EmotionBody | None = None
    problem: Problem | None = None


class ClassificationBody(BaseModel):
    """One result a face crop, in the order of the request."""

    model: str = Field(examples=["fer2013-resnet:1.2.0"])
    results: list[CropResult]


class ModelSummary(BaseModel):
    """A served emotion model."""

    name: str = Field(examples=["fer2013-resnet"])
    version: str = Field(examples=["1.2.0"])
    default: bool = Field(description="answers requests that name no model")
    labels: list[str] = Field(examples=[["angry", "happy", "neutral"]])
    evaluations: list[dict[str, Any]] = Field(
        description="split, n, accuracy, macro F1, ECE, by test-time augmentation"
    )


class ModelsBody(BaseModel):
    """What is served."""

    models: list[ModelSummary]


class ModelBody(ModelSummary):
    """A served emotion model with its manifest and its card. The built-in fake has neither."""

    manifest: dict[str, Any] | None
    card: str | None = Field(description="Markdown")


class LegacyBoxesBody(BaseModel):
    """Answer of the older server to `model_type=face`: left, top, right, bottom of each face in pixels."""

    boxes: list[list[float]] = Field(examples=[[[177.3, 65.8, 274.1, 189.6]]])


class LegacyProbabilitiesBody(BaseModel):
    """Answer of the older server to `model_type=emotion`."""

    probabilities: dict[str, float] = Field(examples=[{"angry": 0.01, "happy": 0.97, "sad": 0.02}])


def _box(box_px: Box) -> BoxBody:
    left, top, right, bottom = box_px
    return BoxBody(left=left, top=top, right=right, bottom=bottom)


def _points(points_px: Sequence[Point]) -> dict[str, PointBody]:
    return {name: PointBody(x=x, y=y) for name, (x, y) in zip(LANDMARK_NAMES, points_px, strict=True)}


def _likeliest(probabilities: dict[str, float], top_k: int | None) -> dict[str, float]:
    return dict(sorted(probabilities.items(), key=lambda item: -item[1])[:top_k])
