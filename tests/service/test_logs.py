"""Log lines: JSON from everybody, in the process and from the real service."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import Any

import httpx
import pytest
from bentoml import server_context

from service.logs import configure_logs
from service.request_context import enter_request, leave_request
from tests.service.server_process import REPOSITORY, RunningService

FIELDS = {"time", "level", "logger", "message", "request_id", "process"}


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_its_fields_and_those_that_the_caller_adds(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    token = enter_request("request-1")

    logging.getLogger("service.rest").info("said %s", "ünïcode\nand a new line", extra={"status": 200})
    leave_request(token)

    (line,) = written(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "INFO",
        "logger": "service.rest",
        "message": "said ünïcode\nand a new line",
        "request_id": "request-1",
        "process": "",
        "status": 200,
    }


def test_a_line_may_name_its_request_itself(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")

    logging.getLogger("service.runners").info("in a batch", extra={"request_id": "request-2"})

    assert [line["request_id"] for line in written(capsys)] == ["request-2"]


def test_a_line_names_the_worker_that_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs("info")
    monkeypatch.setattr(server_context, "service_name", "mien_detector")
    monkeypatch.setattr(server_context, "worker_index", 2)

    logging.getLogger("service").info("hello")

    assert [line["process"] for line in written(capsys)] == ["mien_detector:2"]


def test_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")

    try:
        raise ZeroDivisionError("the cause")
    except ZeroDivisionError:
        logging.getLogger("handlers").exception("failed")

    (line,) = written(capsys)
    assert line["level"] == "ERROR"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: the cause")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (
            "debug",
            {"service.debug", "service.info", "bentoml.info", "bentoml.error", "httpx.error", "uvicorn.error.error"},
        ),
        ("info", {"service.info", "bentoml.info", "bentoml.error", "httpx.error", "uvicorn.error.error"}),
        ("error", {"bentoml.error", "httpx.error", "uvicorn.error.error"}),
    ],
)
def test_the_level_is_ours_and_others_never_say_more(
    capsys: pytest.CaptureFixture[str], level: str, expected: set[str]
) -> None:
    configure_logs("debug")
    configure_logs(level)

    logging.getLogger("service").debug("service.debug")
    logging.getLogger("service").info("service.info")
    for name in ("bentoml", "httpx", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).debug("%s.debug", name)
        logging.getLogger(name).info("%s.info", name)
    for name in ("bentoml", "httpx", "uvicorn.error"):
        logging.getLogger(name).error("%s.error", name)

    # Compared as a sorted list: each is written once.
    assert sorted(line["message"] for line in written(capsys)) == sorted(expected)


def test_what_others_have_configured_before_is_replaced() -> None:
    # In a process of its own, as BentoML's configuration and warnings are the whole process's.
    program = """
import logging, warnings
from bentoml._internal.log import configure_server_logging
configure_server_logging()
from service.logs import configure_logs
configure_logs("info")
logging.getLogger("bentoml.serve").info("one")
logging.getLogger("uvicorn.error").warning("two", extra={"color_message": "in red"})
logging.getLogger("anybody").warning("three")
warnings.warn("four")
"""

    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]

    assert (done.returncode, done.stdout) == (0, "")
    assert [line["logger"] for line in lines] == ["bentoml.serve", "uvicorn.error", "anybody", "py.warnings"]
    assert [line["message"] for line in lines[:3]] == ["one", "two", "three"]
    assert "four" in lines[3]["message"]
    assert all(set(line) == FIELDS for line in lines)


def test_a_handler_that_collects_for_somebody_else_stays(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info")

    logging.getLogger("service").warning("for both")

    assert caplog.messages == ["for both"]
    assert [line["message"] for line in written(capsys)] == ["for both"]


def test_every_line_of_the_running_service_is_json(served_fake: RunningService, astronaut_png: bytes) -> None:
    httpx.post(
        f"{served_fake.url}/v1/analyze?secret=in-the-query",
        content=astronaut_png,
        headers={"X-Request-ID": "logged-1"},
        timeout=30,
    )
    httpx.post(f"{served_fake.url}/v1/analyze", content=b"no picture", timeout=30)
    httpx.get(f"{served_fake.url}/private/place?secret=in-the-query", timeout=30)

    text = served_fake.log_path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) >= FIELDS for line in lines)
    assert {line["process"].partition(":")[0] for line in lines} >= {"mien", "mien_detector", "mien_emotion"}
    assert "logged-1" in {line["request_id"] for line in lines}
    for hidden in ("in-the-query", "private", "\\ufffd", "PNG"):
        assert hidden not in text
