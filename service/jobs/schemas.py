"""The JSON of the job doors. Times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from handlers.detection.settings import SMALLEST_MIN_FACE_SIZE_PX
from service.jobs.records import Job, State

ResultFormat = Literal["parquet", "csv", "jsonl"]
MAX_JOBS_A_PAGE = 100

_ID = "20261121T161513042Z-5f1e0c7a9b3d2846"


class NewJobBody(BaseModel):
    """What to score. Fields that do not exist are refused: a slip would cost hours."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str = Field(
        description="a folder or prefix below a root of MIEN_SCORING_ROOTS, by the root's name: "
        "`photos/may`, `s3://bucket/prefix/may`",
        examples=["photos/may"],
    )
    model: str | None = Field(
        None, max_length=200, description="a served model; the first one if left out", examples=["fer2013-resnet"]
    )
    recursive: bool = Field(True, description="folders in the folder, too")
    include: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list,
        max_length=32,
        description="shell patterns of file names, any of which must match; every file if left out",
        examples=[["*.jpg", "*.png"]],
    )
    min_face_size: int | None = Field(
        None, ge=SMALLEST_MIN_FACE_SIZE_PX, le=10_000, description="smallest face looked for, in pixels", examples=[40]
    )


class JobProgressBody(BaseModel):
    """Counts of files, which grow while the job runs; `files_total` is final once `listed`.

    All start anew when a job is resumed: the input is listed again, and what was done before is counted again at once.
    """

    listed: bool = Field(description="the input has been listed to its end")
    files_total: int = Field(ge=0, description="found so far", examples=[1200])
    files_done: int = Field(ge=0, examples=[800])
    files_resumed: int = Field(ge=0, description="of them, done before an interruption", examples=[512])
    files_without_face: int = Field(ge=0, examples=[35])
    files_failed: int = Field(ge=0, examples=[2])
    faces: int = Field(ge=0, examples=[1103])
    files_per_second: float | None = Field(description="of the last stretch of work", examples=[24.5])


class JobErrorBody(BaseModel):
    """Why a job failed or was put off: a stable code and a sentence."""

    code: str = Field(examples=["input_error"])
    detail: str = Field(examples=["the input cannot be read, or has no file to score"])


class JobBody(BaseModel):
    """A job: what was asked for, how far it is, and what came out so far."""

    id: str = Field(examples=[_ID])
    state: State = Field(description="`queued` and `running` change yet, the others do not", examples=["running"])
    cancelling: bool = Field(description="somebody asked to end it, and it is not finished yet")
    input: str = Field(examples=["photos/may"])
    model: str = Field(examples=["fer2013-resnet:1.2.0"])
    recursive: bool
    include: list[str] = Field(examples=[["*.jpg"]])
    min_face_size: int | None = Field(examples=[40])
    created_at: datetime = Field(examples=["2026-11-21T16:15:13.042000Z"])
    started_at: datetime | None = Field(examples=["2026-11-21T16:15:14.100000Z"])
    finished_at: datetime | None = Field(examples=["2026-11-21T16:17:02.500000Z"])
    progress: JobProgressBody
    emotions: dict[str, int] = Field(description="faces by emotion", examples=[{"happy": 700, "neutral": 403}])
    errors: dict[str, int] = Field(description="files that failed, by code", examples=[{"corrupt_image": 2}])
    error: JobErrorBody | None = Field(description="of a job that `failed`, or is `queued` to be tried again soon")

    @classmethod
    def of(cls, job: Job) -> Self:
        """Translate a job."""
        request, state = job.request, job.state
        tally = state.tally
        return cls(
            id=request.id,
            state=state.state,
            cancelling=job.cancelling,
            input=request.input,
            model=request.model,
            recursive=request.recursive,
            include=list(request.include),
            min_face_size=request.min_face_size_px,
            created_at=_time(request.created_s),
            started_at=None if state.started_s is None else _time(state.started_s),
            finished_at=None if state.finished_s is None else _time(state.finished_s),
            progress=JobProgressBody(
                listed=state.listed,
                files_total=state.n_listed,
                files_done=tally.n_inputs,
                files_resumed=state.n_standing,
                files_without_face=tally.n_faceless,
                files_failed=tally.n_failed,
                faces=tally.n_faces,
                files_per_second=state.files_per_second,
            ),
            emotions=dict(sorted(tally.emotions.items())),
            errors=dict(sorted(tally.errors.items())),
            error=None
            if state.error_code is None
            else JobErrorBody(code=state.error_code, detail=state.error_detail or ""),
        )


class JobsBody(BaseModel):
    """Some jobs, the newest first."""

    jobs: list[JobBody]
    next_after: str | None = Field(description="`after` of the next page; null on the last one", examples=[_ID])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
