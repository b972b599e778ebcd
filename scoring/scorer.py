"""One input to its outcome, in two steps, so that reading the next one can go on while this one is computed."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.errors import HandlerError
from handlers.pipeline import Pipeline
from scoring.config import RunConfig
from scoring.parts import Entry, Outcome
from scoring.sources import Source


class Scorer:
    """A source and a pipeline. `read` may be called from another thread than `judge`."""

    def __init__(self, source: Source, pipeline: Pipeline) -> None:
        self._source, self._pipeline = source, pipeline

    def read(self, entry: Entry) -> bytes | HandlerError:
        """The file's bytes, or why they cannot be had. Raises InputError when the input as a whole has gone away."""
        try:
            return self._source.read(entry, self._pipeline.limits.max_bytes)
        except HandlerError as error:
            return type(error)(error.detail)  # the raised one keeps what it was reading alive through its traceback

    def judge(self, image: bytes) -> Outcome:
        """One picture alone: its numbers must not depend on its neighbours, or no two runs would be the same."""
        return self._pipeline.analyze([image])[0]


@dataclass(frozen=True)
class MakeScorer:
    """Makes the scorer of a run in a worker process, so it must pickle. Raises HandlerError."""

    source: Source
    config: RunConfig

    def __call__(self) -> Scorer:
        """Load the models."""
        return Scorer(self.source, self.config.load_pipeline())
