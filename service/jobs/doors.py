"""The job doors: take a job, tell how it goes on, end it, hand its results out. `service.jobs.worker` does the work.

A caller sees its own jobs only; without API keys there is one caller.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from handlers.errors import InternalError, InvalidRequestError
from scoring.errors import OutputError
from service import openapi
from service.analyzer import Analyzer
from service.jobs.ending import finish_job
from service.jobs.inputs import check_folder, find_place
from service.jobs.records import Job, JobRequest, JobState, new_job_id
from service.jobs.results import MEDIA_TYPES, open_results
from service.jobs.roots import Root
from service.jobs.schemas import MAX_JOBS_A_PAGE, JobBody, JobsBody, NewJobBody, ResultFormat
from service.jobs.slots import Download, Slots
from service.jobs.store import JobStore
from service.problems import ForbiddenError, JobNotFinishedError, JobNotFoundError, OverloadedError
from service.settings import Settings

logger = logging.getLogger(__name__)

JOBS_PATH = "/v1/jobs"
DOORS_AT_ONCE = 16
"""Requests about jobs, downloads aside, whose threads one API process has at once."""
DOWNLOADS_AT_ONCE = 8
"""Downloads that one API process has at once."""

_ID_PATH = f"{JOBS_PATH}/{{job_id}}"
_RESULTS_PATH = f"{_ID_PATH}/results"
_RETRY_AFTER_S = 60


def is_download(path: str) -> bool:
    """Whether the answer at this address may take as long as its reader wants."""
    return path.startswith(f"{JOBS_PATH}/") and path.endswith("/results")


@dataclass(frozen=True)
class JobDesk:
    """What the doors need of the settings. store: None where there is no folder for jobs."""

    store: JobStore | None
    roots: Sequence[Root]
    max_unfinished: int
    max_unfinished_of_caller: int
    max_finished_of_caller: int
    downloads: Slots


def add_job_doors(app: FastAPI, settings: Settings) -> None:
    """Add the doors. `app.state` must have `analyzer` before they answer."""
    store = None if settings.jobs_dir is None else JobStore(settings.jobs_dir)
    app.state.job_desk = JobDesk(
        store,
        settings.roots,
        settings.max_jobs,
        settings.max_jobs_per_caller,
        settings.max_finished_jobs,
        Slots(DOWNLOADS_AT_ONCE, "downloads of results"),
    )
    doors = Slots(DOORS_AT_ONCE, "requests about jobs")
    anywhere = (400, 401, 403, 413, 429, 500, 504)
    shared: dict[str, Any] = {"tags": ["jobs"]}
    app.add_api_route(
        JOBS_PATH,
        doors.bound(create_job),
        methods=["POST"],
        status_code=202,
        response_model=JobBody,
        responses={
            202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "of the job"}}},
            **openapi.problems(*anywhere, 404),
        },
        summary="Score a folder or a prefix of a bucket",
        **shared,
    )
    app.add_api_route(
        JOBS_PATH,
        doors.bound(list_jobs),
        methods=["GET"],
        responses=openapi.problems(*anywhere),
        summary="The caller's jobs, newest first",
        **shared,
    )
    app.add_api_route(
        _ID_PATH,
        doors.bound(show_job),
        methods=["GET"],
        responses=openapi.problems(*anywhere, 404),
        summary="How far a job is",
        **shared,
    )
    app.add_api_route(
        _ID_PATH,
        doors.bound(end_job),
        methods=["DELETE"],
        status_code=202,
        response_model=JobBody,
        responses={
            202: {"description": "it ends soon, or has ended, cancelled"},
            204: {"description": "it was finished, and is removed with its results"},
            **openapi.problems(*anywhere, 404),
        },
        summary="Cancel a job, or remove a finished one",
        **shared,
    )
    binary = {"schema": {"type": "string", "format": "binary"}}
    app.add_api_route(
        _RESULTS_PATH,
        doors.bound(send_results),
        methods=["GET"],
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "the rows of docs/scoring.md, in the order of the inputs' paths",
                "content": {media_type.partition(";")[0]: binary for media_type in MEDIA_TYPES.values()},
            },
            **openapi.problems(*anywhere, 404, 409),
        },
        summary="The results of a job that succeeded, as one file",
        **shared,
    )


def create_job(request: Request, response: Response, body: NewJobBody) -> JobBody:
    """Take a job: every picture of a folder, or under a prefix of a bucket, is scored in the background.

    The input must lie in one of the roots that the service was given (`MIEN_SCORING_ROOTS`).
    """
    desk = _desk(request)
    if desk.store is None or not desk.roots:
        raise ForbiddenError("this service scores no folders: it has no MIEN_SCORING_ROOTS")
    _check_patterns(body.include)
    place = find_place(body.input, desk.roots)
    analyzer: Analyzer = request.app.state.analyzer
    model = analyzer.spec(body.model).tag
    check_folder(place)
    caller = _caller(request)
    _check_room(desk, desk.store, caller)
    taken = JobRequest(
        id=new_job_id(),
        created_s=time.time(),
        caller=caller,
        input=place.name,
        model=model,
        recursive=body.recursive,
        include=tuple(body.include),
        min_face_size_px=body.min_face_size,
    )
    desk.store.add(taken)
    response.headers["Location"] = f"{JOBS_PATH}/{taken.id}"
    return JobBody.of(Job(taken, JobState()))


def list_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_JOBS_A_PAGE, description="most jobs of a page")] = 20,
    after: Annotated[str | None, Query(max_length=100, description="`next_after` of the page before")] = None,
) -> JobsBody:
    """The jobs that this caller has made, newest first."""
    store = _desk(request).store
    if store is None:
        return JobsBody(jobs=[], next_after=None)
    caller = _caller(request)
    found: list[JobBody] = []
    for job_id in reversed(store.ids()):
        if (after is not None and job_id >= after) or not _is_of(store, job_id, caller):
            continue
        if len(found) == limit:
            return JobsBody(jobs=found, next_after=found[-1].id)
        job = store.find(job_id)
        if job is not None:
            found.append(JobBody.of(job))
    return JobsBody(jobs=found, next_after=None)


def show_job(request: Request, job_id: str) -> JobBody:
    """State, progress and counts of a job; they change about once a second while it runs."""
    return JobBody.of(_visible(request, job_id))


def end_job(
    request: Request,
    response: Response,
    job_id: str,
    keep_finished: Annotated[bool, Query(description="leave a finished job as it is")] = False,
) -> Any:
    """Cancel a job that is not finished; remove one that is, with its results."""
    job = _visible(request, job_id)
    store = _desk(request).store
    assert store is not None
    try:
        with store.lease(job_id, "cancelled by its caller") as lease:
            if lease is None:
                store.ask_to_cancel(job_id)
            elif not lease.state().finished:
                # Nobody works on it, so nobody else would end it before its turn.
                finish_job(lease, lease.state(), "cancelled")
            elif not keep_finished:
                store.remove(lease)
                return Response(status_code=204)
    except OSError as error:
        if job.state.finished:
            raise
        logger.error("the job cannot be ended yet: %s", error, extra={"job": job_id})
        store.ask_to_cancel(job_id)
    response.status_code = 202
    return JobBody.of(_visible(request, job_id))


def send_results(
    request: Request,
    job_id: str,
    format: Annotated[ResultFormat, Query(description="of the file")] = "parquet",
) -> StreamingResponse:
    """All rows in the order of the inputs' paths; the columns are those of `python -m scoring`.

    An answer that breaks off has no last chunk, so that clients notice.
    """
    job = _visible(request, job_id)
    if job.state.state != "succeeded":
        raise JobNotFinishedError(f"the job is {job.state.state}; only one that succeeded has results")
    store = _desk(request).store
    assert store is not None
    try:
        results = open_results(store.output_folder(job_id))
    except OutputError as error:
        logger.error("the results cannot be read: %s", error, extra={"job": job_id})
        results = None
    if results is None:
        _visible(request, job_id)  # removed meanwhile, most likely
        raise InternalError(f"job {job_id} succeeded and its output is not finished")
    return Download(
        results.stream(format),
        _desk(request).downloads,
        media_type=MEDIA_TYPES[format],
        headers={"Content-Disposition": f'attachment; filename="{job_id}.{format}"'},
    )


def _desk(request: Request) -> JobDesk:
    desk: JobDesk = request.app.state.job_desk
    return desk


def _caller(request: Request) -> str | None:
    caller: str | None = request.scope.get("mien.caller")
    return caller


def _visible(request: Request, job_id: str) -> Job:
    """The caller's job of that id. Raises JobNotFoundError, also for one of somebody else."""
    store = _desk(request).store
    job = store.find(job_id) if store else None
    if job is None or _caller(request) not in (None, job.request.caller):
        raise JobNotFoundError("you have no job of that id")
    return job


