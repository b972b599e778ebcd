from __future__ import annotations

import os
import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem

from handlers.errors import TooLargeError
from scoring import connection
from scoring.errors import InputError, StoppedError, UnreadableError
from scoring.parts import Entry
from scoring.s3_files import S3Files
from scoring.selection import Selection
from scoring.sources import Source, open_source
from tests.scoring.s3 import S3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_WAITS_S", (0.01, 0.02))


def paths(source: Source) -> list[str]:
    return sorted(entry.path for entry in source.list())


KEYS = [
    "per%20cent.jpg",
    "a+b.jpg",
    "a#b.jpg",
    "a?b.jpg",
    "a?versionId=1.jpg",
    "with space.jpg",
    "é🙂.jpg",
    "[a]*.jpg",
    "a&b=c;d.jpg",
    "a//b.jpg",
    "a/../b.jpg",
    "back\\slash.jpg",
    "quote'\".jpg",
]


def test_any_key_is_listed_and_read(s3: S3) -> None:
    for key in KEYS:
        s3.put(f"in/{key}", key.encode())
    s3.put("/leading", b"1")
    s3.put("in-private/a.jpg", b"1")
    source = pickle.loads(pickle.dumps(open_source(f"{s3.url}/in", recursive=True)))
    assert source.root == f"{s3.url}/in"
    entries = {entry.path: entry for entry in source.list()}
    # `..` begins with a dot, and such names are left out.
    assert sorted(entries) == sorted(key for key in KEYS if ".." not in key)
    for key, entry in entries.items():
        assert source.read(entry, 100) == key.encode()
        assert entry.size_bytes == len(key.encode())
    assert paths(open_source(s3.url, recursive=True, include=["leading"])) == ["/leading"]


def test_the_version_is_the_etag(s3: S3) -> None:
    s3.put("a.jpg", b"one")
    source = open_source(s3.url)
    (first,) = source.list()
    s3.put("a.jpg", b"two")
    (second,) = source.list()
    assert first.version == "f97c5d29941bfb1b2fdab0874906ab82"
    assert second.version == "b8a9f715dbb64fd5c56e7783c6820a61"
    assert source.read(first, 10) == b"two"


def test_what_is_listed(s3: S3) -> None:
    for key in ("a.jpg", "b.PNG", ".h.jpg", "x/a.jpg", "x/y/a.jpg", "x/.h/a.jpg", "x2/b.jpg", "z/"):
        s3.put(key, b"" if key.endswith("/") else b"1")
    source = open_source(s3.url)
    assert isinstance(source.files, S3Files)

    def listed(selection: Selection, prefix: str = "") -> list[str]:
        return paths(Source("", replace(source.files, prefix=prefix, selection=selection)))

    def glob(pattern: str, recursive: bool = False) -> list[str]:
        return listed(Selection.of_glob(pattern, recursive=recursive))

    assert paths(source) == ["a.jpg", "b.PNG"]
    everything = ["a.jpg", "b.PNG", "x/a.jpg", "x/y/a.jpg", "x2/b.jpg"]
    assert listed(Selection.of_folder(recursive=True)) == everything
    assert listed(Selection.of_folder(recursive=True, include=["*.png", "x/*"])) == ["b.PNG", "x/a.jpg"]
    assert listed(Selection.of_folder(recursive=False), "z/") == []
    assert listed(Selection.of_name("a.jpg"), "x/") == ["a.jpg"]
    assert glob("*.jpg") == ["a.jpg"]
    assert glob("x*/") == ["x/a.jpg", "x2/b.jpg"]
    assert glob("x*/", recursive=True) == ["x/a.jpg", "x/y/a.jpg", "x2/b.jpg"]
    assert glob("**/a.jpg") == ["a.jpg", "x/a.jpg", "x/y/a.jpg"]
    assert glob("*/y/a.jpg") == ["x/y/a.jpg"]


