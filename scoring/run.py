"""A run from its listing to `_SUCCESS`: what stands is kept, the rest goes to the engine, the last one finishes."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

from scoring.config import RunConfig
from scoring.engine import Engine, PartRecord, Progress
from scoring.errors import TRANSIENT, EngineError, InputError, OptionsError
from scoring.formats import part_name
from scoring.listing import Listing, sorted_listing
from scoring.output import LOCK, MANIFEST, PARTS, SUCCESS, SUMMARY, Output
from scoring.parts import Part, cut_parts
from scoring.prefetch import prefetched
from scoring.sources import Source
from scoring.tally import Tally
from scoring.write_parts import standing_record

_MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One of `n` runs that share the parts of one output among them; index from 0. Raises OptionsError."""

    index: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.n:
            raise OptionsError(f"shard {self.index}/{self.n}: the index goes from 0 to one less than the number")

    def owns(self, part: Part) -> bool:
        """Whether the part is this shard's."""
        return part.index % self.n == self.index


@dataclass(frozen=True)
class ScoringJob:
    """What to score, where to, and everything that the results depend on.

    shard: None is all of it. retried: codes of failed inputs that are tried again although their part stands.
    """

    source: Source
    output: Output
    config: RunConfig
    shard: Shard | None = None
    retried: Collection[str] = TRANSIENT


@dataclass(frozen=True)
class RunResult:
    """What a run or a shard did.

    tally: of all its parts, those that stood before, too. n_repeated: inputs named more than once, scored once.
    complete: False when other shards still have parts to do. summary: of the whole output, once it is complete.
    """

    tally: Tally
    n_parts: int
    n_standing_parts: int
    n_repeated: int
    complete: bool
    summary: dict[str, Any] | None


def run(job: ScoringJob, engine: Engine, progress: Progress) -> RunResult:
    """Score what is missing in the output, and finish the output when nothing is missing any more.

    Raises ScoringError, or HandlerError for a model that cannot be loaded. What stands stays, and the same call goes on
    from there.
    """
    _refuse_output_in_input(job)
    job.output.prepare()
    with job.output.lock(shared=job.shard is not None), ExitStack() as opened:
        _refuse_other_input(job)
        entries = opened.enter_context(closing(prefetched(job.source.list(), progress.tick)))
        listing = opened.enter_context(sorted_listing(entries, on_progress=lambda n: progress.listed(n, done=False)))
        if not listing.n_entries:
            raise InputError(f"nothing to score in {job.source.root}")
        return _Run(job, listing, progress).carry_out(engine)


def _refuse_output_in_input(job: ScoringJob) -> None:
    """Raises OptionsError when the input has the output's own files: each run would score the last one's."""
    root, out = job.source.root, job.output.url
    if job.output.local_folder is not None:
        root, out = os.path.realpath(root), os.path.realpath(out)
    root = root.rstrip("/")
    if out != root and not out.startswith(f"{root}/"):
        return
    below = f"{out}/".removeprefix(f"{root}/")
    names = (f"{PARTS}/part-{'0' * 32}.{job.config.format}", MANIFEST, SUMMARY, SUCCESS, LOCK)
    if any(job.source.selects(below + name) for name in names):
        raise OptionsError(f"the output {job.output.url} lies in the input, and its files would be scored with it")


def _refuse_other_input(job: ScoringJob) -> None:
    """Raises OptionsError when the output is finished and of another input, as its parts would be removed."""
    finished = job.output.finished()
    if finished is not None and finished.get("input") != job.source.root:
        raise OptionsError(
            f"{job.output.url} holds the results of {finished.get('input')}, and this run would remove them; "
            f"name another output, or remove its {MANIFEST} if that is meant"
        )


@dataclass(frozen=True)
class _Planned:
    """What the end of a run must know of a part, without its entries."""

    name: str
    n_inputs: int
    first_path: str


