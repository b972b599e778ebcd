"""Every log line of a process as one JSON object on stderr. Never image bytes, never a query string."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from bentoml import server_context
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from service.request_context import current_request_id

OURS = ("service", "scoring", "handlers", "model_store")
# The loggers that `configure_logs` changes; the first is the root, and the last four have handlers of BentoML's.
LOGGERS = ("", *OURS, "bentoml", "circus", "uvicorn", "uvicorn.error")


def configure_logs(level: str) -> None:
    """Send all lines of this process to stderr as JSON. Calling it again changes the level only.

    level: the least severe of our packages that is written (`debug`, `info`, …). BentoML's lines start at info, and
    everybody else's at warning, even if it is lower: below that, httpx and uvicorn name addresses with their queries.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for logger in map(logging.getLogger, LOGGERS):
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        if logger is not root:
            logger.handlers = []
    # Other classes of handlers on the root are not output of the process: pytest's, which collect lines for a test.
    others = [handler for handler in root.handlers if type(handler) not in (logging.StreamHandler, _StderrHandler)]
    root.handlers = [_StderrHandler(), *others]
    root.setLevel(max(least, logging.WARNING))
    logging.getLogger("bentoml").setLevel(max(least, logging.INFO))
    for name in OURS:
        logging.getLogger(name).setLevel(least)
    logging.captureWarnings(True)


class _Formatter(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message", "request_id", "service_process"],
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "service_process": "process",
                "exc_info": "exception",
            },
            # uvicorn's second copy of the message, with colours for a terminal.
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def format(self, record: logging.LogRecord) -> str:
        # A runner works for several requests at once, so its lines name theirs themselves.
        if not hasattr(record, "request_id"):
            record.request_id = current_request_id()
        record.service_process = _process_name()
        return super().format(record)


class _StderrHandler(logging.Handler):
    """Writes to what is `sys.stderr` at that moment; a `StreamHandler` keeps the one that it was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # One write a line, as the processes share the stream.
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _process_name() -> str:
    """BentoML's name of the service that this process runs and the worker's number; empty in the parent."""
    name, index = server_context.service_name, server_context.worker_index
    return f"{name}:{index}" if name and index else name or ""
