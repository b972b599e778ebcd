from __future__ import annotations

import functools
import pickle
import threading
import uuid
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from handlers.errors import TooLargeError
from scoring import connection
from scoring.errors import InputError, UnreadableError
from scoring.parts import Entry
from scoring.sources import Source, open_source


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_WAITS_S", (0.01,))


@pytest.fixture
def memory() -> Iterator[tuple[Any, str]]:
    """A file system of fsspec, and the URL of a folder in it with some files."""
    filesystem, folder = fsspec.filesystem("memory"), f"/test-{uuid.uuid4().hex}"
    for path in ("a.jpg", "b.PNG", "x/a.jpg", "x/y/a.jpg", "x2/empty.jpg", ".h/a.jpg", "odd %+#?.jpg"):
        filesystem.pipe_file(f"{folder}/{path}", b"" if "empty" in path else path.encode())
    yield filesystem, f"memory:/{folder}"
    if filesystem.exists(folder):
        filesystem.rm(folder, recursive=True)


def paths(source: Source) -> list[str]:
    return sorted(entry.path for entry in source.list())


def test_what_is_listed_and_read(memory: tuple[Any, str]) -> None:
    _, url = memory
    source = pickle.loads(pickle.dumps(open_source(url, recursive=True)))
    assert source.root == url
    entries = {entry.path: entry for entry in source.list()}
    assert sorted(entries) == ["a.jpg", "b.PNG", "odd %+#?.jpg", "x/a.jpg", "x/y/a.jpg", "x2/empty.jpg"]
    for path, entry in entries.items():
        expected = b"" if "empty" in path else path.encode()
        assert source.read(entry, 20) == expected
        assert entry.size_bytes == len(expected)
        assert entry.version
    assert paths(open_source(url)) == ["a.jpg", "b.PNG", "odd %+#?.jpg"]
    assert paths(open_source(url, recursive=True, include=["a.*"])) == ["a.jpg", "x/a.jpg", "x/y/a.jpg"]
    assert paths(open_source(url + "/x*/")) == ["x/a.jpg", "x2/empty.jpg"]
    assert paths(open_source(url + "/**/a.jpg")) == ["a.jpg", "x/a.jpg", "x/y/a.jpg"]
    single = open_source(url + "/x/a.jpg")
    assert (single.root, paths(single)) == (url + "/x", ["a.jpg"])
    assert paths(open_source(url + "/odd %+#?.jpg")) == ["odd %+#?.jpg"]


def test_changed_files_have_another_version_and_nothing_stale_is_listed(memory: tuple[Any, str]) -> None:
    filesystem, url = memory
    source = open_source(url + "/x")
    (first,) = source.list()
    filesystem.pipe_file(f"{url}/x/a.jpg", b"new")
    filesystem.pipe_file(f"{url}/x/b.jpg", b"new")
    second = {entry.path: entry for entry in source.list()}
    assert sorted(second) == ["a.jpg", "b.jpg"]
    assert second["a.jpg"].version != first.version


def test_sizes_are_bounded(memory: tuple[Any, str]) -> None:
    _, url = memory
    source = open_source(url)
    for size in (None, 1, 1000):
        with pytest.raises(TooLargeError, match="limit"):
            source.read(Entry("a.jpg", size, ""), 4)
    assert source.read(Entry("a.jpg", None, ""), 5) == b"a.jpg"


def test_what_is_gone(memory: tuple[Any, str]) -> None:
    filesystem, url = memory
    with pytest.raises(InputError, match="does not exist"):
        open_source(url + "/nothing")
    source = open_source(url)
    entry = next(source.list())
    with pytest.raises(UnreadableError, match="no such file"):
        source.read(Entry("nothing.jpg", None, ""), 10)
    filesystem.rm(url, recursive=True)
    with pytest.raises(InputError, match="not there any more"):
        source.read(entry, 10)
    with pytest.raises(InputError, match="does not exist"):
        list(source.list())


def test_a_file_that_is_always_in_trouble_is_its_own_error(
    memory: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does not make us list the whole folder."""
    _, url = memory
    source = open_source(url)
    whole = MemoryFileSystem.cat_file

    def failing(self: MemoryFileSystem, path: str, **options: Any) -> bytes:
        if path.endswith("a.jpg"):
            raise TimeoutError("no answer")
        data: bytes = whole(self, path, **options)
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda self, path, **options: pytest.fail(f"{path} was listed"))
    with pytest.raises(UnreadableError, match="no answer"):
        source.read(Entry("a.jpg", None, ""), 10)
    assert source.read(Entry("b.PNG", None, ""), 10) == b"b.PNG"


@pytest.mark.parametrize("key", ["modify", "modificationTime"])
def test_times_of_change_under_other_names(memory: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Those of ftp and webhdfs."""
    _, url = memory

    def of_another(self: MemoryFileSystem, path: str, **options: Any) -> list[dict[str, Any]]:
        return [{"name": f"{path}/a.jpg", "size": 1, "type": "file", key: 1700000000123}]

    monkeypatch.setattr(MemoryFileSystem, "ls", of_another)
    assert [entry.version for entry in open_source(url).list()] == ["1700000000123"]


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_a_web_server(tmp_path: Path) -> None:
    for path in ("in/a.jpg", "in/sub/b.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/in"
    try:
        folder = open_source(url + "/", recursive=True)
        assert paths(folder) == ["a.jpg", "sub/b.jpg"]
        assert sorted(folder.read(entry, 100) for entry in folder.list()) == [b"in/a.jpg", b"in/sub/b.jpg"]
        single = open_source(url + "/a.jpg")
        assert paths(single) == ["a.jpg"]
        with pytest.raises(UnreadableError, match="no such file"):
            folder.read(Entry("nothing.jpg", None, ""), 100)
        with pytest.raises(InputError, match="does not exist") as caught:
            open_source(url + "/nothing.jpg?who=SECRET")
        assert "SECRET" not in str(caught.value)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        folder.read(Entry("a.jpg", None, ""), 100)
    with pytest.raises(InputError, match="cannot be reached"):
        open_source(url + "/a.jpg")


def test_what_it_would_select(memory: tuple[Any, str]) -> None:
    _, url = memory
    paths = ("o.jpg", "out/parts/o.jpg")
    assert [open_source(url).selects(path) for path in paths] == [True, False]
    assert [open_source(url, recursive=True).selects(path) for path in paths] == [True, True]
