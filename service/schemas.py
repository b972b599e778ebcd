"""The JSON of the REST door. Boxes and points are pixels of the upright picture (after EXIF rotation)."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from handlers.results import LANDMARK_NAMES, Analysis, Face


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


class FaceBody(BaseModel):
    """One face. `probabilities` are calibrated, sum to 1 over all labels, and come likeliest first."""

    box: BoxBody
    detection_confidence: float = Field(ge=0, le=1, examples=[0.9998])
    emotion: str = Field(examples=["happy"])
    confidence: float = Field(ge=0, le=1, examples=[0.93])
    probabilities: dict[str, float]
    landmarks: dict[str, PointBody] | None = Field(None, description="only with `landmarks=true`")


class AnalysisBody(BaseModel):
    """A picture's faces, the largest first; no face is an empty list."""

    model: str = Field(examples=["fer2013-resnet:1.1.0"])
    width: int = Field(description="of the upright picture, in pixels")
    height: int = Field(description="of the upright picture, in pixels")
    faces: list[FaceBody]

    @classmethod
    def of(cls, analysis: Analysis, model: str, top_k: int | None, landmarks: bool) -> Self:
        """Translate a result. top_k: how many of the likeliest labels to keep, None for all."""
        faces = [_face_body(face, top_k, landmarks) for face in analysis.faces]
        return cls(model=model, width=analysis.width, height=analysis.height, faces=faces)


def _face_body(face: Face, top_k: int | None, landmarks: bool) -> FaceBody:
    left, top, right, bottom = face.box_px
    ranked = sorted(face.probabilities.items(), key=lambda item: -item[1])[:top_k]
    points = {name: PointBody(x=x, y=y) for name, (x, y) in zip(LANDMARK_NAMES, face.landmarks_px, strict=True)}
    return FaceBody(
        box=BoxBody(left=left, top=top, right=right, bottom=bottom),
        detection_confidence=face.detection_confidence,
        emotion=face.emotion,
        confidence=face.confidence,
        probabilities=dict(ranked),
        landmarks=points if landmarks else None,
    )
