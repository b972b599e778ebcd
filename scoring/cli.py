"""The command: options in, one run, a summary and an exit code out."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoring.options import FAILED, SHARD_VARIABLE, SOME_FILES_FAILED, SUCCEEDED, make_parser

# What is slow to import (numpy, pyarrow, rich, ray) is imported where it is used: --help must be quick.
if TYPE_CHECKING:
    from scoring.engine import Engine
    from scoring.run import ScoringJob, Shard


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 2 when some files failed, 1 after a line on stderr that says why.

    Raises SystemExit for --help (0) and wrong options (1). In the main thread only: it takes the signals.
    """
    options = make_parser().parse_args(arguments)
    _open_streams()
    try:
        return _run(options)
    except (KeyboardInterrupt, SystemExit):  # before our handler stands, or from a handler that Ray has put over it
        return _fail("stopped; the same command goes on from here")
    except Exception as error:
        from handlers.errors import HandlerError
        from model_store.errors import ModelStoreError
        from scoring.errors import ScoringError, StoppedError

        if isinstance(error, StoppedError):
            return _fail(str(error))
        if isinstance(error, (ScoringError, HandlerError, ModelStoreError)):
            return _fail(f"error: {error}")
        raise


def _run(options: argparse.Namespace) -> int:
    from scoring.stopping import stopped_by_signals

    with stopped_by_signals() as check_stopped:
        from scoring.display import make_display, printable
        from scoring.run import run
        from scoring.summary_table import summary_text

        _log_to_stderr(options.log_level)
        job = _job(options)
        engine, workers = _engine(options, job)
        with make_display(options.progress, check_stopped) as display:
            display.announce(printable(_announcement(options, job, workers)))
            result = run(job, engine, display)
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        _print(summary_text(result, job.config, display.meter, printable(job.output.url), columns))
        return SOME_FILES_FAILED if result.tally.n_failed else SUCCEEDED


def _job(options: argparse.Namespace) -> ScoringJob:
    from handlers.decode import DecodeLimits
    from handlers.detection.settings import DetectionSettings
    from scoring.config import resolve_config
    from scoring.errors import RETRIABLE, TRANSIENT, OptionsError
    from scoring.output import Output
    from scoring.run import ScoringJob
    from scoring.sources import open_source

    if len(options.input) > 1:
        raise OptionsError(
            f"one INPUT at a time, not {len(options.input)}; put a glob in quotes, so that the shell leaves it alone"
        )
    shard = shard_of(options.shard, options.shards, os.environ)
    limits = _given(
        max_bytes=options.max_image_bytes,
        max_pixels=options.max_image_pixels,
        max_side_px=options.max_image_side,
    )
    detection = _given(
        min_face_size_px=options.min_face_size,
        thresholds=options.detection_thresholds,
        max_side_px=options.detection_max_side,
    )
    source = open_source(options.input[0], recursive=options.recursive, include=tuple(options.include))
    config = resolve_config(
        options.model,
        runtime=options.runtime,
        precision=options.precision,
        tta=options.tta,
        limits=DecodeLimits(**limits),
        detection=DetectionSettings(**detection),
        format=options.format,
        **_given(part_size=options.part_size),
    )
    retried = RETRIABLE if options.retry_failed else TRANSIENT
    return ScoringJob(source, Output(options.output), config, shard, retried)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def shard_of(shard: tuple[int, int] | None, n_shards: int | None, environment: Mapping[str, str]) -> Shard | None:
    """The shard that `--shard` names, or `--shards` and the environment do; None is all of it. Raises OptionsError."""
    from scoring.errors import OptionsError
    from scoring.run import Shard

    if shard is not None:
        return Shard(*shard)
    if n_shards is None:
        return None
    index = environment.get(SHARD_VARIABLE)
    if index is None:
        raise OptionsError(f"--shards takes the index from {SHARD_VARIABLE}, which is not set; or say --shard I/N")
    if not (index.isascii() and index.isdigit()):
        raise OptionsError(f"{SHARD_VARIABLE} must be a number from 0, not {index!r}")
    return Shard(int(index), n_shards)


def _engine(options: argparse.Namespace, job: ScoringJob) -> tuple[Engine, str]:
    """The engine and its workers as shown to people."""
    from handlers.cores import usable_cores
    from scoring.display import count
    from scoring.errors import OptionsError
    from scoring.scorer import MakeScorer

    make_scorer = MakeScorer(job.source, job.config)
    if options.engine == "local":
        if options.ray_address is not None:
            raise OptionsError("--ray-address goes with --engine ray")
        from scoring.local_engine import LocalEngine

        n_workers = options.workers or usable_cores()
        engine = LocalEngine(
            make_scorer=make_scorer,
            config=job.config,
            output=job.output,
            n_workers=n_workers,
            file_timeout_s=options.file_timeout_s,
            niceness=options.nice or 0,
        )
        return engine, count(n_workers, "worker")
    if options.nice is not None:
        raise OptionsError("--nice goes with --engine local")
    from scoring.ray_engine import RayEngine

    ray_engine = RayEngine(
        make_scorer=make_scorer,
        config=job.config,
        output=job.output,
        n_workers=options.workers,
        file_timeout_s=options.file_timeout_s,
        address=options.ray_address,
    )
    return ray_engine, count(options.workers, "worker") if options.workers else "a worker a core"


def _announcement(options: argparse.Namespace, job: ScoringJob, workers: str) -> str:
    config, shard = job.config, job.shard
    share = "" if shard is None else f", shard {shard.index}/{shard.n}"
    return (
        f"scoring {job.source.root} with {config.model} ({config.runtime}, {config.precision}){share}: "
        f"{options.engine} engine, {workers}, {config.format} to {job.output.url}"
    )


def _open_streams() -> None:
    """Make stdout and stderr fit for any name, and fill the place of those that are closed before a file gets it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process lives
        with contextlib.suppress(AttributeError):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _print(text: str) -> None:
    """On stdout, whose reader may have had enough; the results stand all the same."""
    try:
        print(text, end="", flush=True)
    except OSError:
        # Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str) -> int:
    from scoring.display import printable

    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
    return FAILED


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to what stderr is at the time: a live bar puts something else there, to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr(level: str) -> None:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