def _is_of(store: JobStore, job_id: str, caller: str | None) -> bool:
    """Whether a job is a caller's. Without API keys there is one caller, whose every job is."""
    return caller is None or store.caller_of(job_id) == caller


def _check_room(desk: JobDesk, store: JobStore, caller: str | None) -> None:
    """Raise OverloadedError where there are as many jobs as there may be. Two requests at once may pass together."""
    standings = store.standings()
    n_unfinished = sum(not standing.finished for standing in standings.values())
    if n_unfinished >= desk.max_unfinished:
        raise OverloadedError(f"{n_unfinished} jobs are waiting or running", _RETRY_AFTER_S)
    own = [standing.finished for job_id, standing in standings.items() if _is_of(store, job_id, caller)]
    n_finished = sum(own)
    # A share is of what several callers have together.
    if caller is not None and len(own) - n_finished >= desk.max_unfinished_of_caller:
        raise OverloadedError(f"{len(own) - n_finished} of your jobs are waiting or running", _RETRY_AFTER_S)
    if n_finished >= desk.max_finished_of_caller:
        detail = f"{n_finished} finished jobs of yours are kept; remove some (DELETE) to make room"
        raise OverloadedError(detail, _RETRY_AFTER_S)


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/") or not pattern.isprintable():
            raise InvalidRequestError("include: a pattern is of file names or paths below the input")
