"""What can go wrong with a run, and with one of its files.

ScoringError               the run ends; nothing that stands is lost, and the same command goes on later
├── OptionsError           an option, or a combination of them, that makes no sense
├── InputError             the input is not there, is empty, or has gone away
├── OutputError            the output cannot be written or read: full, forbidden, gone, in use
├── EngineError            no worker can be kept alive
└── StoppedError           somebody asked the run to stop

A file's error is a `HandlerError`, a value in its rows: those of `handlers.errors`, and two that only a run has:

├── UnreadableError        unreadable     listed, but its bytes cannot be had
└── WorkerDiedError        worker_died    ended its worker process twice, the second time alone in it
"""

from __future__ import annotations

from handlers.errors import ExpiredError, HandlerError, InternalError


class ScoringError(Exception):
    """Root of what ends a run; the message is one sentence for a person."""


class OptionsError(ScoringError):
    """An option out of its range, or options that do not go together."""


class InputError(ScoringError):
    """The input cannot be listed, has no picture, or went away while it was scored."""


class OutputError(ScoringError):
    """The output folder cannot be used."""


class EngineError(ScoringError):
    """The engine cannot go on."""


class StoppedError(ScoringError):
    """Somebody asked the run to stop."""


class UnreadableError(HandlerError):
    """The file was listed, but its bytes cannot be had: gone, forbidden, not a regular file, outside the root."""

    code = "unreadable"


class WorkerDiedError(HandlerError):
    """Work on this file ended its process (out of memory, a native crash) twice, the second time alone in it."""

    code = "worker_died"


TRANSIENT = frozenset({UnreadableError.code, ExpiredError.code})
"""Codes of files that another run tries again: the cause (a right, a disk that was away or slow) is not in the file."""

RETRIABLE = TRANSIENT | {WorkerDiedError.code, InternalError.code}
"""And of those that it tries again when it is told to: more memory or a newer Mien may help."""
