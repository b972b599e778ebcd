"""What the exceptions of remote file systems mean: each package has its own, and few of them say it by type."""

from __future__ import annotations

import enum
import errno
import re

from scoring.errors import UnreadableError

_LOGIN_CODES = frozenset(
    {
        "AccountProblem",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_PASSING_CODES = frozenset(
    {
        "408",
        "429",
        "500",
        "502",
        "503",
        "504",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
    }
)
# By name, since the packages may not be installed, and need not be loaded to ask.
_PASSING_TYPES = frozenset(
    {
        "HTTPClientError",
        "ConnectionError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",
        "IncompleteRead",
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "TransportError",
        "RemoteProtocolError",
        "ServiceRequestError",
        "ServiceResponseError",
        "gaierror",
    }
)
_PASSING_NUMBERS = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN})
_LOGIN_TYPES = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "TokenRetrievalError",
        "NoAuthTokenError",
        "SSOError",
        "DefaultCredentialsError",
        "RefreshError",
        "ClientAuthenticationError",
    }
)


class Trouble(enum.Enum):
    """What an exception of a remote file system means to us."""

    NO_STORE = "the bucket does not exist"
    MISSING = "there is no such file"
    FORBIDDEN = "access is denied"
    LOGIN = "the credentials are missing or refused"
    PASSING = "it may work later"
    OTHER = "something else"


def code_of(error: BaseException) -> str:
    """The error code that an S3 server gave, or the HTTP status of another; empty without either."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        for name in ("status", "status_code", "code"):
            if isinstance(code := getattr(one, name, None), int):
                return str(code)
    return ""


def trouble_of(error: BaseException) -> Trouble:
    """Sort an exception."""
    # "No such file" is what some say of a server that is away; the truth is in the cause.
    both = [one for one in (error, error.__cause__) if one is not None]
    code, types = code_of(error), {cls.__name__ for one in both for cls in type(one).__mro__}
    if code in _LOGIN_CODES or types & _LOGIN_TYPES:
        return Trouble.LOGIN
    if code == "NoSuchBucket":
        return Trouble.NO_STORE
    if code in _PASSING_CODES or types & _PASSING_TYPES or "TimeoutError" in types:
        return Trouble.PASSING
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return Trouble.PASSING
    if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey"):
        return Trouble.MISSING
    if isinstance(error, PermissionError) or code in ("401", "403"):
        return Trouble.FORBIDDEN
    return Trouble.OTHER


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line, without the queries of URLs: those may hold signatures."""
    line = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(\w://)[^/\s@]*@", r"\1", re.sub(r"\?[^\s'\"]*", "", line))[:300]


def why_unreadable(error: BaseException) -> UnreadableError:
    """What a row says about a file that cannot be fetched."""
    trouble = trouble_of(error)
    return UnreadableError(reason_of(error) if trouble is Trouble.OTHER else trouble.value)
