from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest

from service import api_keys
from service.api_keys import ApiKeys, Scope, read_api_keys
from service.problems import ForbiddenError, UnauthenticatedError
from service.settings import SettingsError

ALICE, BOB, EVE = "alice-0123456789abcdef", "bob-0123456789abcdef", "eve-0123456789abcdef"


def _digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def _keys(path: Path, *lines: str) -> ApiKeys:
    path.write_text("\n".join(lines) + "\n")
    return ApiKeys(path)


def _rewrite(path: Path, *lines: str) -> None:
    """Change the file as an editor does, with a time of change that differs for sure."""
    before_ns = path.stat().st_mtime_ns
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, ns=(before_ns, before_ns + 1_000_000))


def _known(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check(key, "infer")
    except UnauthenticatedError:
        return False
    return True


def test_without_a_file_everybody_may_do_everything() -> None:
    keys = ApiKeys(None)

    assert keys.check(None, "infer") is None
    assert keys.check("anything", "metrics") is None


@pytest.mark.parametrize("written", [ALICE, _digest(ALICE)], ids=["plain", "hashed"])
def test_a_key_is_known_by_its_name(path: Path, written: str) -> None:
    keys = _keys(path, f"alice {written}", f"bob {BOB}")

    assert keys.check(ALICE, "infer") == "alice"
    assert keys.check(BOB, "infer") == "bob"


@pytest.mark.parametrize("key", [None, "", EVE, ALICE[:-1], ALICE + "x", ALICE.upper(), "é" * 20, "alice"])
def test_no_other_key_is_let_in(path: Path, key: str | None) -> None:
    keys = _keys(path, f"alice {ALICE} infer,metrics")

    with pytest.raises(UnauthenticatedError) as caught:
        keys.check(key, "infer")
    assert not key or key not in caught.value.detail


def test_the_digest_in_the_file_is_not_a_key_itself(path: Path) -> None:
    keys = _keys(path, f"alice {_digest(ALICE)}")

    assert not _known(keys, _digest(ALICE))
    assert not _known(keys, _digest(ALICE).removeprefix("sha256:"))


@pytest.mark.parametrize(
    ("scopes", "infer", "metrics"),
    [("", True, False), ("infer", True, False), ("metrics", False, True), ("infer,metrics", True, True)],
)
def test_a_key_does_what_its_scopes_say_and_nothing_else(path: Path, scopes: str, infer: bool, metrics: bool) -> None:
    keys = _keys(path, f"alice {ALICE} {scopes}")

    def may(scope: Scope) -> bool:
        try:
            return keys.check(ALICE, scope) == "alice"
        except ForbiddenError:
            return False

    assert (may("infer"), may("metrics")) == (infer, metrics)


def test_every_key_is_compared_in_constant_time_wherever_the_match_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = _keys(path, f"alice {ALICE}", f"bob {BOB}", f"eve {EVE}")
    compared: list[tuple[bytes, bytes]] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return hmac.compare_digest(known, given)

    monkeypatch.setattr(api_keys, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    known = [hashlib.sha256(key.encode()).digest() for key in (ALICE, BOB, EVE)]
    for key in (ALICE, EVE, "nobody"):
        compared.clear()
        _known(keys, key)
        given = hashlib.sha256(key.encode()).digest()
        assert compared == [(one, given) for one in known]


def test_comments_and_empty_lines_are_skipped(path: Path) -> None:
    keys = _keys(path, "# the clients", "", f"  alice   {ALICE}\tinfer  # since May", "   ")

    assert keys.check(ALICE, "infer") == "alice"
    assert [key.name for key in read_api_keys(path)] == ["alice"]


def test_keys_are_kept_as_digests_only(path: Path) -> None:
    keys = _keys(path, f"alice {ALICE}")

    assert ALICE not in repr(vars(keys))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (EVE, "must be NAME KEY SCOPES"),
        (f"eve {EVE} infer metrics", "must be NAME KEY SCOPES"),
        (f"eve {EVE} admin", "the scopes are infer, metrics, jobs"),
        (f"eve {EVE} infer,", "the scopes are infer, metrics, jobs"),
        (f"eve infer {EVE}", "the scopes are infer, metrics, jobs"),
        (f"eve {EVE[:15]}", "at least 16 characters"),
        (f"eve {_digest(EVE).upper()}", "64 hexadecimal digits"),
        (f"eve {_digest(EVE)[:-1]}", "64 hexadecimal digits"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number_and_without_the_key(path: Path, line: str, what: str) -> None:
    path.write_text(f"# keys\nalice {ALICE}\n\n{line}\n")

    with pytest.raises(SettingsError, match=what) as caught:
        ApiKeys(path)
    assert str(caught.value).startswith(f"MIEN_API_KEYS_FILE: {path}, line 4: ")
    for secret in (ALICE, EVE, EVE[:15], _digest(EVE)[8:71], _digest(EVE).upper()[8:71]):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "has no key"),
        (b"# nobody yet\n", "has no key"),
        (f"alice {ALICE}\nalice {BOB}\n".encode(), "a name or a key twice"),
        (f"alice {ALICE}\nbob {_digest(ALICE)}\n".encode(), "a name or a key twice"),
        (b"alice \xff\xfe\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_at_start(path: Path, content: bytes, what: str) -> None:
    path.write_bytes(content)

    with pytest.raises(SettingsError, match=f"^MIEN_API_KEYS_FILE: .*{what}") as caught:
        ApiKeys(path)
    assert ALICE not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_at_start(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^MIEN_API_KEYS_FILE: .*cannot be read"):
        ApiKeys(path)
    with pytest.raises(SettingsError, match=r"^MIEN_API_KEYS_FILE: .*cannot be read"):
        ApiKeys(path.parent)


def test_a_changed_file_is_read_again(path: Path) -> None:
    keys = _keys(path, f"alice {ALICE}")

    _rewrite(path, f"bob {BOB}")

    assert (_known(keys, ALICE), _known(keys, BOB)) == (False, True)


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = _keys(path, f"alice {ALICE}")
    monkeypatch.setattr(api_keys, "read_api_keys", lambda _: pytest.fail("nothing changed"))

    assert _known(keys, ALICE)


def test_a_file_that_is_replaced_by_another_of_the_same_size_and_time_is_read_again(path: Path) -> None:
    keys = _keys(path, f"alice {ALICE}")
    times_ns = (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    replacement = path.with_name("new")
    replacement.write_text(f"alice {ALICE[::-1]}\n")
    os.utime(replacement, ns=times_ns)
    replacement.replace(path)

    assert (_known(keys, ALICE), _known(keys, ALICE[::-1])) == (False, True)


def test_a_symlink_that_is_switched_as_kubernetes_does_is_followed(tmp_path: Path) -> None:
    for folder, line in (("first", f"alice {ALICE}"), ("second", f"bob {BOB}")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_text(line)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = ApiKeys(tmp_path / "keys")
    assert (_known(keys, ALICE), _known(keys, BOB)) == (True, False)

    (tmp_path / "..data_tmp").symlink_to("second")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    assert (_known(keys, ALICE), _known(keys, BOB)) == (False, True)


@pytest.mark.parametrize(
    "broken", ["", f"bob {BOB} everything", f"bob infer {BOB}", f"bob {BOB[:15]}", f"bob {BOB}\nbob {EVE}"]
)
def test_a_broken_new_file_leaves_the_old_keys_and_logs_no_key(
    path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    keys = _keys(path, f"alice {ALICE}")

    _rewrite(path, broken)
    answers = [_known(keys, ALICE), _known(keys, BOB)]

    assert answers == [True, False]
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "the API keys are left as they were: MIEN_API_KEYS_FILE" in record.getMessage()
    for secret in (ALICE, BOB, BOB[:15], EVE):
        assert secret not in caplog.text

    _rewrite(path, f"bob {BOB}")
    assert (_known(keys, ALICE), _known(keys, BOB)) == (False, True)


def test_a_file_that_goes_leaves_the_old_keys_until_there_is_a_new_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = _keys(path, f"alice {ALICE}")

    path.unlink()
    assert (_known(keys, ALICE), _known(keys, BOB)) == (True, False)
    assert "left as they were" in caplog.text

    path.write_text(f"bob {BOB}\n")
    assert (_known(keys, ALICE), _known(keys, BOB)) == (False, True)
