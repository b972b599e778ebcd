from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import fsspec
import pytest

from handlers.errors import TooLargeError
from scoring import connection
from scoring.connection import Connection
from scoring.errors import InputError, StoppedError, UnreadableError
from scoring.parts import Entry
from scoring.sources import Source, open_source
from tests.scoring.s3 import S3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_WAITS_S", (0.01,))


def listed(folder: Path, *lines: bytes | str, name: str = "list.txt") -> Source:
    data = b"\n".join(line if isinstance(line, bytes) else os.fsencode(line) for line in lines)
    (folder / name).write_bytes(data)
    source: Source = pickle.loads(pickle.dumps(open_source(str(folder / name))))
    return source


def test_lines_are_paths_below_the_folder_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg", " c .jpg", ".d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "\udcff.jpg").write_bytes(b"bytes")
    names = ["a.jpg", "sub/b.jpg", " c .jpg", ".d.jpg", "\udcff.jpg", "sub/../a.jpg", f"{tmp_path}/a.jpg"]
    names.append(f"file://{tmp_path}/sub/b.jpg")
    source = listed(tmp_path, b"\xef\xbb\xbfa.jpg", b"", *names[1:5], b"   ", *names[5:])
    assert source.root == str(tmp_path / "list.txt")
    entries = list(source.list())
    assert [entry.path for entry in entries] == names
    read = [source.read(entry, 100) for entry in entries]
    assert read == [b"a.jpg", b"sub/b.jpg", b" c .jpg", b".d.jpg", b"bytes", b"a.jpg", b"a.jpg", b"sub/b.jpg"]
    status = (tmp_path / "a.jpg").stat()
    assert entries[0] == Entry("a.jpg", 5, str(status.st_mtime_ns))


@pytest.mark.parametrize("name", ["list.txt", "list.LST", "a.list"])
def test_line_ends_of_either_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    source = listed(tmp_path, b"a.jpg\r\n\r\na.jpg", name=name)
    assert [entry.path for entry in source.list()] == ["a.jpg", "a.jpg"]


def test_what_cannot_be_read_is_listed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    source = listed(tmp_path, "nothing.jpg", "sub", "pipe", "a\0b", "x" * 300, "large", "memory://no/such.jpg")
    *entries, large, remote = source.list()
    for entry in (*entries, remote):
        assert (entry.size_bytes, entry.version) == (None, "")
        with pytest.raises(UnreadableError) as caught:
            source.read(entry, 10)
        assert str(tmp_path) not in caught.value.detail
    with pytest.raises(TooLargeError):
        source.read(large, 10)


def test_include_chooses_lines(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.png\nx/c.JPG\n/x/d.jpg\n")
    source = open_source(str(tmp_path / "list.txt"), include=["*.jpg"])
    assert [entry.path for entry in source.list()] == ["a.jpg", "x/c.JPG", "/x/d.jpg"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("s3://KEY:SECRET@b/a.jpg", "line 2 of .*list.txt: credentials"),
        ("simplecache::s3://b/SECRET", "line 2 of .*: chained URLs"),
        ("https://h/a.jpg?X-Amz-Expires=9&X-Amz-Signature=SECRET", "line 2 of .*: a URL with a signature"),
        ("nix://SECRET", "line 2 of .*: nix:// is no protocol"),
        ("file://SECRET", "line 2 of .*: .*absolute path"),
        ("x" * 70_000, "line 2 of .*too long"),
    ],
)
def test_lines_that_make_no_sense_are_named_by_their_number(tmp_path: Path, line: str, match: str) -> None:
    source = listed(tmp_path, "a.jpg", line)
    with pytest.raises(InputError, match=match) as caught:
        list(source.list())
    assert "SECRET" not in str(caught.value)


def test_a_list_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    source = listed(tmp_path, "a.jpg")
    (entry,) = source.list()
    (tmp_path / "list.txt").unlink()
    assert source.read(entry, 10) == b"1"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(source.list())


def test_remote_lines(tmp_path: Path, s3: S3) -> None:
    fsspec.filesystem("memory").pipe_file("/listed/m.jpg", b"m")
    s3.put("a b?#.jpg", b"s3")
    s3.put("empty.jpg", b"")
    urls = [
        "memory://listed/m.jpg",
        f"{s3.url}/a b?#.jpg",
        f"{s3.url}/empty.jpg",
        f"{s3.url}/nothing.jpg",
        "s3://no-such-bucket/a",
        s3.url,
    ]
    source = listed(tmp_path, *urls)
    entries = list(source.list())
    assert entries == [Entry(url, None, "") for url in urls]
    assert [source.read(entry, 10) for entry in entries[:3]] == [b"m", b"s3", b""]
    with pytest.raises(TooLargeError):
        source.read(entries[1], 1)
    for entry, match in zip(entries[3:], ("no such file", "bucket does not exist", "Invalid length"), strict=True):
        with pytest.raises(UnreadableError, match=match):
            source.read(entry, 10)
    s3.stop()
    with pytest.raises(UnreadableError, match="Could not connect"):
        source.read(entries[1], 10)


def test_a_dead_server_costs_only_the_lines_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    source = listed(tmp_path, f"http://127.0.0.1:{port}/b.jpg", f"ftp://127.0.0.1:{port}/c.jpg", "a.jpg")
    *dead, good = source.list()
    for entry in dead:
        with pytest.raises(UnreadableError, match=r"[Cc]onnect"):
            source.read(entry, 10)
    assert source.read(good, 10) == b"1"


def test_being_stopped_is_no_error_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(connection: Connection) -> None:
        raise StoppedError("stopped")

    source = listed(tmp_path, "s3://b/a.jpg")
    monkeypatch.setattr(Connection, "check_known", stop)
    with pytest.raises(StoppedError):
        list(source.list())