def test_forms_of_the_url(s3: S3) -> None:
    for key in ("a.jpg", "x/a.jpg", "x2/b.jpg", "z/"):
        s3.put(key, b"1")
    url = s3.url
    assert paths(open_source(url + "/")) == ["a.jpg"]
    assert paths(open_source(url + "/x")) == ["a.jpg"]
    assert paths(open_source(url + "/z/")) == []
    globbed = open_source(url + "/x*/")
    assert (globbed.root, paths(globbed)) == (url, ["x/a.jpg", "x2/b.jpg"])
    single = open_source(url + "/x/a.jpg")
    assert (single.root, paths(single)) == (f"{url}/x", ["a.jpg"])
    assert paths(open_source(f"s3a://{s3.bucket}/x2", recursive=True)) == ["b.jpg"]


def test_a_key_that_exists_as_written_is_no_glob(s3: S3) -> None:
    for key in ("[1]/a.jpg", "1/b.jpg", "a?.jpg", "ab.jpg"):
        s3.put(key, b"1")
    assert paths(open_source(s3.url + "/[1]")) == ["a.jpg"]
    assert paths(open_source(s3.url + "/a?.jpg")) == ["a?.jpg"]


def test_an_empty_bucket_has_no_entries(s3: S3) -> None:
    assert paths(open_source(s3.url, recursive=True)) == []


