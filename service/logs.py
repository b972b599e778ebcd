"""JSON log lines with the request id. Never image bytes, never a query string."""

from __future__ import annotations

import logging

from pythonjsonlogger.json import JsonFormatter

from service.request_context import current_request_id

LOGGERS = ("service", "handlers", "model_store")


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current_request_id()
        return True


def configure_logs(level: str) -> None:
    """Send the lines of our packages to stderr as JSON, one object a line. Calling it again changes the level only."""
    handler = logging.StreamHandler()
    handler.addFilter(_RequestIdFilter())
    handler.setFormatter(
        JsonFormatter(
            ["asctime", "levelname", "name", "message", "request_id"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            defaults={},
        )
    )
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False