class _Run:
    def __init__(self, job: ScoringJob, listing: Listing, progress: Progress) -> None:
        self._job, self._listing, self._progress = job, listing, progress
        remote = job.source.root if "://" in job.source.root else ""
        # A local folder may move: its files keep their times. What lies at another address is another file.
        self._fingerprint = job.config.fingerprint + remote
        self._plan: list[_Planned] = []
        self._records: dict[str, PartRecord] = {}
        self._n_standing = 0
        self._unfinished = False

    def carry_out(self, engine: Engine) -> RunResult:
        self._progress.listed(self._n_own_entries(), done=True)
        with closing(engine.score(self._missing(), self._progress)) as records:
            for record in records:
                self._records[record.name] = record
        if sum(part.n_inputs for part in self._plan) < self._listing.n_entries:
            raise EngineError("the engine ended before it had asked for every part")
        tally = Tally()
        for record in self._records.values():
            tally.add(record.tally)
        n_parts = len(self._records)
        summary = self._finish()
        return RunResult(tally, n_parts, self._n_standing, self._listing.n_repeated, summary is not None, summary)

    def _parts(self) -> Iterator[Part]:
        for part in cut_parts(self._listing, self._job.config.part_size, self._fingerprint):
            self._progress.tick()
            yield part

    def _owns(self, part: Part) -> bool:
        return self._job.shard is None or self._job.shard.owns(part)

    def _n_own_entries(self) -> int:
        if self._job.shard is None:
            return self._listing.n_entries
        return sum(len(part.entries) for part in self._parts() if self._owns(part))

    def _missing(self) -> Iterator[Part]:
        """The parts to score. Plans all of them on the way: cutting a long listing takes seconds."""
        config = self._job.config
        there = self._job.output.part_names()
        for part in self._parts():
            planned = _Planned(part_name(part, config.format), len(part.entries), part.entries[0].shown_path)
            self._plan.append(planned)
            if not self._owns(part):
                continue
            stands = planned.name in there
            record = self._standing(planned, self._job.retried) if stands else None
            if record is None:
                self._reopen(again=stands)
                yield part
            else:
                self._records[record.name] = record
                self._n_standing += 1
                self._progress.standing(record.tally)

    def _standing(self, part: _Planned, retried: Collection[str]) -> PartRecord | None:
        return standing_record(part.name, part.n_inputs, self._job.config, self._job.output, retried)

    def _reopen(self, *, again: bool) -> None:
        """Before a change: nobody may take what follows for a finished output. again: another shard may have finished
        it meanwhile.
        """
        if again or not self._unfinished:
            self._job.output.begin()
            self._unfinished = True

    def _finish(self) -> dict[str, Any] | None:
        """Finish the output and return its summary, or None while parts of other shards are missing."""
        output = self._job.output
        there = output.part_names()
        if any(part.name not in there for part in self._plan):
            return None
        records: list[PartRecord] = []
        for part in self._plan:
            self._progress.tick()
            record = self._records.get(part.name) or self._standing(part, retried=())
            if record is None:
                return None
            records.append(record)
        manifest, summary = self._manifest(records), self._summary(records)
        stale = there - {part.name for part in self._plan}
        if stale or output.finished() != manifest:
            self._reopen(again=True)
            for name in sorted(stale):
                output.remove_part(name)
            output.finish(manifest, summary)
        return summary

    def _manifest(self, records: list[PartRecord]) -> dict[str, Any]:
        return {
            "schema_version": _MANIFEST_VERSION,
            "input": self._job.source.root,
            "fingerprint": self._job.config.fingerprint,
            "inputs_named_more_than_once": self._listing.n_repeated,
            "config": json.loads(json.dumps(asdict(self._job.config))),  # as it will be read, lists for tuples
            "parts": [
                {
                    "name": record.name,
                    "first_path": part.first_path,
                    "n_inputs": record.tally.n_inputs,
                    "n_rows": record.n_rows,
                    "sha256": record.sha256,
                    "size_bytes": record.size_bytes,
                }
                for part, record in zip(self._plan, records, strict=True)
            ],
        }

    def _summary(self, records: list[PartRecord]) -> dict[str, Any]:
        config = self._job.config
        tally = Tally()
        for record in records:
            tally.add(record.tally)
        return {
            "schema_version": _MANIFEST_VERSION,
            "input": self._job.source.root,
            "model": config.model,
            "model_digest": config.model_digest,
            "format": config.format,
            "parts": len(records),
            "rows": sum(record.n_rows for record in records),
            "inputs": tally.n_inputs,
            "inputs_named_more_than_once": self._listing.n_repeated,
            "inputs_with_faces": tally.n_inputs - tally.n_faceless - tally.n_failed,
            "inputs_without_a_face": tally.n_faceless,
            "inputs_failed": tally.n_failed,
            "faces": tally.n_faces,
            "emotions": {label: tally.emotions[label] for label in config.labels},
            "errors": dict(sorted(tally.errors.items())),
        }