def test_a_listing_goes_on_behind_its_first_page(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoring import s3_files

    pages: list[int] = []

    def short_page(
        filesystem: object, bucket: str, prefix: str, delimiter: str = "", token: str = "", n: int = 1000
    ) -> object:
        page = whole_page(filesystem, bucket, prefix, delimiter, token, min(n, 7))
        pages.append(len(page.get("Contents", ())))
        return page

    whole_page = s3_files.list_page
    monkeypatch.setattr(s3_files, "list_page", short_page)
    keys = [f"{index // 10}/{index}.jpg" for index in range(50)]
    for key in keys:
        s3.put(key, b"1")
    assert paths(open_source(s3.url, recursive=True)) == sorted(keys)
    assert len(pages) > 7
    assert paths(open_source(s3.url + "/*/*.jpg")) == sorted(keys)
    assert max(pages) == 7


def test_sizes_are_bounded(s3: S3) -> None:
    s3.put("a.jpg", b"x" * 100)
    s3.put("empty.jpg", b"")
    source = open_source(s3.url)
    a, empty = sorted(source.list(), key=lambda entry: entry.path)
    assert source.read(empty, 10) == b""
    assert source.read(a, 100) == b"x" * 100
    for entry in (a, Entry("a.jpg", None, ""), Entry("a.jpg", 5, "")):  # it may have grown since it was listed
        with pytest.raises(TooLargeError, match="limit"):
            source.read(entry, 99)


def test_what_is_not_there(s3: S3) -> None:
    s3.put("a.jpg", b"1")
    for url in (s3.url + "/a.jpg/", s3.url + "/a"):
        with pytest.raises(InputError, match="does not exist"):
            open_source(url)
    assert paths(open_source(s3.url + "/nothing*")) == []
    with pytest.raises(InputError, match="the bucket 'no-such-bucket' does not exist"):
        open_source("s3://no-such-bucket/x")
    for url in ("s3://", "s3:///a.jpg", "s3://*/a.jpg"):
        with pytest.raises(InputError, match="names no bucket"):
            open_source(url)
    with pytest.raises(InputError, match="Invalid bucket name"):
        open_source("s3://Not a bucket!/x")


def test_an_object_that_is_gone_is_its_own_error_while_others_stand(s3: S3) -> None:
    s3.put("in/a.jpg", b"1")
    s3.put("in/b.jpg", b"1")
    source = open_source(s3.url + "/in")
    a, b = sorted(source.list(), key=lambda entry: entry.path)
    s3.delete("in/a.jpg")
    with pytest.raises(UnreadableError, match="no such file"):
        source.read(a, 10)
    assert source.read(b, 10) == b"1"
    s3.delete("in/b.jpg")
    with pytest.raises(InputError, match="not there any more"):
        source.read(b, 10)


def test_a_bucket_that_is_deleted_midway(s3: S3) -> None:
    s3.put("a.jpg", b"1")
    source = open_source(s3.url)
    (entry,) = source.list()
    assert source.read(entry, 10) == b"1"
    s3.delete_bucket()
    with pytest.raises(InputError, match=r"bucket .* does not exist"):
        source.read(entry, 10)
    with pytest.raises(InputError, match=r"bucket .* does not exist"):
        list(source.list())


def test_a_key_that_is_always_in_trouble_is_its_own_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a.jpg", "b.jpg"):
        s3.put(key, b"1")
    source = open_source(s3.url)
    assert source.selects("out.jpg")
    assert not source.selects("out/parts/x")
    whole = S3FileSystem._call_s3

    async def failing(self: S3FileSystem, method: str, *rest: Any, **options: Any) -> Any:
        if options.get("Key") == "a.jpg":
            raise OSError(5, "We have a problem") from ClientError({"Error": {"Code": "InternalError"}}, "GetObject")
        return await whole(self, method, *rest, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", failing)
    a, b = sorted(source.list(), key=lambda entry: entry.path)
    with pytest.raises(UnreadableError, match="We have a problem"):
        source.read(a, 10)
    assert source.read(b, 10) == b"1"


def test_being_stopped_is_no_trouble_of_the_input(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoring import s3_files

    source = open_source(s3.url)

    def stop(*arguments: object) -> None:
        raise StoppedError("stopped")

    monkeypatch.setattr(s3_files, "list_page", stop)
    with pytest.raises(StoppedError):
        list(source.list())


def test_an_endpoint_that_is_gone_and_comes_back(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("a.jpg", b"1")
    source = open_source(s3.url)
    (entry,) = source.list()
    s3.stop()
    with pytest.raises(InputError, match="cannot be reached: Could not connect"):
        source.read(entry, 10)
    with pytest.raises(InputError, match="cannot be reached"):
        list(source.list())
    with pytest.raises(InputError, match="cannot be reached"):
        open_source(s3.url)
    monkeypatch.setattr(connection, "RETRY_WAITS_S", (0.2,) * 50)
    patient = pickle.loads(pickle.dumps(open_source_later(s3)))
    starter = threading.Timer(0.3, s3.start)
    s3.stop()
    starter.start()
    try:
        assert patient.read(entry, 10) == b"1"
    finally:
        starter.join()


def open_source_later(s3: S3) -> Source:
    s3.start()
    return open_source(s3.url)


def test_missing_credentials_are_an_error_of_the_whole_input(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("a.jpg", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(InputError, match="credentials are missing or refused"):
        open_source(s3.url)


def test_two_threads_may_read(s3: S3) -> None:
    for index in range(20):
        s3.put(f"{index}.jpg", str(index).encode())
    source = open_source(s3.url)
    entries = list(source.list())
    read: dict[str, bytes] = {}

    def read_all(some: list[Entry]) -> None:
        for entry in some:
            read[entry.path] = source.read(entry, 10)

    threads = [threading.Thread(target=read_all, args=(entries[start::2],)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {f"{index}.jpg": str(index).encode() for index in range(20)}


def test_a_forked_process_makes_its_own_connection(s3: S3) -> None:
    s3.put("a.jpg", b"1")
    source = open_source(s3.url)
    (entry,) = source.list()
    process_id = os.fork()
    if process_id == 0:
        try:
            os._exit(0 if source.read(entry, 10) == b"1" else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0


def test_a_confined_prefix(s3: S3) -> None:
    s3.put("in/a.jpg", b"1")
    s3.put("in-private/a.jpg", b"1")
    source = open_source(s3.url + "/in", confined=True)
    assert paths(source) == ["a.jpg"]
    for path in ("in*/", "[i]n/a.jpg"):
        with pytest.raises(InputError, match="does not exist"):
            open_source(f"{s3.url}/{path}", confined=True)
    with pytest.raises(InputError, match="is not a folder"):
        open_source(s3.url + "/in/a.jpg", confined=True)
