from __future__ import annotations

import errno
import socket

import aiohttp
import botocore.exceptions
import pytest

from scoring.troubles import Trouble, reason_of, trouble_of, why_unreadable


def of_s3(code: str) -> BaseException:
    """As s3fs raises it: the exception of botocore is the cause of one of Python's own."""
    error = OSError(errno.EIO, "of S3")
    error.__cause__ = botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "of S3"}}, "GetObject")
    return error


def because(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class _WebError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://h/a.jpg?sig=SECRET'")
        self.status = status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_s3("NoSuchBucket"), Trouble.NO_STORE),
        (of_s3("NoSuchKey"), Trouble.MISSING),
        (of_s3("404"), Trouble.MISSING),
        (of_s3("403"), Trouble.FORBIDDEN),
        (of_s3("ExpiredToken"), Trouble.LOGIN),
        (of_s3("SignatureDoesNotMatch"), Trouble.LOGIN),
        (of_s3("SlowDown"), Trouble.PASSING),
        (of_s3("503"), Trouble.PASSING),
        (of_s3("InternalError"), Trouble.PASSING),
        (of_s3("InvalidRange"), Trouble.OTHER),
        (botocore.exceptions.NoCredentialsError(), Trouble.LOGIN),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://h"), Trouble.PASSING),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://h"), Trouble.PASSING),
        (botocore.exceptions.ParamValidationError(report="x"), Trouble.OTHER),
        (aiohttp.ClientPayloadError(), Trouble.PASSING),
        (aiohttp.ServerDisconnectedError(), Trouble.PASSING),
        (ConnectionResetError(), Trouble.PASSING),
        (TimeoutError(), Trouble.PASSING),
        (_WebError(502), Trouble.PASSING),
        (_WebError(429), Trouble.PASSING),
        (_WebError(408), Trouble.PASSING),
        (of_s3("TooManyRequests"), Trouble.PASSING),
        (socket.gaierror(socket.EAI_AGAIN, "x"), Trouble.PASSING),
        (OSError(errno.EHOSTUNREACH, "x"), Trouble.PASSING),
        (because(FileNotFoundError("x"), ConnectionRefusedError()), Trouble.PASSING),
        (because(FileNotFoundError("x"), _WebError(503)), Trouble.PASSING),
        (_WebError(404), Trouble.MISSING),
        (_WebError(401), Trouble.FORBIDDEN),
        (FileNotFoundError(), Trouble.MISSING),
        (PermissionError(), Trouble.FORBIDDEN),
        (OSError(errno.EIO, "x"), Trouble.OTHER),
        (ValueError(), Trouble.OTHER),
    ],
    ids=repr,
)
def test_exceptions_are_sorted(error: BaseException, expected: Trouble) -> None:
    assert trouble_of(error) is expected


def test_reasons_are_one_line_without_secrets() -> None:
    assert "SECRET" not in why_unreadable(_WebError(418)).detail
    assert reason_of(ValueError("failed:\n  s3://k:SECRET@b/x is\nbad")) == "failed: s3://b/x is bad"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 1000))) == 300
