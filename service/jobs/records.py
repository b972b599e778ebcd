"""What is known of a job: the request as it was taken, and its state as it goes on. Both are JSON in its folder."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from scoring.tally import Tally

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINISHED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})

_ID = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{16}")


def new_job_id() -> str:
    """An id that sorts by the time of its making, to the millisecond, and cannot be guessed."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{secrets.token_hex(8)}"


def is_job_id(text: str) -> bool:
    """Whether a text has the form of an id; only such a text may become part of a path."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class JobRequest:
    """What a caller asked for; it never changes. caller: name of the API key, None without keys.

    input: as the caller named it. model: `name:version`. created_s: seconds since 1970.
    """

    id: str
    created_s: float
    caller: str | None
    input: str
    model: str
    recursive: bool
    include: tuple[str, ...]
    min_face_size_px: int | None

    def to_json(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what `to_json` wrote. Raises ValueError."""
        found = _known(cls, data)
        try:
            return cls(**{**found, "include": tuple(found["include"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a job's request: {error}") from None


@dataclass(frozen=True)
class JobState:
    """How far a job is. Written only by who holds the job's lease.

    started_s, finished_s: seconds since 1970. n_listed: inputs found so far, all of them once `listed`. tally: of
    everything done, that of parts that stood before included, which `n_standing` inputs are of. files_per_second: of
    the last stretch of work. n_attempts: processes that began on it since a part was finished. n_parts: parts that
    stood when the last of them began. error_code, error_detail: why it failed, or was put off. n_put_off: how often it
    was put off since a part was finished. not_before_s: when it is tried again, seconds since 1970.
    """

    state: State = "queued"
    started_s: float | None = None
    finished_s: float | None = None
    n_listed: int = 0
    listed: bool = False
    n_standing: int = 0
    tally: Tally = field(default_factory=Tally)
    files_per_second: float | None = None
    n_attempts: int = 0
    n_parts: int = 0
    error_code: str | None = None
    error_detail: str | None = None
    n_put_off: int = 0
    not_before_s: float | None = None

    @property
    def finished(self) -> bool:
        """Nothing will change any more."""
        return self.state in FINISHED

    def to_json(self) -> bytes:
        """As it is kept."""
        # Not `asdict`: it makes a Counter of a Counter's pairs.
        return json.dumps({**vars(self), "tally": vars(self.tally)}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what `to_json` wrote. Raises ValueError."""
        found = _known(cls, data)
        try:
            counts = found.pop("tally")
            tally = Tally(**{**counts, "emotions": Counter(counts["emotions"]), "errors": Counter(counts["errors"])})
            state = cls(**found, tally=tally)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a job's state: {error}") from None
        if state.state not in STATES:
            raise ValueError(f"not a job's state: {state.state}")
        return state


@dataclass(frozen=True)
class Standing:
    """As much of a job's state as it takes to count jobs and to choose among them."""

    state: State
    not_before_s: float | None = None

    @property
    def finished(self) -> bool:
        """Nothing will change any more."""
        return self.state in FINISHED


@dataclass(frozen=True)
class Job:
    """A job as it is now. cancelling: somebody asked to end it, and it is not finished yet."""

    request: JobRequest
    state: JobState
    cancelling: bool = False


def _known(cls: type, data: bytes) -> dict[str, Any]:
    """The fields of an object that this version knows: a newer one may have written more."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    names = {each.name for each in fields(cls)}
    return {name: value for name, value in found.items() if name in names}
