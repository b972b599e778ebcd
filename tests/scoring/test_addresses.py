from __future__ import annotations

import pytest

from scoring.addresses import is_url, local_path_of, refuse_unconfined, refuse_unsafe, s3_parts, shown_url
from scoring.errors import InputError, OptionsError, ScoringError


@pytest.mark.parametrize(
    ("address", "expected"),
    [("s3://b", True), ("file:///a", True), ("/a://b", False), ("a/b", False), ("C:\\a", False), ("a+b-c.d://x", True)],
)
def test_what_is_a_url(address: str, expected: bool) -> None:
    assert is_url(address) == expected


def test_local_urls() -> None:
    assert local_path_of("file:///a b%20c") == "/a b%20c"
    assert local_path_of("LOCAL:///a") == "/a"
    assert local_path_of("s3://a") is None
    for url in ("file://a/b", "file://"):
        with pytest.raises(InputError, match="absolute path"):
            local_path_of(url)


def test_keys_are_taken_as_they_are() -> None:
    assert s3_parts("s3://b/a//b?c#d%20") == ("b", "a//b?c#d%20")
    assert s3_parts("s3://b") == ("b", "")


@pytest.mark.parametrize(
    "url",
    ["s3://KEY:SECRET@b/x", "s3://SECRET@b", "https://u:SECRET@h/x", "sftp://u:SECRET@h/x", "http://SECRET@h?@"],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(OptionsError) as caught:
        refuse_unsafe(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=SECRET",
        "a=b&x-amz-security-token=SECRET",
        "X-Amz-Credential=SECRET",
        "X-Goog-Signature=SECRET",
        "sv=1&sig=SECRET",
        "token=SECRET",
        "a;access_token=SECRET",
        "Signature=SECRET",
        "SIG=SECRET",
        "X%2DAmz%2DSignature=SECRET",
        "from=https%3A%2F%2Fh%2Fa%3Fsig%3DSECRET",
    ],
)
def test_signed_addresses_are_refused_and_not_repeated(query: str) -> None:
    with pytest.raises(OptionsError) as caught:
        refuse_unsafe(f"https://h/a.jpg?{query}")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://h/a?id=5&design=1", "https://h/token=1/a.jpg", "s3://b/sig=1/a?b"])
def test_other_queries_are_no_secrets(url: str) -> None:
    refuse_unsafe(url)


@pytest.mark.parametrize(
    "url", ["abfs://container@account.dfs.core.windows.net/x", "sftp://user@host/x", "s3://b/a@b:c", "http://h/@:"]
)
def test_an_at_sign_need_not_be_a_secret(url: str) -> None:
    refuse_unsafe(url)


@pytest.mark.parametrize("url", ["simplecache::s3://b/x", "zip://a.zip::s3://b/x", "s3://b/x::y"])
def test_chained_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="chained"):
        refuse_unsafe(url)


def test_signatures_of_web_addresses_are_not_shown() -> None:
    assert shown_url("https://h/a.jpg?sig=SECRET") == "https://h/a.jpg"
    assert shown_url("s3://b/a?b") == "s3://b/a?b"


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///",
        "s3:///a",
        "s3://b/..",
        "s3://b/in/../..",
        "s3://../b",
        "s3://b/in/./a",
        "s3://b/in//a",
        "s3://b//",
        "s3://b/%2e%2e/x",
        "s3://b/in/%2E%2E/x",
        "s3://b/..\\x",
        "s3://b/..%5cx",
        "s3://b/a\nb",
        "s3://b/a%00b",
        "http://h/x",
        "sftp://h/x",
        "reference://x",
        "zip://x",
    ],
)
def test_what_a_confined_url_may_not_be(url: str) -> None:
    with pytest.raises(ScoringError, match=r"allowed here|names no bucket"):
        refuse_unconfined(url)


@pytest.mark.parametrize("url", ["s3://b", "s3://b/", "s3://b/a b/c..d/", "gs://b/é", "memory://m", "memory:///m"])
def test_what_a_confined_url_may_be(url: str) -> None:
    refuse_unconfined(url)
